"""What a run has to do: the archive as listed, minus what the ledger already has for this generation.

Pure arithmetic over two tables. It lists nothing, reads nothing and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import ReadOptions
from pipeline.inventory import MediaObject, choose_part_seconds, estimate_seconds
from pipeline.records import MANIFEST, MEDIA, WORTH_ANOTHER_TRY

LEDGER_ROWS = 65_536  # turned into Python values at once


@dataclass(frozen=True)
class Plan:
    """What to read, and what was seen. `manifest` holds `records.MANIFEST` rows, `media` `records.MEDIA` rows."""

    manifest: pa.Table
    media: pa.Table
    part_seconds: float  # of files that this run starts; those half done keep theirs
    audio_seconds: float  # of what is pending, estimated from sizes and suffixes

    @property
    def pending(self) -> int:
        return int(self.manifest.num_rows)

    @property
    def listed(self) -> int:
        return int(self.media.num_rows)

    @property
    def pending_bytes(self) -> int:
        return int(pc.sum(self.manifest["bytes"]).as_py() or 0)


@dataclass
class _Ledger:
    """What the ledger has of one media object."""

    part_seconds: float = 0.0
    done: set[int] = field(default_factory=set)
    last: int | None = None  # index of the last part, once it has a final verdict
    attempts: int = 0  # of the part that failed most often
    exhausted: bool = False  # a part failed too often: quarantined

    @property
    def is_complete(self) -> bool:
        return self.exhausted or (self.last is not None and self.done.issuperset(range(self.last + 1)))


def plan(objects: Iterable[MediaObject], done_parts: pa.Table, options: ReadOptions, slots: int) -> Plan:
    """Compare the listed `objects` with the ledger (`Store.done_parts`); `slots` are those of the whole run.

    The cut of a file belongs to its parts' identity, so a file that is half done keeps the part length it began with.
    """
    rows = (row for batch in done_parts.to_batches(max_chunksize=LEDGER_ROWS) for row in batch.to_pylist())
    ledger = _by_media(rows, options.retries)
    listed = list(objects)
    pending = [media for media in listed if not ledger.get(media.media_id, _Ledger()).is_complete]
    seconds = sum(estimate_seconds(media.uri, media.bytes) for media in pending)
    part_seconds = options.part_seconds or choose_part_seconds(seconds, slots)
    pending_rows = [_manifest_row(media, ledger.get(media.media_id), part_seconds) for media in pending]
    return Plan(
        manifest=pa.Table.from_pylist(pending_rows, schema=MANIFEST),
        media=_media_table(listed),
        part_seconds=part_seconds,
        audio_seconds=seconds,
    )


def blocks(manifest: pa.Table, readers: int, per_reader: int = 8, largest: int = 64) -> list[pa.Table]:
    """The manifest in blocks of whole rows, several for each reader, so that no reader is left with a long queue."""
    rows = max(1, min(largest, manifest.num_rows // (readers * per_reader)))
    return [manifest.slice(first, rows) for first in range(0, manifest.num_rows, rows)]


def _by_media(rows: Iterable[dict[str, Any]], retries: int) -> dict[str, _Ledger]:
    ledger: dict[str, _Ledger] = {}
    for row in rows:
        media = ledger.setdefault(row["media_id"], _Ledger())
        media.part_seconds = row["part_seconds"]
        if row["status"] in WORTH_ANOTHER_TRY:
            media.attempts = max(media.attempts, row["attempts"])
            media.exhausted |= row["attempts"] > retries
            continue
        media.done.add(row["index"])
        if row["is_last"]:
            media.last = row["index"]
    return ledger


def _manifest_row(media: MediaObject, known: _Ledger | None, part_seconds: float) -> dict[str, Any]:
    return {
        "media_id": media.media_id,
        "uri": media.uri,
        "version": media.version,
        "bytes": media.bytes,
        "part_seconds": known.part_seconds if known else part_seconds,
        "done_parts": sorted(known.done) if known else [],
        "attempt": known.attempts + 1 if known else 1,
    }


def _media_table(listed: Sequence[MediaObject]) -> pa.Table:
    seen_at = datetime.now(UTC)
    rows = [
        {
            "media_id": media.media_id,
            "uri": media.uri,
            "version": media.version,
            "bytes": media.bytes,
            "modified_at": media.modified_at,
            "seen_at": seen_at,
        }
        for media in listed
    ]
    return pa.Table.from_pylist(rows, schema=MEDIA)
