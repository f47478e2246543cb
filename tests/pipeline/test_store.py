"""Publishing and recovering, with every kill point of the protocol, on local disk and on a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from model.errors import DestinationError
from pipeline.catalog import query
from pipeline.config import Config, ReadOptions
from pipeline.objects import ObjectStore
from pipeline.records import MEDIA, PARTS, SEGMENTS
from pipeline.sink import parquet_bytes, prepare, segment_rows, shard_id
from pipeline.store import MARKER, Store, snapshot

Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def _rows(store: Store, name: str) -> int:
    """What any Delta reader counts."""
    return int(store.table(name).to_pyarrow_table().num_rows)


def _shown(store: Store) -> tuple[int, int]:
    """What users count: parts and segments of the views."""
    counts = query(store, "SELECT (SELECT count(*) FROM parts) AS p, (SELECT count(*) FROM segments) AS s")
    return counts["p"][0].as_py(), counts["s"][0].as_py()


def _commit_segments_only(store: Store, shard: dict[str, Any]) -> None:
    """A committer that is killed between its two commits."""

    class Killed(Exception):
        pass

    def killed(name: str, actions: list[Any]) -> None:
        if name == "parts":
            raise Killed
        Store._add(store, name, actions)

    store._add = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        store.publish([shard])
    del store._add  # type: ignore[method-assign]


def test_published_rows_are_there_once_however_often(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    shards = [prepare(store.objects, results(name)) for name in ("a", "b")]
    shards.append(prepare(store.objects, results("c", segment_rows=None, status="failed")))
    store.publish(shards[:1])
    for _ in range(2):
        store.publish(shards)
    Store.open(destination).publish(shards)
    assert (_rows(store, "parts"), _rows(store, "segments")) == (6, 12)
    assert _shown(store) == (6, 12)
    assert store.table("parts").version() == 2, "nothing new is no commit"


def test_killed_after_the_segments_object_recovery_deletes_it(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    path = f"segments/data/{GENERATION}/{shard_id(results('a'))}.parquet"
    store.objects.create(path, parquet_bytes(segment_rows(results("a"))))
    assert store.recover() == 0
    assert not store.objects.exists(path)
    store.publish([prepare(store.objects, results("a"))])
    assert _shown(store) == (2, 6)


def test_killed_after_both_objects_recovery_publishes(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    prepare(store.objects, results("a"))
    prepare(store.objects, results("b", segment_rows=None, status="failed"))
    assert _shown(store) == (0, 0)
    assert store.recover() == 2
    assert _shown(store) == (4, 6)
    assert store.recover() == 0
    assert (_rows(store, "parts"), _rows(store, "segments")) == (4, 6)


def test_killed_between_the_commits_rows_stay_hidden_and_are_recovered_once(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    _commit_segments_only(store, prepare(store.objects, results("a")))
    assert _rows(store, "segments") == 6
    assert _shown(store) == (0, 0)
    assert store.recover() == 1
    assert _shown(store) == (2, 6)
    assert (_rows(store, "parts"), _rows(store, "segments")) == (2, 6)


def test_recovery_leaves_published_shards_alone(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    store.publish([prepare(store.objects, results("a"))])
    before = store.objects.list()
    assert store.recover() == 0
    assert store.objects.list() == before


@pytest.mark.parametrize("half_committed", [False, True])
def test_a_prepared_shard_that_overlaps_the_ledger_is_dropped(
    destination: str, results: Results, half_committed: bool
) -> None:
    store = Store.open(destination, create=True)
    overlapping = prepare(store.objects, pa.concat_tables([results("a"), results("b")]))
    if half_committed:
        _commit_segments_only(store, overlapping)
    store.publish([prepare(store.objects, results("a"))])
    assert _shown(store) == (2, 6)
    assert store.recover() == 0
    assert (_rows(store, "parts"), _rows(store, "segments")) == (2, 6)
    assert _shown(store) == (2, 6)
    assert not store.objects.exists(f"parts/{overlapping['parts_path']}")


def test_a_lost_commit_answer_does_not_add_twice(
    destination: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(destination, create=True)
    commit = DeltaTable.create_write_transaction
    lost: list[int] = []

    def commit_and_lose_the_answer(table: DeltaTable, *args: Any, **options: Any) -> None:
        commit(table, *args, **options)
        lost.append(table.version())
        raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit_and_lose_the_answer)
    store.publish([prepare(store.objects, results("a"))])
    assert len(lost) == 2, "one per table, and no second try"
    assert (_rows(store, "parts"), _rows(store, "segments")) == (2, 6)


def test_two_committers_of_the_same_shards_add_them_once(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    shards = [prepare(store.objects, results(str(number))) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Store.open(destination).publish(shards), range(4)))
    assert (_rows(store, "parts"), _rows(store, "segments")) == (8, 24)


def test_readers_never_see_a_part_without_its_segments(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    shards = [prepare(store.objects, results(str(number), parts=1)) for number in range(6)]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.publish([shard]) for shard in shards])
        reader = Store.open(destination)
        while not writing.done():
            parts, segments = _shown(reader)
            assert segments == 3 * parts
        writing.result()
    assert _shown(reader) == (6, 18)


def test_other_programs_read_the_tables(destination: str, results: Results, s3: Any) -> None:
    store = Store.open(destination, create=True)
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


def test_plain_parquet_needs_nothing_of_ours(tmp_path: Path, results: Results) -> None:
    store = Store.open(str(tmp_path), create=True)
    store.publish([prepare(store.objects, results("a"))])
    assert pq.read_table(tmp_path / "segments" / "data")["text"].to_pylist()[0] == " part 0 segment 0"


def test_done_parts_show_the_latest_attempt_of_one_generation(destination: str, results: Results) -> None:
    store = Store.open(destination, create=True)
    assert store.done_parts(GENERATION).num_rows == 0
    failed = results("a", parts=1, status="failed", segment_rows=None)
    retried = results("a", parts=1, attempts=2)
    other = results("a", parts=3, generation="f" * 16)
    store.publish([prepare(store.objects, batch) for batch in (failed, other, retried)])
    assert store.done_parts(GENERATION).to_pylist() == [
        {"media_id": "a", "index": 0, "is_last": True, "status": "ok", "attempts": 2, "part_seconds": 60.0}
    ]
    assert sorted(store.done_parts("f" * 16)["index"].to_pylist()) == [0, 1, 2]


def _media(*names: str, seen_at: datetime) -> pa.Table:
    rows = [{"media_id": n, "uri": f"s3://archive/{n}", "version": "1", "bytes": 5, "seen_at": seen_at} for n in names]
    return pa.Table.from_pylist(rows, schema=MEDIA)


def test_media_are_added_once(destination: str) -> None:
    store = Store.open(destination, create=True)
    now = datetime.now(UTC)
    assert store.add_media(_media("a", "b", "a", seen_at=now)) == 2
    assert store.add_media(_media("b", "c", seen_at=now)) == 1
    assert store.add_media(_media("c", "a", seen_at=now)) == 0
    assert sorted(store.table("media").to_pyarrow_table()["media_id"].to_pylist()) == ["a", "b", "c"]


def test_media_killed_before_the_commit_are_added_by_the_next_run(
    destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(destination, create=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        store.add_media(_media("a", seen_at=datetime(2025, 1, 1, tzinfo=UTC)))
    assert _rows(store, "media") == 0
    assert store.add_media(_media("a", seen_at=datetime(2025, 2, 2, tzinfo=UTC))) == 1
    assert _rows(store, "media") == 1


def test_every_run_keeps_its_config(destination: str) -> None:
    store = Store.open(destination, create=True)
    config = Config(model="tiny", read=ReadOptions(part_seconds=float("inf")))
    name = store.add_run(config, GENERATION)
    (run,) = store.runs()
    assert run["run"] == name and run["generation"] == GENERATION
    assert run["config"]["model"] == "tiny"
    assert run["config"]["read"]["part_seconds"] == "inf"
    assert json.loads(store.objects.read(f"runs/{name}.json")) == run


def test_reading_before_anything_is_stored_says_what_to_run(destination: str) -> None:
    with pytest.raises(DestinationError, match="run `earwitness transcribe SOURCE --to"):
        Store.open(destination)
    assert Store.find(destination) is None
    assert ObjectStore(destination).list() == {}


def test_find_opens_what_is_there(destination: str) -> None:
    Store.open(destination, create=True)
    found = Store.find(destination)
    assert found is not None and found.done_parts(GENERATION).num_rows == 0


def test_a_place_with_other_files_is_left_alone(destination: str) -> None:
    objects = ObjectStore(destination)
    objects.create("thesis.tex", b"x")
    for create in (True, False):
        with pytest.raises(DestinationError, match="holds other files"):
            Store.open(destination, create=create)
    assert list(objects.list()) == ["thesis.tex"]


def test_a_crash_after_the_marker_is_no_obstacle(destination: str) -> None:
    Store.open(destination, create=True)
    objects = ObjectStore(destination)
    for path in objects.list("parts"):
        objects.delete(path)
    with pytest.raises(DestinationError, match="lacks its table parts"):
        Store.open(destination).done_parts(GENERATION)
    assert Store.open(destination, create=True).done_parts(GENERATION).num_rows == 0


@pytest.mark.parametrize(
    ("marker", "said"), [(b'{"format": 1}', "has format 1"), (b'{"format": 3}', "has format 3"), (b"[]", "is damaged")]
)
def test_a_marker_we_cannot_read_is_refused(destination: str, marker: bytes, said: str) -> None:
    ObjectStore(destination).create(MARKER, marker)
    with pytest.raises(DestinationError, match=said):
        Store.open(destination, create=True)


def test_two_first_runs_at_once_make_one_store(destination: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store.open(destination, create=True), range(4)))
    assert {store.table("parts").version() for store in stores} == {0}


def test_results_on_another_machines_disk_are_not_published(tmp_path: Path, results: Results) -> None:
    here, elsewhere = (Store.open(str(tmp_path / name / "archive"), create=True) for name in ("here", "elsewhere"))
    shard = prepare(elsewhere.objects, results("a"))
    with pytest.raises(DestinationError, match="give a folder that all machines share, or s3://BUCKET/PREFIX.$"):
        here.publish([shard])
    assert _rows(here, "parts") == _rows(here, "segments") == 0


def test_a_ledger_that_lost_an_object_says_so(tmp_path: Path, results: Results) -> None:
    store = Store.open(str(tmp_path / "archive"), create=True)
    shard = prepare(store.objects, results("a"))
    store.publish([shard])
    store.objects.delete(f"parts/{shard['parts_path']}")
    with pytest.raises(DestinationError):
        store.done_parts(shard["parts_path"].split("/")[1])


def test_the_latest_run_is_the_last_that_began(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "archive"), create=True)
    assert store.latest_run() is None
    store.objects.create("runs/20260101T000000Z-ffffffff.json", b'{"run": "first"}')
    store.objects.create("runs/20260102T000000Z-00000000.json", b'{"run": "second"}')
    assert store.latest_run() == {"run": "second"}
