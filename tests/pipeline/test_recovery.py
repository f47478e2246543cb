"""Every kill point of the protocol, and what the next writer makes of it, on local disk and on a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from pipeline.announcements import FOLDER, Announcements
from pipeline.recovery import recover
from pipeline.sink import parquet_bytes, prepare, segment_rows, shard_name
from pipeline.store import Store
from pipeline.writer import Writer
from tests.tables import rows_in, shown
from tests.writers import WriterAt

Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def _commit_segments_only(store: Store, shard: dict[str, Any]) -> None:
    """A committer that is killed between its two commits."""

    class Killed(Exception):
        pass

    def killed(name: str, actions: list[Any]) -> None:
        if name == "parts":
            raise Killed
        Writer.add(store, name, actions)

    store.add = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        store.publish([shard])
    del store.add  # type: ignore[method-assign]


def test_killed_after_the_segments_object_nothing_is_seen_of_it(
    destination: str, results: Results, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    spoken = parquet_bytes(segment_rows(results("a")))
    store.objects.create(f"segments/data/{GENERATION}/{shard_name(results('a'), spoken)}.parquet", spoken)
    assert recover(store) == 0
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (0, 0)
    store.publish([prepare(store.objects, results("a"))])
    assert shown(store) == (2, 6)


def test_killed_after_both_objects_recovery_publishes(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    prepare(store.objects, results("a"))
    prepare(store.objects, results("b", segment_rows=None, status="failed"))
    assert shown(store) == (0, 0)
    assert recover(store) == 2
    assert shown(store) == (4, 6)
    assert recover(store) == 0
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (4, 6)


def test_what_was_announced_to_a_writer_that_is_gone_is_published_and_forgotten(
    destination: str, results: Results, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    Announcements(store.objects, f"{FOLDER}/00000001/0000-1").put([prepare(store.objects, results("a"))])
    assert recover(store) == 1
    assert list(store.objects.list(FOLDER)) == []


def test_killed_between_the_commits_rows_stay_hidden_till_recovered(
    destination: str, results: Results, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    _commit_segments_only(store, prepare(store.objects, results("a")))
    assert rows_in(store, "segments") == 6
    assert shown(store) == (0, 0)
    assert recover(store) == 1
    assert shown(store) == (2, 6)
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (2, 6)


def test_recovery_leaves_published_shards_alone(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    store.publish([prepare(store.objects, results("a"))])
    before = store.objects.list()
    assert recover(store) == 0
    assert store.objects.list() == before


@pytest.mark.parametrize("half_committed", [False, True])
def test_a_prepared_shard_that_overlaps_the_ledger_stays_unseen(
    destination: str, results: Results, half_committed: bool, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    overlapping = prepare(store.objects, pa.concat_tables([results("a"), results("b")]))
    if half_committed:
        _commit_segments_only(store, overlapping)
    store.publish([prepare(store.objects, results("a"))])
    assert shown(store) == (2, 6)
    assert recover(store) == 0
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (2, 6)
    assert shown(store) == (2, 6)
    assert store.objects.exists(f"parts/{overlapping['parts_path']}"), "a slow worker may still look for it"


def test_of_twins_with_other_text_one_is_published(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    one, other = (prepare(store.objects, results("a", segments=count)) for count in (3, 4))
    assert one["parts_path"] != other["parts_path"]
    _commit_segments_only(store, other)
    assert recover(store) == 1
    assert shown(store) == (2, 8), "the one that was half committed"
    assert (rows_in(store, "parts"), rows_in(store, "segments")) == (2, 8)


def test_what_comes_late_and_is_cut_otherwise_stays_hidden(
    destination: str, results: Results, writer_at: WriterAt
) -> None:
    """A worker of a killed run may store after the next run has recovered, and has cut the file anew."""
    store = writer_at(destination)
    store.publish([prepare(store.objects, results("a"))])
    finer = results("a", parts=4, part_seconds=30.0, start=60.0, end=90.0).slice(2)
    prepare(store.objects, finer)
    assert recover(store) == 0
    assert shown(store) == (2, 6) == (rows_in(store, "parts"), rows_in(store, "segments"))


def test_of_two_cuts_that_nobody_published_one_is(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    prepare(store.objects, results("a").slice(0, 1))
    prepare(store.objects, results("a", parts=4, part_seconds=30.0).slice(1))
    assert recover(store) == 1
    assert shown(store) in ((1, 3), (3, 9))


def test_a_copy_that_goes_its_own_way_is_cut_as_its_run_says(
    destination: str, results: Results, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    copy = results("b", parts=1, part_seconds=57.0, same_as="a", status="same", segment_rows=None)
    store.publish([prepare(store.objects, copy)])
    prepare(store.objects, results("b", attempts=2))
    assert recover(store) == 1
    assert rows_in(store, "parts") == 1 + 2
