"""`earwitness compact`, `drop` and `vacuum`: what they say, and to whom they say no."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.objects import ObjectStore
from pipeline.store import Store
from pipeline.writer import Writer
from tests.jobs.conftest import Done
from tests.tables import rows_in, shown

Call = Callable[..., Done]
GENERATION = "0123456789abcdef"


@pytest.fixture
def dest(store: Writer) -> str:
    """Tables of two shards that nobody writes to."""
    store.close()
    return store.objects.url


def test_compact_says_how_many_shards_there_are_fewer(dest: str, earwitness: Call) -> None:
    before = shown(Store.open(dest))
    assert earwitness("compact", dest) == Done(0, "1 shard fewer.\n", "")
    assert earwitness("compact", dest) == Done(0, "Nothing to merge: no two shards are small.\n", "")
    assert shown(Store.open(dest)) == before == (4, 12)


def test_drop_says_how_to_get_rid_of_it_for_good(dest: str, earwitness: Call) -> None:
    done = earwitness("drop", dest, GENERATION)
    assert (done.code, done.err) == (0, "")
    assert (
        done.out.split()
        == f"2 shards of {GENERATION} dropped; `earwitness vacuum {dest}` deletes them for good.".split()
    )
    assert (rows_in(Store.open(dest), "parts"), rows_in(Store.open(dest), "segments")) == (0, 0)
    assert earwitness("drop", dest, "of-another-model").code == 2


def test_vacuum_says_what_it_deletes_and_keeps_what_is_young(
    dest: str, earwitness: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    earwitness("drop", dest, GENERATION)
    assert earwitness("vacuum", dest) == Done(0, "0 objects, 0 bytes, deleted.\n", "")
    monkeypatch.setattr(ObjectStore, "clock", lambda objects, now=ObjectStore.clock: now(objects) + 25 * 3600)
    looked = earwitness("vacuum", dest, "--dry-run")
    assert (
        looked.code == 0 and looked.out.startswith("4 objects, ") and looked.out.endswith(" bytes, would be deleted.\n")
    )
    assert earwitness("vacuum", dest).out == looked.out.replace("would be deleted", "deleted")
    assert Store.open(dest).objects.list("parts/data") == {}


def test_too_short_a_grace_is_a_wrong_use(dest: str, earwitness: Call) -> None:
    done = earwitness("vacuum", dest, "--grace-hours", "0.1")
    assert (done.code, done.out) == (2, "")
    assert done.err == "earwitness: grace_hours is 0.1: give at least 1, for those who read now.\n"


@pytest.mark.parametrize("command", [("compact",), ("drop", GENERATION), ("vacuum",)])
def test_while_a_run_writes_they_are_refused(store: Writer, earwitness: Call, command: tuple[str, ...]) -> None:
    name, *rest = command
    done = earwitness(name, store.objects.url, *rest)
    assert (done.code, done.out) == (6, "")
    waiting, refused = done.err.splitlines()
    assert waiting.startswith("Waiting up to ") and waiting.endswith(" still writes there.")
    assert f" is being written by process {store.lease.holder.pid} on " in refused


def test_where_nothing_is_nothing_is_made(tmp_path: Path, earwitness: Call) -> None:
    done = earwitness("compact", str(tmp_path / "nowhere"))
    assert done.code == 4 and done.err.endswith(
        f"run `earwitness transcribe SOURCE --to {tmp_path / 'nowhere'}` first.\n"
    )
    assert list(tmp_path.iterdir()) == []
