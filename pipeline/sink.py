"""The last stage of a run: one batch of results becomes one shard, two Parquet objects prepared for publishing.

A prepared shard is invisible; `store.py` publishes it. The segments object is put first and the parts object second,
so a parts object vouches for both, and a segments object alone is the trace of a writer that died. It refuses to know
tables and commits.

Both objects have a name that follows from the parts they hold and from their text. A twin, that is the same stored by a
task that Ray ran again, finds the names taken: the first stays, and the twin describes what is stored.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import DestinationError
from pipeline.metrics import StoreMeter
from pipeline.objects import PATIENCE_SECONDS, ObjectStore
from pipeline.records import FAILURES, PARTS, RESULT, SEGMENTS, SHARD
from pipeline.storage import ObjectExists

SHARD_NAME_LENGTH = 32  # hex digits
ROWS_PER_GROUP = 65_536  # a shard of 16 parts is one row group of about 1,000 segments
# Columns whose values repeat within a shard; the rest is stored plain, because a dictionary of texts helps nobody.
REPEATING = ("media_id", "part_id", "uri", "generation", "status", "language", "model", "container", "codec", "worker")


class PrepareShard:
    """Ray stage: a batch of `records.RESULT` rows in, one `records.SHARD` row out (none for an empty batch)."""

    def __init__(self, destination: str) -> None:
        self.objects = ObjectStore(destination, PATIENCE_SECONDS)
        self._meter = StoreMeter()

    def __call__(self, results: pa.Table) -> pa.Table:
        if results.num_rows == 0:
            return SHARD.empty_table()
        started = time.monotonic()
        shard = prepare(self.objects, results)
        self._meter.stored(results, time.monotonic() - started)
        return pa.Table.from_pylist([shard], schema=SHARD)


def prepare(objects: ObjectStore, results: pa.Table) -> dict[str, Any]:
    """Store the rows of one batch as the two objects of a shard; returns its `records.SHARD` row.

    Raises: `DestinationError` when the storage refuses.
    """
    results = results.select(RESULT.names).cast(RESULT).sort_by([("media_id", "ascending"), ("index", "ascending")])
    (generation,) = results["generation"].unique().to_pylist()  # a run has one; two in a batch is a bug
    segments = segment_rows(results)
    spoken = parquet_bytes(segments) if segments.num_rows else b""
    path = f"data/{generation}/{shard_name(results, spoken)}.parquet"
    if spoken:
        _create_once(objects, f"segments/{path}", spoken)
    _create_once(objects, f"parts/{path}", parquet_bytes(part_rows(results, datetime.now(UTC))))
    return describe(objects, path)


def shard_name(results: pa.Table, spoken: bytes) -> str:
    """Name of a shard: a hash of its parts and of their attempt numbers, in any order, and of its segments object.

    The attempt belongs to it: a part that failed is stored again, beside the row that says it failed. So do the
    segments: a twin with another text must not find a parts object that counts the segments of this one.
    """
    attempts = zip(results["part_id"].to_pylist(), results["attempts"].to_pylist(), strict=True)
    parts = "\n".join(sorted(f"{part_id}:{attempt}" for part_id, attempt in attempts))
    return hashlib.sha256(parts.encode() + b"\0" + spoken).hexdigest()[:SHARD_NAME_LENGTH]


def part_rows(results: pa.Table, now: datetime) -> pa.Table:
    """The `records.PARTS` rows of a batch, committed at `now`; `segments` counts the rows that go with them."""
    counts = pc.fill_null(pc.list_value_length(results["segment_rows"]), 0)
    counted = results.set_column(results.schema.get_field_index("segments"), "segments", counts)
    committed_at = pa.repeat(pa.scalar(now, PARTS.field("committed_at").type), results.num_rows)
    return counted.append_column("committed_at", committed_at).select(PARTS.names).cast(PARTS)


def segment_rows(results: pa.Table) -> pa.Table:
    """The `records.SEGMENTS` rows of a batch: one per element of `segment_rows`, with the part it comes from."""
    lists = results["segment_rows"].combine_chunks()
    parents = pc.list_parent_indices(lists)
    fields = pc.list_flatten(lists)
    columns = []
    for name in SEGMENTS.names:
        own = fields.type.get_field_index(name) >= 0
        columns.append(pc.struct_field(fields, name) if own else results[name].take(parents))
    return pa.table(columns, schema=SEGMENTS)


def parquet_bytes(table: pa.Table) -> bytes:
    """One Parquet file in memory: the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    repeating = [name for name in REPEATING if name in table.column_names]
    # Without `store_schema`, kilobytes of Arrow metadata in each small file would only repeat the Delta schema.
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=repeating,
        row_group_size=ROWS_PER_GROUP,
        store_schema=False,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def describe(objects: ObjectStore, path: str) -> dict[str, Any]:
    """The `records.SHARD` row of the prepared shard at `path`, read from what is stored.

    Raises: `DestinationError` when one of its objects is no Parquet or is missing.
    """
    data, parts = _stored(objects, f"parts/{path}", ["start", "end", "status", "segments"])
    row = {
        "shard_id": path.rpartition("/")[2].removesuffix(".parquet"),
        "parts_path": path,
        "parts_bytes": len(data),
        "parts_rows": parts.num_rows,
        "segments_path": None,
        "segments_bytes": 0,
        "segments_rows": 0,
        "audio_seconds": pc.sum(pc.subtract(parts["end"], parts["start"])).as_py() or 0.0,
        "failed_rows": sum(status in FAILURES for status in parts["status"].to_pylist()),
    }
    if pc.sum(parts["segments"]).as_py():
        data, segments = _stored(objects, f"segments/{path}", [])
        row |= {"segments_path": path, "segments_bytes": len(data), "segments_rows": segments.num_rows}
    return row


def _create_once(objects: ObjectStore, path: str, data: bytes) -> None:
    try:
        objects.create(path, data)
    except ObjectExists:
        return  # a twin was first


def _stored(objects: ObjectStore, path: str, columns: list[str]) -> tuple[bytes, pa.Table]:
    try:
        data = objects.read(path)
        return data, pq.read_table(pa.BufferReader(data), columns=columns)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise DestinationError(
            f"The object {objects.table_uri(path)} is missing or damaged: delete both objects of this name, "
            "below segments/ and parts/, and run again."
        ) from error
