"""Merging, dropping and clearing away: the rows stay as they are, whenever it is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.errors import LeaseError, UsageError
from pipeline import upkeep
from pipeline.catalog import query
from pipeline.objects import ObjectStore
from pipeline.recovery import recover
from pipeline.sink import prepare
from pipeline.store import Store, snapshot
from pipeline.upkeep import FOLDER, compact, drop, stored, vacuum
from pipeline.writer import Writer
from tests.tables import rows_in, shown
from tests.writers import WriterAt

Results = Callable[..., pa.Table]
GENERATION, OTHER = "0123456789abcdef", "f" * 16
LATER = 25 * 3600.0
EVERYTHING = (
    "FROM segments ORDER BY ALL",
    "FROM all_segments ORDER BY ALL",
    "SELECT * EXCLUDE committed_at FROM parts ORDER BY ALL",
    "FROM files ORDER BY ALL",
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing but the operations before it has happened."""


def _filled(writer: Writer, results: Results, shards: int = 5) -> Writer:
    batches = [results(str(number)) for number in range(shards)]
    silent = results("silent", segment_rows=None)
    writer.publish([prepare(writer.objects, batch) for batch in (*batches, silent)])
    return writer


def _everything(store: Store) -> list[Any]:
    """Every row of every view, and of the plain tables."""
    views = [query(store, sql).to_pylist() for sql in EVERYTHING]
    return [*views, rows_in(store, "segments"), rows_in(store, "parts")]


def _killed_at(number: int, writer: Writer, patch: pytest.MonkeyPatch) -> None:
    """Let the operation of this number, counted from 0, of `writer` be its last."""
    left = iter(range(number))

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return method(*arguments, **options)

        return counted

    patch.setattr(ObjectStore, "create", counting(ObjectStore.create))
    patch.setattr(Writer, "commit", counting(Writer.commit))


def test_merged_shards_hold_the_same_rows(destination: str, results: Results, writer_at: WriterAt) -> None:
    writer = _filled(writer_at(destination), results)
    before = _everything(writer)
    assert compact(writer) == 5
    assert _everything(writer) == before
    assert (len(snapshot(writer.table("parts"))), len(snapshot(writer.table("segments")))) == (1, 1)
    assert compact(writer) == 0, "what is merged is not merged again"


def test_shards_of_two_generations_are_merged_apart(tmp_path: Path, results: Results, writer_at: WriterAt) -> None:
    writer = _filled(writer_at(str(tmp_path)), results, shards=2)
    writer.publish([prepare(writer.objects, results(name, generation=OTHER)) for name in ("a", "b")])
    before = _everything(writer)
    assert compact(writer) == 3
    assert _everything(writer) == before
    assert sorted(path.split("/")[1] for path in snapshot(writer.table("parts"))) == [GENERATION, OTHER]


def test_two_attempts_at_a_part_are_never_merged(tmp_path: Path, results: Results, writer_at: WriterAt) -> None:
    writer = _filled(writer_at(str(tmp_path)), results, shards=1)
    writer.publish([prepare(writer.objects, results("0", parts=1, attempts=2, segments=4))])
    before = _everything(writer)
    assert compact(writer) == 1, "two of three shards"
    assert _everything(writer) == before
    assert compact(writer) == 0


def test_large_shards_stay(tmp_path: Path, results: Results, writer_at: WriterAt, monkeypatch: Any) -> None:
    writer = _filled(writer_at(str(tmp_path)), results)
    monkeypatch.setattr(upkeep, "SMALL_BYTES", 1)
    assert compact(writer) == 0


def test_a_merge_fills_shards_up_to_a_size(
    tmp_path: Path, results: Results, writer_at: WriterAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _filled(writer_at(str(tmp_path)), results)
    before = _everything(writer)
    sizes = [
        size + snapshot(writer.table("segments")).get(path, 0) for path, size in snapshot(writer.table("parts")).items()
    ]
    monkeypatch.setattr(upkeep, "MERGED_BYTES", 2 * max(sizes))
    assert compact(writer) >= 3
    assert len(snapshot(writer.table("parts"))) >= 2
    assert _everything(writer) == before


@pytest.mark.parametrize("number", range(8))
def test_a_merge_that_is_killed_is_finished_or_never_was(
    tmp_path: Path, results: Results, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer.open(str(tmp_path)) as writer:
        before = _everything(_filled(writer, results, shards=3))
        with monkeypatch.context() as patch:
            _killed_at(number, writer, patch)
            try:
                compact(writer)
                ended = True
            except Killed:
                ended = False
        assert ended == (number >= 7), "two objects, the record, three commits and the end of the record"
        assert _everything(writer)[:4] == before[:4], "the views show every row once at any moment"
    with Writer.open(str(tmp_path)) as writer:
        assert recover(writer) == 0
        assert _everything(writer) == before


@pytest.mark.parametrize("number", range(5))
def test_a_generation_is_dropped_however_often_it_is_killed(
    tmp_path: Path, results: Results, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer.open(str(tmp_path)) as writer:
        _filled(writer, results, shards=2)
        writer.publish([prepare(writer.objects, results("other", generation=OTHER))])
        with monkeypatch.context() as patch:
            _killed_at(number, writer, patch)
            try:
                drop(writer, GENERATION)
                ended = True
            except Killed:
                ended = False
        assert ended == (number >= 4)
    with Writer.open(str(tmp_path)) as writer:
        assert recover(writer) == 0, "what was dropped does not come back"
        begun = number > 0
        assert shown(writer) == ((2, 6) if begun else (8, 18))
        assert (rows_in(writer, "parts"), rows_in(writer, "segments")) == shown(writer)


def test_what_was_dropped_can_be_transcribed_again(tmp_path: Path, results: Results) -> None:
    with Writer.open(str(tmp_path)) as writer:
        _filled(writer, results, shards=1)
        assert drop(writer, GENERATION) == 2
        assert shown(writer) == (0, 0)
        _filled(writer, results, shards=1)
        before = _everything(writer)
    with Writer.open(str(tmp_path)) as writer:
        assert recover(writer) == 0
        assert _everything(writer) == before
        assert shown(writer) == (4, 3 * 2)


def test_what_was_never_published_is_dropped_as_well(
    tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was kept back because its rows were there; once these are gone, nothing else would."""
    with Writer.open(str(tmp_path)) as writer:
        _filled(writer, results, shards=2)
        prepare(writer.objects, results("0", segments=4))  # a twin with another text
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _killed_at(2, writer, patch)  # both objects of the merged shard are there, the record is not
            compact(writer)
        assert drop(writer, GENERATION) == 3
    with Writer.open(str(tmp_path)) as writer:
        assert recover(writer) == 0
        assert shown(writer) == (0, 0) == (rows_in(writer, "parts"), rows_in(writer, "segments"))


def test_what_was_dropped_and_deleted_can_be_merged_again(
    tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer.open(str(tmp_path)) as writer:
        _filled(writer, results, shards=2)
        compact(writer)
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "clock", lambda objects, now=ObjectStore.clock: now(objects) + LATER)
            vacuum(writer)
        drop(writer, GENERATION)
        before = _everything(_filled(writer, results, shards=2))
        assert compact(writer) == 2
        assert _everything(writer) == before


@pytest.mark.parametrize("meanwhile", range(5))
def test_a_query_that_meets_a_merge_sees_every_row(
    tmp_path: Path, results: Results, writer_at: WriterAt, meanwhile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged between any two of the looks that a connection takes at the tables."""
    writer = _filled(writer_at(str(tmp_path)), results, shards=2)
    before = shown(writer)
    looks = iter(range(100))

    def look(store: Store, name: str, snapshot: Callable[..., dict[str, int]] = Store.snapshot) -> dict[str, int]:
        if next(looks) == meanwhile:
            assert compact(writer) == 2
        return snapshot(store, name)

    monkeypatch.setattr(Store, "snapshot", look)
    assert shown(writer) == before
    assert next(looks) > meanwhile


@pytest.mark.parametrize("sleeper", [compact, lambda writer: drop(writer, GENERATION)], ids=["compact", "drop"])
@pytest.mark.parametrize("meanwhile", ["compacted", "dropped", "dropped and transcribed again"])
def test_what_a_sleeper_writes_down_too_late_is_not_obeyed(
    tmp_path: Path, results: Results, sleeper: Callable[[Writer], int], meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It falls asleep in front of its record, and wakes up when another has taken over."""
    asleep = _filled(Writer.open(str(tmp_path)), results, shards=2)
    asleep.close()  # no heartbeat, and no other sign, will tell it
    monkeypatch.setattr(asleep.lease, "check", lambda now=False: None)
    lasting: list[Any] = []

    def nap(writer: Writer, old: list[str], merged: str | None, retire: Callable[..., None] = upkeep._retire) -> None:
        with Writer.open(str(tmp_path)) as other:
            monkeypatch.setattr(upkeep, "_retire", retire)
            compact(other) if meanwhile == "compacted" else drop(other, GENERATION)
            if meanwhile.endswith("again"):
                _filled(other, results, shards=2)
            lasting.append(_everything(other))
        time.sleep(0.01)  # the clock of a file system goes in ticks
        retire(writer, old, merged)

    monkeypatch.setattr(upkeep, "_retire", nap)
    with suppress(LeaseError):  # there may be nothing left for it to do
        sleeper(asleep)
    with Writer.open(str(tmp_path)) as writer:
        assert recover(writer) == 0
        assert [_everything(writer)] == lasting
        records = writer.objects.list(FOLDER)
        assert len(records) == 4 and sum(name.endswith(".done") for name in records) == 2, "each is ended"


def test_a_vacuum_that_slept_deletes_nothing(tmp_path: Path, results: Results) -> None:
    """What it looked at may be in the tables by now."""
    asleep = Writer.open(str(tmp_path))
    path = prepare(asleep.objects, results("a"))["parts_path"]
    for data in tmp_path.glob("*/data/*/*.parquet"):
        os.utime(data, (0, 0))
    asleep.close()
    with Writer.open(str(tmp_path)) as writer:
        with pytest.raises(LeaseError):
            vacuum(asleep)
        assert path in stored(writer.objects, "parts")
        assert recover(writer) == 1 and shown(writer) == (2, 6)


def test_an_unknown_generation_is_refused_and_the_known_are_named(
    tmp_path: Path, results: Results, writer_at: WriterAt
) -> None:
    writer = _filled(writer_at(str(tmp_path)), results, shards=1)
    with pytest.raises(UsageError, match=f"^There is no generation 'x': the tables hold {GENERATION}.$"):
        drop(writer, "x")


def test_vacuum_deletes_what_no_table_has_once_it_is_old(
    destination: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer.open(destination) as writer:
        before = _everything(_filled(writer, results, shards=3))
        compact(writer)
        writer.objects.create(f"segments/data/{GENERATION}/half.parquet", b"of a killed worker")
        assert vacuum(writer).objects == 0, "all of it is young"
        monkeypatch.setattr(ObjectStore, "clock", lambda objects, now=ObjectStore.clock: now(objects) + LATER)
        looked = vacuum(writer, dry_run=True)
        assert (looked.objects, looked.bytes > 0) == (4 + 3 + 1, True)
        assert vacuum(writer) == looked
        assert vacuum(writer).objects == 0
        assert _everything(writer) == before
        assert {*stored(writer.objects, "parts")} == {*snapshot(writer.table("parts"))}
        assert writer.objects.list(FOLDER) == {}, "of the retired shards nothing is left"
    with Writer.open(destination) as writer:
        assert recover(writer) == 0
        assert _everything(writer) == before


def test_what_was_merged_just_now_is_kept_however_old_it_is(
    tmp_path: Path, results: Results, writer_at: WriterAt
) -> None:
    """Somebody may still read the version of the tables that has it."""
    writer = _filled(writer_at(str(tmp_path)), results, shards=2)
    for path in tmp_path.glob("*/data/*/*.parquet"):
        os.utime(path, (0, 0))
    compact(writer)
    assert vacuum(writer).objects == 0
    for path in tmp_path.glob(f"{FOLDER}/*.done"):
        os.utime(path, (0, 0))
    assert vacuum(writer).objects == 3 + 2


def test_too_short_a_grace_is_refused(tmp_path: Path, writer_at: WriterAt) -> None:
    with pytest.raises(UsageError, match=r"^grace_hours is 0.5: give at least 1, for those who read now\.$"):
        vacuum(writer_at(str(tmp_path)), grace_hours=0.5)
