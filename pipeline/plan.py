"""What a run has to do: the archive as listed, minus what the ledger already has for this generation.

All of it is SQL (`plan_sql.py`) over the views of `ledger.py`, and the listing streams through it once, so that
millions of files that are done cost some time and little memory; what is held as a table is what this run will do. It
lists nothing, reads nothing and starts nothing.

Of several attempts at one part, one that has text counts over one that has none, then the latest. A copy, an object
with the same bytes as its owner, is done when its owner is, and else has to be read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.errors import EarwitnessError
from pipeline import plan_sql as sql
from pipeline.config import ReadOptions
from pipeline.inventory import LISTING, choose_part_seconds
from pipeline.records import MANIFEST, MEDIA, OWNERS

MOST_ROOTS = 100  # places below which it is worked out what is missing: each is compared with each known uri
_LISTED = pa.schema([pa.field("position", pa.int64()), *LISTING])


@dataclass(frozen=True)
class Seen:
    """What a listing came to, beside what is known of the archive. Counts of objects."""

    listed: int = 0
    new: int = 0  # under a uri that nobody had seen
    changed: int = 0  # under one that had another version, or had another in between
    missing: int | None = None  # known below the sources, and not listed any more; None: not worked out


@dataclass(frozen=True)
class Plan:
    """What to read, and what was seen. `manifest` holds `records.MANIFEST` rows, `media` `records.MEDIA` rows."""

    manifest: pa.Table
    media: pa.Table  # new to the table of media
    part_seconds: float  # of files that this run starts; those half done keep theirs
    audio_seconds: float  # of what is pending, estimated from sizes and suffixes
    owners: pa.Table = field(default_factory=OWNERS.empty_table)  # `records.OWNERS` rows: content that is known
    seen: Seen = field(default_factory=Seen)
    postponed: int = 0  # files that are pending as well, and left to another run

    @property
    def pending(self) -> int:
        return int(self.manifest.num_rows)

    @property
    def listed(self) -> int:
        return self.seen.listed

    @property
    def pending_bytes(self) -> int:
        return int(pc.sum(self.manifest["bytes"]).as_py() or 0)


@dataclass(frozen=True)
class Choice:
    """What decides a plan beside the tables. `slots` are those of the whole run."""

    options: ReadOptions
    slots: int
    most_seconds: float | None = None  # of audio, estimated: the oldest objects first, until so many are reached
    roots: Sequence[str] = ()  # beginnings of uris that were listed, each as `inventory.roots` has it


def plan(listing: Iterable[pa.RecordBatch], ledger: duckdb.DuckDBPyConnection, choice: Choice) -> Plan:
    """Compare the listed objects, batches of `inventory.LISTING`, with the tables (`ledger.ledger_of`).

    The cut of a file belongs to its parts' identity, so a file that is half done keeps the part length it began with.
    Raises: what listing raises.
    """
    ledger.execute(sql.WHOLE)
    ledger.execute(sql.KNOWN.format(below=_below(choice.roots)))
    listed = _candidates(listing, ledger)
    media, seen = _news(ledger, listed, choice.roots)
    for statement in (sql.WANTED, sql.RELEVANT, sql.FILES.format(retries=choice.options.retries), sql.DUE):
        ledger.execute(statement)
    if choice.most_seconds is None:
        ledger.execute(sql.PENDING)
        pending = ledger.sql("FROM pending ORDER BY position").to_arrow_table()
    else:
        ledger.execute(sql.OLDEST_PENDING.format(most_seconds=f"'{choice.most_seconds}'::DOUBLE"))
        pending = ledger.sql(f"FROM pending ORDER BY {sql.OLDEST_FIRST}").to_arrow_table()
    due = _count(ledger, "due")
    owners = ledger.sql(sql.OWNERS).to_arrow_table().cast(OWNERS) if pending.num_rows else OWNERS.empty_table()
    seconds = pc.sum(pending["seconds"]).as_py() or 0.0
    part_seconds = choice.options.part_seconds or choose_part_seconds(seconds, choice.slots)
    column = pending.schema.get_field_index("part_seconds")
    pending = pending.set_column(column, "part_seconds", pc.fill_null(pending["part_seconds"], part_seconds))
    return Plan(_manifest(pending), media, part_seconds, seconds, owners, seen, due - pending.num_rows)


def plan_again(picked: pa.Table, ledger: duckdb.DuckDBPyConnection) -> Plan:
    """Read exactly the `picked` parts again, each at an attempt that its file has not seen; what is missing as well.

    picked: the columns media_id and index, of files that have parts of their own in the ledger. Their cuts stay.
    """
    ledger.register("picked", picked)
    for statement in (sql.PICKED, sql.RELEVANT, sql.FILES.format(retries=0), sql.PICKED_PENDING):
        ledger.execute(statement)
    pending = ledger.sql("FROM pending ORDER BY uri").to_arrow_table()
    longest = pc.max(pending["part_seconds"]).as_py() or 0.0
    seconds = pc.sum(pending["seconds"]).as_py() or 0.0
    seen = Seen(listed=pending.num_rows)
    return Plan(_manifest(pending), MEDIA.empty_table(), longest, seconds, seen=seen)


class _Listing:
    """A listing on its way into DuckDB, which reads it once, and of what it raises would keep but the text."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches
        self.rows = 0
        self.raised: EarwitnessError | None = None

    def numbered(self) -> Iterator[pa.RecordBatch]:
        """The batches, with the position of each row."""
        try:
            for batch in self._batches:
                position = pa.array(np.arange(self.rows, self.rows + batch.num_rows))
                self.rows += batch.num_rows
                yield pa.RecordBatch.from_arrays([position, *batch.columns], schema=_LISTED)
        except EarwitnessError as error:
            self.raised = error
            raise


def _candidates(batches: Iterable[pa.RecordBatch], ledger: duckdb.DuckDBPyConnection) -> int:
    """Make the table of candidates out of a listing; returns how many objects were listed."""
    listing = _Listing(batches)
    ledger.register("listing", pa.RecordBatchReader.from_batches(_LISTED, listing.numbered()))
    try:
        ledger.execute(sql.CANDIDATES)
    except duckdb.Error as error:
        if listing.raised is None:
            raise
        raise listing.raised from error
    return listing.rows


def _news(ledger: duckdb.DuckDBPyConnection, listed: int, roots: Sequence[str]) -> tuple[pa.Table, Seen]:
    """The `records.MEDIA` rows that the table of media lacks, and how many objects of which kind were seen."""
    ledger.execute(sql.CURRENT)
    news = ledger.sql(sql.NEWS).to_arrow_table()
    changed = int(pc.sum(news["changed"]).as_py() or 0)
    new = news.num_rows - changed
    seen_at = pa.repeat(pa.scalar(datetime.now(UTC), MEDIA.field("seen_at").type), news.num_rows)
    media = news.drop_columns(["changed"]).append_column("seen_at", seen_at).select(MEDIA.names).cast(MEDIA)
    ((known,),) = ledger.sql("SELECT uris FROM known").fetchall()
    missing = known - (listed - new) if len(roots) <= MOST_ROOTS else None
    return media, Seen(listed, new, changed, missing)


def _below(roots: Sequence[str]) -> str:
    """The condition that a uri of the table of media stands below one of the roots."""
    if len(roots) > MOST_ROOTS:
        return "true"
    quoted = (root.replace("'", "''") for root in roots)
    return " OR ".join(f"starts_with(uri || '/', '{root}')" for root in quoted) or "true"


def _count(ledger: duckdb.DuckDBPyConnection, table: str) -> int:
    ((rows,),) = ledger.sql(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


def _manifest(pending: pa.Table) -> pa.Table:
    return pending.select(MANIFEST.names).cast(MANIFEST)
