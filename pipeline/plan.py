"""What a run has to do: the archive as listed, minus what the ledger already has for this generation.

Pure arithmetic over two tables, done in DuckDB so that millions of files are columns and not objects. It lists nothing,
reads nothing and starts nothing.

Of several attempts at one part, one that has text counts over one that has none, then the latest. A copy, an object
with the same bytes as its owner, is done when its owner is, and else has to be read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import ReadOptions
from pipeline.inventory import MediaObject, choose_part_seconds, estimate_seconds
from pipeline.records import MANIFEST, MEDIA, OWNERS, PARTS, WITH_TEXT, WORTH_ANOTHER_TRY
from pipeline.spill import spill_folder

LISTED_AT_ONCE = 65_536  # objects turned into columns together

_TEXT = ", ".join(f"'{status}'" for status in WITH_TEXT)
_AGAIN = ", ".join(f"'{status}'" for status in WORTH_ANOTHER_TRY)
_ABOVE_ATTEMPTS = 1_000_000_000  # so that text wins over any number of attempts
_LEDGER = ("media_id", "index", "is_last", "status", "attempts", "part_seconds", "sha256", "same_as")
_NOTHING = pa.schema([PARTS.field(name) for name in _LEDGER]).empty_table()

# Most files are whole at the first look, which takes a bit for each part, of those that a BIGINT has to spare.
_BITS = 62
_WHOLE = f"""
CREATE TABLE whole AS
    SELECT media_id, max("index") FILTER (is_last) AS last FROM ledger GROUP BY media_id
    HAVING bool_and(status NOT IN ({_AGAIN}) AND same_as IS NULL AND "index" < {_BITS})
        AND bit_or(if("index" < {_BITS}, 1::BIGINT << "index", 0)) = (1::BIGINT << (last + 1)) - 1
"""
_NONE_WHOLE = "CREATE TABLE whole (media_id VARCHAR)"

# One row per other file of the ledger. `done` holds the indices with a verdict that stays; `last` the index of the last
# part, once that has one; `attempts` is of what has to be tried again, and `settled` says that nothing will be.
_FILES = f"""
CREATE TABLE files AS
    WITH parts AS (
        SELECT media_id, "index", max(attempts) AS attempts, any_value(part_seconds) AS part_seconds,
            arg_max(status NOT IN ({_AGAIN}), rank) AS done, arg_max(is_last, rank) AS is_last, bool_or(text) AS text
        FROM (SELECT *, status IN ({_TEXT}) AS text, attempts + if(text, {_ABOVE_ATTEMPTS}, 0) AS rank
            FROM ledger ANTI JOIN whole USING (media_id) WHERE same_as IS NULL)
        GROUP BY media_id, "index"),
    own AS (
        SELECT media_id, any_value(part_seconds) AS part_seconds, max("index") FILTER (done AND is_last) AS last,
            coalesce(list_sort(list("index") FILTER (done)), []) AS done, bool_or(text) AS has_text,
            coalesce(max(attempts) FILTER (NOT done), 0) AS attempts
        FROM parts GROUP BY media_id),
    copies AS (
        SELECT media_id, arg_max(same_as, attempts) AS owner, max(attempts) AS attempts
        FROM ledger WHERE same_as IS NOT NULL GROUP BY media_id),
    alone AS (
        SELECT *, attempts > {{retries}}
            OR coalesce(len(list_filter(done, lambda i: i <= last)) = last + 1, false) AS settled
        FROM own)
    SELECT media_id, alone.part_seconds, alone.last, coalesce(alone.done, []) AS done,
        greatest(coalesce(alone.attempts, 0), coalesce(copies.attempts, 0)) AS attempts,
        coalesce(alone.settled, false) AS settled_alone,
        settled_alone OR (NOT coalesce(alone.has_text, false) AND coalesce(owners.settled, false)) AS settled
    FROM alone FULL JOIN copies USING (media_id) LEFT JOIN (
        SELECT media_id, settled FROM alone UNION ALL SELECT media_id, true FROM whole
    ) AS owners ON owners.media_id = copies.owner
"""

_PENDING = """
CREATE TABLE pending AS
    SELECT listed.*, files.part_seconds, coalesce(files.done, []) AS done_parts, files.last + 1 AS parts_total,
        coalesce(files.attempts, 0) + 1 AS attempt
    FROM listed ANTI JOIN whole USING (media_id) LEFT JOIN files USING (media_id)
    WHERE NOT coalesce(files.settled, false)
"""

_AGAIN_PENDING = """
CREATE TABLE pending AS
    SELECT listed.*, files.part_seconds, files.last + 1 AS parts_total, latest.attempts + 1 AS attempt,
        list_filter(files.done, lambda i: NOT list_contains(chosen.indices, i)) AS done_parts
    FROM listed JOIN files USING (media_id)
        JOIN (SELECT media_id, list("index") AS indices FROM picked GROUP BY media_id) AS chosen USING (media_id)
        JOIN (SELECT media_id, max(attempts) AS attempts FROM ledger GROUP BY media_id) AS latest USING (media_id)
"""

# Whose content is known: of what is settled, and of what this run goes on with. A file that is half done and gone from
# the archive is left out, else its copies would wait for it for ever.
_OWNERS = """
SELECT unhex(sha256) AS sha256, min({'later': later, 'media_id': owner}).media_id AS media_id
FROM (
    SELECT sha256, media_id AS owner, false AS later
        FROM ledger SEMI JOIN (SELECT media_id FROM whole UNION ALL SELECT media_id FROM files WHERE settled_alone)
        USING (media_id) WHERE same_as IS NULL AND sha256 IS NOT NULL
    UNION ALL
    SELECT sha256, coalesce(same_as, ledger.media_id) AS owner, true AS later
        FROM ledger WHERE sha256 IS NOT NULL AND owner IN (SELECT media_id FROM pending))
GROUP BY sha256
"""


@dataclass(frozen=True)
class Plan:
    """What to read, and what was seen. `manifest` holds `records.MANIFEST` rows, `media` `records.MEDIA` rows."""

    manifest: pa.Table
    media: pa.Table
    part_seconds: float  # of files that this run starts; those half done keep theirs
    audio_seconds: float  # of what is pending, estimated from sizes and suffixes
    owners: pa.Table = field(default_factory=OWNERS.empty_table)  # `records.OWNERS` rows: content that is known

    @property
    def pending(self) -> int:
        return int(self.manifest.num_rows)

    @property
    def listed(self) -> int:
        return int(self.media.num_rows)

    @property
    def pending_bytes(self) -> int:
        return int(pc.sum(self.manifest["bytes"]).as_py() or 0)


def plan(objects: Iterable[MediaObject], ledger: pa.Table, options: ReadOptions, slots: int) -> Plan:
    """Compare the listed `objects` with the ledger (`Store.done_parts`); `slots` are those of the whole run.

    The cut of a file belongs to its parts' identity, so a file that is half done keeps the part length it began with.
    """
    media = _media_table(objects)
    known = ledger.select(_LEDGER) if ledger.num_rows else _NOTHING
    with _tables(ledger=known, listed=_numbered(media)) as tables:
        tables.execute(_WHOLE)
        tables.execute(_FILES.format(retries=options.retries))
        tables.execute(_PENDING)
        pending = tables.sql("FROM pending ORDER BY position").to_arrow_table()
        owners = tables.sql(_OWNERS).to_arrow_table().cast(OWNERS) if pending.num_rows else OWNERS.empty_table()
    seconds = _estimated_seconds(pending)
    part_seconds = options.part_seconds or choose_part_seconds(seconds, slots)
    column = pending.schema.get_field_index("part_seconds")
    pending = pending.set_column(column, "part_seconds", pc.fill_null(pending["part_seconds"], part_seconds))
    return Plan(pending.select(MANIFEST.names).cast(MANIFEST), media, part_seconds, seconds, owners)


def plan_again(picked: pa.Table, ledger: pa.Table, media: pa.Table) -> Plan:
    """Read exactly the `picked` parts again, each at an attempt that its file has not seen; what is missing as well.

    picked: the columns media_id and index, of files that have parts of their own in the ledger (`Store.done_parts`).
    media: `records.MEDIA` rows that hold those files. Their cuts stay.
    """
    known = ledger.select(_LEDGER).filter(pc.is_in(ledger["media_id"], picked["media_id"].combine_chunks()))
    with _tables(ledger=known, listed=_numbered(media), picked=picked) as tables:
        tables.execute(_NONE_WHOLE)
        tables.execute(_FILES.format(retries=0))
        tables.execute(_AGAIN_PENDING)
        pending = tables.sql("FROM pending ORDER BY uri").to_arrow_table()
    longest = pc.max(pending["part_seconds"]).as_py() or 0.0
    manifest = pending.select(MANIFEST.names).cast(MANIFEST)
    return Plan(manifest, MEDIA.empty_table(), longest, _estimated_seconds(pending))


def blocks(manifest: pa.Table, readers: int, per_reader: int = 8, largest: int = 64) -> list[pa.Table]:
    """The manifest in blocks of whole rows, several for each reader, so that no reader is left with a long queue."""
    rows = max(1, min(largest, manifest.num_rows // (readers * per_reader)))
    return [manifest.slice(first, rows) for first in range(0, manifest.num_rows, rows)]


def _media_table(objects: Iterable[MediaObject]) -> pa.Table:
    """`records.MEDIA` rows of the objects, in their order."""
    seen_at = datetime.now(UTC)
    remaining = iter(objects)
    batches = []
    while listed := list(itertools.islice(remaining, LISTED_AT_ONCE)):
        columns = {name: [getattr(media, name) for media in listed] for name in MEDIA.names if name != "seen_at"}
        batches.append(pa.RecordBatch.from_pydict(columns | {"seen_at": [seen_at] * len(listed)}, schema=MEDIA))
    return pa.Table.from_batches(batches, MEDIA)


def _numbered(media: pa.Table) -> pa.Table:
    """With the place of each row, for DuckDB to put them back into."""
    return media.append_column("position", pa.array(range(media.num_rows), pa.int64()))


def _estimated_seconds(media: pa.Table) -> float:
    places = zip(media["uri"].to_pylist(), media["bytes"].to_pylist(), strict=True)
    return sum(estimate_seconds(uri, size) for uri, size in places)


@contextmanager
def _tables(**tables: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own over Arrow tables; what exceeds the memory goes to a temporary folder, and with it."""
    with duckdb.connect(config={"temp_directory": str(spill_folder())}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        yield connection
