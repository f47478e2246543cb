"""Several versions of one uri: the views show the one that was seen last, and all_* the others too."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalog import query
from pipeline.records import MEDIA
from pipeline.store import Store
from pipeline.writer import Writer
from tests.pipeline.tables import Results, one, publish
from tests.writers import WriterAt

URI = "s3://archive/talk.mp3"


@pytest.fixture
def store(tmp_path: Path, writer_at: WriterAt) -> Writer:
    return writer_at(str(tmp_path / "archive"))


def see(store: Writer, media_id: str, day: int, uri: str = URI) -> None:
    row = {
        "media_id": media_id,
        "uri": uri,
        "version": media_id,
        "bytes": 9,
        "seen_at": datetime(2026, 1, day, tzinfo=UTC),
    }
    store.add_media(pa.Table.from_pylist([row], schema=MEDIA))


def column(store: Store, sql: str) -> list[Any]:
    return query(store, sql).columns[0].to_pylist()


def versions(store: Store, *views: str) -> list[list[str]]:
    return [column(store, f"SELECT DISTINCT media_id FROM {view} ORDER BY ALL") for view in views]


def test_a_new_version_takes_the_place_of_the_old_one(store: Writer, results: Results) -> None:
    see(store, "old", 1)
    publish(store, results("old", uri=URI))
    see(store, "new", 2)
    publish(store, results("new", parts=1, uri=URI))
    assert versions(store, "files", "parts", "segments", "media") == [["new"]] * 4
    assert versions(store, "all_parts", "all_segments", "all_media") == [["new", "old"]] * 3
    assert one(store, "SELECT count(*) AS n FROM segments") == {"n": 3}


def test_a_new_version_that_waits_is_pending_and_the_old_text_is_not_shown_for_it(
    store: Writer, results: Results
) -> None:
    see(store, "old", 1)
    publish(store, results("old", uri=URI))
    see(store, "new", 2)
    assert one(store, "SELECT media_id, status, uri FROM files") == {"media_id": "new", "status": "pending", "uri": URI}
    assert query(store, "FROM segments").num_rows == query(store, "FROM coverage").num_rows == 0
    assert query(store, "FROM all_segments").num_rows == 6


def test_a_version_that_comes_back_is_shown_again(store: Writer, results: Results) -> None:
    for day, name in enumerate(("first", "second", "first"), start=1):
        see(store, name, day)
    publish(store, results("first", uri=URI), results("second", uri=URI))
    assert versions(store, "files", "parts") == [["first"]] * 2
    assert one(store, "SELECT media_id, seen_at FROM media")["seen_at"].day == 3
    assert query(store, "FROM all_media").num_rows == 2


def test_a_failure_of_a_version_that_is_gone_is_none(store: Writer, results: Results) -> None:
    see(store, "old", 1)
    publish(store, results("old", parts=1, uri=URI, status="failed", error="It has changed.", segment_rows=None))
    assert query(store, "FROM failures").num_rows == 1
    see(store, "new", 2)
    publish(store, results("new", parts=1, uri=URI))
    assert query(store, "FROM failures").num_rows == 0


def test_a_copy_is_shown_whatever_becomes_of_its_owner(store: Writer, results: Results) -> None:
    see(store, "owner", 1)
    see(store, "copy", 1, uri="s3://archive/copy.mp3")
    copy = results("copy", parts=1, uri="s3://archive/copy.mp3", same_as="owner", status="same", segment_rows=None)
    publish(store, results("owner", parts=1, uri=URI), copy)
    see(store, "changed", 2)
    assert column(store, "SELECT DISTINCT uri FROM segments") == ["s3://archive/copy.mp3"]
    assert column(store, "SELECT uri FROM files WHERE status = 'pending'") == [URI]
