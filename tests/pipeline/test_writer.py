"""Publishing, and who may: one writer, stopped by a fence when it is no longer the one."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from model.errors import DestinationError, LeaseError
from pipeline.config import Config, ReadOptions
from pipeline.lease import Holder
from pipeline.records import MEDIA
from pipeline.recovery import recover
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import EPOCH, Writer
from tests.tables import rows_in, shown
from tests.writers import WriterAt

Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def test_published_rows_are_there_once_however_often(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    shards = [prepare(store.objects, results(name)) for name in ("a", "b")]
    shards.append(prepare(store.objects, results("c", segment_rows=None, status="failed")))
    store.publish(shards[:1])
    for _ in range(2):
        store.publish(shards)
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (6, 12)
    assert shown(store) == (6, 12)
    assert store.table("parts").version() == 3, "the fence and two commits: nothing new is no commit"


def test_a_lost_commit_answer_does_not_add_twice(
    destination: str, results: Results, monkeypatch: pytest.MonkeyPatch, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    commit = DeltaTable.create_write_transaction
    lost: list[int] = []

    def commit_and_lose_the_answer(table: DeltaTable, *args: Any, **options: Any) -> None:
        commit(table, *args, **options)
        lost.append(table.version())
        raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit_and_lose_the_answer)
    store.publish([prepare(store.objects, results("a"))])
    assert len(lost) == 2, "one per table, and no second try"
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (2, 6)


def test_readers_never_see_a_part_without_its_segments(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    shards = [prepare(store.objects, results(str(number), parts=1)) for number in range(6)]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.publish([shard]) for shard in shards])
        reader = Store.open(destination)
        while not writing.done():
            parts, segments = shown(reader)
            assert segments == 3 * parts
        writing.result()
    assert shown(reader) == (6, 18)


def _media(*names: str, seen_at: datetime) -> pa.Table:
    rows = [{"media_id": n, "uri": f"s3://archive/{n}", "version": "1", "bytes": 5, "seen_at": seen_at} for n in names]
    return pa.Table.from_pylist(rows, schema=MEDIA)


def test_media_are_added_once(destination: str, monkeypatch: pytest.MonkeyPatch, writer_at: WriterAt) -> None:
    """Also where they are more than one object holds; and none is no commit."""
    monkeypatch.setattr("pipeline.writer.MEDIA_ROWS", 2)
    store = writer_at(destination)
    media = _media("b", "a", "c", seen_at=datetime.now(UTC))
    for _ in range(2):
        store.add_media(media)
    assert sorted(store.table("media").to_pyarrow_table()["media_id"].to_pylist()) == ["a", "b", "c"]
    assert len(store.snapshot("media")) == 2
    version = store.table("media").version()
    store.add_media(media.slice(0, 0))
    assert store.table("media").version() == version


def test_a_version_that_comes_back_is_a_row_again(destination: str, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    for day in (1, 2):
        store.add_media(_media("a", seen_at=datetime(2025, 1, day, tzinfo=UTC)))
    assert rows_in(store, "media") == 2


def test_media_killed_before_the_commit_are_added_by_the_next_run(
    destination: str, monkeypatch: pytest.MonkeyPatch, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Writer, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        store.add_media(_media("a", seen_at=datetime(2025, 1, 1, tzinfo=UTC)))
    assert rows_in(store, "media") == 0
    store.add_media(_media("a", seen_at=datetime(2025, 2, 2, tzinfo=UTC)))
    assert rows_in(store, "media") == 1


def test_every_run_keeps_its_config(destination: str, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    config = Config(model="tiny", read=ReadOptions(part_seconds=float("inf")))
    name = store.add_run(config, GENERATION)
    (run,) = store.runs()
    assert run["run"] == name and run["generation"] == GENERATION
    assert run["config"]["model"] == "tiny"
    assert run["config"]["read"]["part_seconds"] == "inf"
    assert json.loads(store.objects.read(f"runs/{name}.json")) == run


def test_a_crash_after_the_marker_is_no_obstacle(destination: str) -> None:
    with Writer.open(destination) as store:
        for path in store.objects.list("parts"):
            store.objects.delete(path)
    with pytest.raises(DestinationError, match="lacks its table parts"):
        Store.open(destination).snapshot("parts")
    with Writer.open(destination) as store:
        assert store.snapshot("parts") == {}


def test_results_on_another_disk_are_not_published(tmp_path: Path, results: Results, writer_at: WriterAt) -> None:
    here, elsewhere = (writer_at(str(tmp_path / name / "archive")) for name in ("here", "elsewhere"))
    shard = prepare(elsewhere.objects, results("a"))
    with pytest.raises(DestinationError, match="give a folder that all machines share, or s3://BUCKET/PREFIX.$"):
        here.publish([shard])
    assert rows_in(here, "parts") == rows_in(here, "segments") == 0


def test_the_second_writer_is_told_who_the_first_is(destination: str, writer_at: WriterAt) -> None:
    first = writer_at(destination)
    with pytest.raises(LeaseError, match=f"is being written by process {first.lease.holder.pid} on "):
        Writer.open(destination)


def test_of_two_first_writers_at_once_one_wins(destination: str) -> None:
    def open_and_close(_: int) -> int:
        try:
            with Writer.open(destination, lease_seconds=3.0) as writer:
                epoch = writer.lease.epoch
                assert writer.table("parts").transaction_version(EPOCH) == epoch
                return epoch
        except LeaseError:
            return 0

    with ThreadPoolExecutor(4) as pool:
        epochs = [epoch for epoch in pool.map(open_and_close, range(4)) if epoch]
    assert epochs and sorted(epochs) == sorted(set(epochs))
    assert {Store.open(destination).table("parts").to_pyarrow_table().num_rows} == {0}


def test_a_writer_that_slept_through_its_lease_commits_nothing(
    destination: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment to fall asleep: the lease is checked, the table is loaded, and then the next writer comes."""
    sleeper = Writer.open(destination)
    shard = prepare(sleeper.objects, results("a"))
    commit = DeltaTable.create_write_transaction
    later: list[Writer] = []

    def sleep_before_the_commit(table: DeltaTable, *args: Any, **options: Any) -> None:
        monkeypatch.undo()
        later.append(_take_over(sleeper))
        commit(table, *args, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", sleep_before_the_commit)
    with pytest.raises(LeaseError, match="has been taken over"):
        sleeper.publish([shard])
    sleeper.close()
    with later[0] as writer:
        assert (rows_in(writer, "parts"), rows_in(writer, "segments")) == (0, 0)
        assert recover(writer) == 1
        assert shown(writer) == (2, 6)


def _take_over(writer: Writer) -> Writer:
    """The next writer, while the one before neither beats nor knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "is_gone", True)
        return Writer.open(writer.objects.url)


@pytest.mark.parametrize("answers", [0, 1])
def test_a_storage_that_goes_away_while_tables_are_made_is_one_sentence(
    tmp_path: Path, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked whether a table is there, before and after it could not be made."""
    left = iter([False] * answers)

    def ask(*place: Any) -> bool:
        if (answer := next(left, None)) is None:
            raise OSError("Generic S3 error\n \x1b[31m↳\x1b[0m Connection reset by peer")
        return answer

    def refuse(*place: Any, **options: Any) -> None:
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(DeltaTable, "is_deltatable", ask)
    monkeypatch.setattr(DeltaTable, "create", refuse)
    with pytest.raises(DestinationError, match=r"^The table segments of .* cannot be used: .*reset by peer\.$"):
        Writer.open(str(tmp_path))
