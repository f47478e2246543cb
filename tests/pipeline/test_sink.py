"""Preparing shards: what is stored, under which name, and what a repetition does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DestinationError
from pipeline.objects import ObjectStore
from pipeline.records import PARTS, SEGMENTS, SHARD
from pipeline.sink import PrepareShard, describe, parquet_bytes, part_rows, prepare, segment_rows, shard_name

Results = Callable[..., pa.Table]


def _stored(objects: ObjectStore, path: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(objects.read(path)))


def test_a_batch_becomes_one_row_and_two_objects(destination: str, results: Results) -> None:
    shards = PrepareShard(destination)(pa.concat_tables([results("a", parts=2), results("b", parts=1)]))
    assert shards.schema == SHARD
    (shard,) = shards.to_pylist()
    path = f"data/0123456789abcdef/{shard['shard_id']}.parquet"
    assert shard["parts_path"] == shard["segments_path"] == path
    objects = ObjectStore(destination)
    assert objects.list() == {f"parts/{path}": shard["parts_bytes"], f"segments/{path}": shard["segments_bytes"]}
    assert (shard["parts_rows"], shard["segments_rows"]) == (3, 9)
    assert shard["audio_seconds"] == 180.0 and shard["failed_rows"] == 0
    assert _stored(objects, f"parts/{path}")["media_id"].to_pylist() == ["a", "a", "b"]


def test_segment_rows_carry_their_part(results: Results) -> None:
    rows = segment_rows(results("a", parts=2, segments=2))
    assert rows.schema == SEGMENTS
    found = [(r["part_id"], r["segment_index"], r["start"], r["text"]) for r in rows.to_pylist()]
    generation = "0123456789abcdef"
    assert found == [
        (f"a-0-{generation}", 0, 0.0, " part 0 segment 0"),
        (f"a-0-{generation}", 1, 5.0, " part 0 segment 1"),
        (f"a-1-{generation}", 0, 60.0, " part 1 segment 0"),
        (f"a-1-{generation}", 1, 65.0, " part 1 segment 1"),
    ]
    assert set(rows["uri"].to_pylist()) == {"s3://archive/a.mp3"}
    assert set(rows["generation"].to_pylist()) == {generation}


def test_parts_between_without_segments_do_not_shift_the_others(results: Results) -> None:
    silent = results("b", parts=1, segments=0)
    failed = results("c", parts=1, segment_rows=None, status="failed")
    rows = segment_rows(pa.concat_tables([results("a", 1, 1), silent, failed, results("d", 1, 2)]))
    assert rows["media_id"].to_pylist() == ["a", "d", "d"]


def test_part_rows_count_their_segments_and_say_when(results: Results) -> None:
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    rows = part_rows(pa.concat_tables([results("a", 1, 3), results("b", 1, segment_rows=None)]), now)
    assert rows.schema == PARTS
    assert rows["segments"].to_pylist() == [3, 0]
    assert rows["committed_at"].to_pylist() == [now, now]


def test_without_segments_there_is_no_segments_object(destination: str, results: Results) -> None:
    objects = ObjectStore(destination)
    shard = prepare(objects, results("a", segment_rows=None, status="failed", error="no route to host"))
    assert shard["segments_path"] is None and shard["segments_rows"] == 0
    assert shard["failed_rows"] == 2
    assert list(objects.list()) == [f"parts/{shard['parts_path']}"]


def test_a_twin_finds_the_first_and_changes_nothing(destination: str, results: Results) -> None:
    objects = ObjectStore(destination)
    first = prepare(objects, results("a", segments=3, worker="one"))
    stored = {path: objects.read(path) for path in objects.list()}
    assert prepare(objects, results("a", segments=3, worker="two")) == first
    assert {path: objects.read(path) for path in objects.list()} == stored


def test_a_twin_that_heard_something_else_stands_beside_the_first(destination: str, results: Results) -> None:
    objects = ObjectStore(destination)
    first, other = (prepare(objects, results("a", segments=count)) for count in (3, 2))
    assert (first["segments_rows"], other["segments_rows"]) == (6, 4)
    assert len(objects.list("parts")) == len(objects.list("segments")) == 2


def test_a_writer_that_died_in_between_is_completed(destination: str, results: Results) -> None:
    objects = ObjectStore(destination)
    batch = results("a")
    name = f"data/0123456789abcdef/{shard_name(batch, parquet_bytes(segment_rows(batch)))}.parquet"
    objects.create(f"segments/{name}", parquet_bytes(segment_rows(batch)))
    assert prepare(objects, batch)["segments_path"] == name


def test_the_name_follows_from_parts_and_attempts_in_any_order(results: Results) -> None:
    one = results("a", parts=3)
    name = shard_name(one, b"text")
    assert name == shard_name(one.take([2, 0, 1]), b"text") and len(name) == 32
    assert name != shard_name(one.slice(0, 2), b"text")
    assert name != shard_name(results("a", parts=3, attempts=2), b"text"), "a retry is stored beside the failure"
    assert name != shard_name(one, b"other text"), "a twin that heard something else is stored beside the first"


def test_the_same_rows_give_the_same_compact_file(results: Results) -> None:
    rows = segment_rows(results("a", parts=4, segments=50))
    data = parquet_bytes(rows)
    assert data == parquet_bytes(rows)
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    assert metadata.num_row_groups == 1
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(14)}
    assert columns["text"].compression == "ZSTD"
    assert columns["uri"].has_dictionary_page and columns["media_id"].has_dictionary_page
    assert not columns["text"].has_dictionary_page


def test_an_empty_batch_is_no_shard(destination: str, results: Results) -> None:
    shards = PrepareShard(destination)(results("a").slice(0, 0))
    assert shards.num_rows == 0 and shards.schema == SHARD
    assert ObjectStore(destination).list() == {}


@pytest.mark.parametrize("broken", [None, b"not parquet"])
def test_a_damaged_shard_is_named(destination: str, results: Results, broken: bytes | None) -> None:
    objects = ObjectStore(destination)
    path = prepare(objects, results("a"))["parts_path"]
    objects.delete(f"segments/{path}")
    if broken is not None:
        objects.create(f"segments/{path}", broken)
    with pytest.raises(DestinationError, match=f"{path} is missing or damaged"):
        describe(objects, path)
