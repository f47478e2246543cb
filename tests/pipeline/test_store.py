"""What readers find at a destination, on local disk and on a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from model.errors import DestinationError
from pipeline.catalog import query
from pipeline.objects import ObjectStore
from pipeline.records import PARTS, RUNS, SEGMENTS
from pipeline.sink import prepare
from pipeline.store import MARKER, Store, snapshot
from pipeline.writer import Writer
from tests.writers import WriterAt

Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def test_other_programs_read_the_tables(destination: str, results: Results, s3: Any, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    store.publish([prepare(store.objects, results("a"))])
    for name, schema in (("segments", SEGMENTS), ("parts", PARTS)):
        table = DeltaTable(store.objects.table_uri(name), storage_options=store.objects.storage_options)
        assert table.to_pyarrow_table().column_names == schema.names
        (path,) = snapshot(table)
        rows = pq.read_table(pa.BufferReader(store.objects.read(f"{name}/{path}")))
        assert rows.schema.names == schema.names
        stats = pa.table(table.get_add_actions(flatten=True)).to_pylist()[0]
        assert stats["num_records"] == rows.num_rows
        assert stats["min.generation"] == stats["max.generation"] == GENERATION


def test_plain_parquet_needs_nothing_of_ours(tmp_path: Path, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(str(tmp_path))
    store.publish([prepare(store.objects, results("a"))])
    assert pq.read_table(tmp_path / "segments" / "data")["text"].to_pylist()[0] == " part 0 segment 0"


def test_a_table_that_came_later_is_empty_until_the_next_run(destination: str, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    for path in store.objects.list("history"):
        store.objects.delete(path)
    older = Store.open(destination)
    assert older.snapshot("history") == {}
    assert query(older, "FROM runs").column_names == RUNS.names
    with pytest.raises(DestinationError, match="lacks its table history"):
        older.table("history")
    store.close()
    with Writer.open(destination) as writer:
        assert writer.table("history").version() >= 0


def test_reading_before_anything_is_stored_says_what_to_run(destination: str) -> None:
    with pytest.raises(DestinationError, match="run `earwitness transcribe SOURCE --to"):
        Store.open(destination)
    assert Store.find(destination) is None
    assert ObjectStore(destination).list() == {}


def test_find_opens_what_is_there(destination: str, writer_at: WriterAt) -> None:
    writer_at(destination)
    found = Store.find(destination)
    assert found is not None and found.snapshot("parts") == {}


def test_a_place_with_other_files_is_left_alone(destination: str) -> None:
    objects = ObjectStore(destination)
    objects.create("thesis.tex", b"x")
    for open_it in (Store.open, Writer.open):
        with pytest.raises(DestinationError, match="holds other files"):
            open_it(destination)
    assert list(objects.list()) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("marker", "said"), [(b'{"format": 2}', "has format 2"), (b'{"format": 4}', "has format 4"), (b"[]", "is damaged")]
)
def test_a_marker_we_cannot_read_is_refused(destination: str, marker: bytes, said: str, writer_at: WriterAt) -> None:
    ObjectStore(destination).create(MARKER, marker)
    with pytest.raises(DestinationError, match=said):
        writer_at(destination)


def test_the_latest_run_is_the_last_that_began(tmp_path: Path, writer_at: WriterAt) -> None:
    store = writer_at(str(tmp_path / "archive"))
    assert store.latest_run() is None
    store.objects.create("runs/20260101T000000Z-ffffffff.json", b'{"run": "first"}')
    store.objects.create("runs/20260102T000000Z-00000000.json", b'{"run": "second"}')
    assert store.latest_run() == {"run": "second"}
