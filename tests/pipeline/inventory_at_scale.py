"""An archive of any size that only exists as tables and a listing, and what it costs to plan a night over it.

    python -m tests.pipeline.inventory_at_scale make FOLDER 10000000
    python -m tests.pipeline.inventory_at_scale plan FOLDER

Most files are whole, in three parts; one in a hundred is a copy of another, one in a thousand failed too often, one in
a hundred thousand is half done. The listing lacks some of them, has some in another version, and 5,000 nobody has seen.
What is printed is one line of JSON: counts, seconds, and the largest resident memory of the process in MB.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ReadOptions
from pipeline.inventory import LISTED_AT_ONCE, roots
from pipeline.ledger import ledger_of
from pipeline.plan import Choice, plan
from pipeline.plan_sql import MEDIA_ID
from pipeline.records import MEDIA, PARTS
from pipeline.run import SECONDS_PER_HOUR  # brings Ray and torch along, as any run does
from pipeline.store import Store
from pipeline.writer import Writer, add_action

GENERATION = "0123456789abcdef"
SOURCE = "s3://archive/calls"
FILES_PER_OBJECT = 100_000  # what compaction makes of the ledger
NEW, CHANGED, MISSING = 5_000, 300, 100
COPY, FAILED, HALF_DONE = 100, 1_000, 100_000  # one in so many
PARTS_PER_FILE = 3

# File number i at its n-th version. Sizes differ as those of real recordings do.
_OBJECT = """
    SELECT i, n, format('{source}/{{:04d}}/recording {{:09d}}.wav', i // 10000, i) AS uri,
        md5(format('{{}} {{}}', i, n)) AS version,
        40_000 + (hash(i - (i % {copy} = 1)::INT, n) % 20_000_000)::BIGINT AS bytes,
        TIMESTAMPTZ '2020-01-01' + to_seconds(i) AS modified_at
    FROM (SELECT range AS i, {version} AS n FROM range({first}, {end}))
"""
_MEDIA = f"SELECT *, {MEDIA_ID} AS media_id, lag(media_id) OVER (ORDER BY i) AS owner FROM ({{objects}})"
_LEDGER = f"""
    SELECT concat(left(media_id, 31), "index") AS part_id, media_id, uri, "index", "index" * 300.0 AS start,
        "index" * 300.0 + 300 AS "end", "index" = {PARTS_PER_FILE - 1} OR i % {COPY} = 1 AS is_last,
        300.0 AS part_seconds,
        CASE WHEN i % {FAILED} = 7 AND "index" = 2 THEN 'failed' ELSE 'ok' END AS status,
        CASE WHEN i % {FAILED} = 7 THEN 3 ELSE 1 END AS attempts,
        CASE WHEN is_last THEN version || media_id END AS sha256,
        CASE WHEN i % {COPY} = 1 THEN owner END AS same_as,
        'wav' AS container, 16000 AS sample_rate, 'base' AS model, 'en' AS language, 900.0 AS decoded_seconds,
        hash(media_id) % 1000 / 1000 AS language_probability, 'worker 1' AS worker, '{GENERATION}' AS generation,
        TIMESTAMPTZ '2026-01-01' AS committed_at
    FROM media, (SELECT unnest(range({PARTS_PER_FILE})) AS "index")
    WHERE (i % {COPY} <> 1 OR "index" = 0) AND (i % {HALF_DONE} <> 3 OR "index" <> 1)
"""


def make(folder: Path, files: int) -> None:
    """The tables of `files` known files below `folder`, and the listing of a night; what is there already is kept."""
    with Writer.open(str(folder / "tables")) as writer, duckdb.connect() as connection:
        for schema, name in ((MEDIA, "media"), (PARTS, "parts")):
            connection.register(f"{name}_columns", schema.empty_table())
        made = writer.snapshot("parts")
        for first in range(0, files, FILES_PER_OBJECT):
            if f"data/{GENERATION}/{first:09d}.parquet" in made:
                continue
            end = min(files, first + FILES_PER_OBJECT)
            objects = _OBJECT.format(source=SOURCE, copy=COPY, version=0, first=first, end=end)
            connection.execute(f"CREATE OR REPLACE TEMP TABLE media AS {_MEDIA.format(objects=objects)}")
            seen = "SELECT * EXCLUDE (i, n, owner), TIMESTAMPTZ '2026-01-01' AS seen_at FROM media"
            _store(writer, connection, "media", f"data/{first:09d}.parquet", seen)
            _store(writer, connection, "parts", f"data/{GENERATION}/{first:09d}.parquet", _LEDGER)
        _list(connection, folder, files)


def _store(writer: Writer, connection: duckdb.DuckDBPyConnection, table: str, path: str, rows: str) -> None:
    """One object of a table, added as the store adds it."""
    target = Path(writer.objects.address, table, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    columns = ", ".join(f'"{name}"' for name in (MEDIA if table == "media" else PARTS).names)
    query = f"SELECT {columns} FROM (FROM {table}_columns UNION ALL BY NAME {rows}) ORDER BY media_id"
    connection.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536)")
    count = pq.read_metadata(target).num_rows
    writer.add(table, [add_action(path, target.stat().st_size, count, GENERATION if table == "parts" else None)])


def _list(connection: duckdb.DuckDBPyConnection, folder: Path, files: int) -> None:
    known = _OBJECT.format(
        source=SOURCE, copy=COPY, version=f"(range % {files // CHANGED} = 5)::INT", first=MISSING, end=files
    )
    new = _OBJECT.format(source=SOURCE, copy=COPY, version=0, first=files, end=files + NEW)
    rows = f"SELECT uri, version, bytes, modified_at FROM ({known} UNION ALL {new})"
    connection.execute(f"COPY ({rows}) TO '{folder}/listing.parquet' (FORMAT parquet)")


def measure(folder: Path) -> dict[str, float | None]:
    """Plan the night, and tell what came out and what it took."""
    before = _memory()
    started, worked = time.monotonic(), time.process_time()
    with ledger_of(Store.open(str(folder / "tables")), GENERATION) as ledger:
        choice = Choice(ReadOptions(), slots=64, most_seconds=100 * SECONDS_PER_HOUR, roots=roots([SOURCE]))
        planned = plan(_listing(folder), ledger, choice)
    took = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time() - worked, 1)}
    counts = asdict(planned.seen) | {"pending": planned.pending, "postponed": planned.postponed}
    return counts | {"owners": planned.owners.num_rows} | took | {"before_mb": before, "peak_mb": _memory()}


def _listing(folder: Path) -> Iterator[pa.RecordBatch]:
    """As an inventory would give it; the reader of whole files would hold half a gigabyte of it in advance."""
    with pq.ParquetFile(folder / "listing.parquet") as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_batches(LISTED_AT_ONCE)


def _memory() -> int:
    """The largest resident memory of this process so far, in MB; `ru_maxrss` begins at that of who started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


if __name__ == "__main__":
    command, place, *size = sys.argv[1:]
    if command == "make":
        make(Path(place), int(size[0]))
    else:
        print(json.dumps(measure(Path(place))))
