"""The line from a slice to its publisher."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import DestinationError
from pipeline.announcements import FOLDER, Announcements, forget
from pipeline.objects import ObjectStore

SHARDS = [{"shard_id": f"{number}", "segments_path": None, "audio_seconds": 1.5} for number in range(4)]


def test_what_is_put_is_taken_once_and_in_its_order(destination: str) -> None:
    objects = ObjectStore(destination)
    slice_end, publisher_end = (Announcements(objects, f"{FOLDER}/00000001/0000-1") for _ in range(2))
    assert publisher_end.take() == []
    slice_end.put(SHARDS[:1])
    slice_end.put(SHARDS[1:3])
    assert publisher_end.take() == SHARDS[:3]
    assert publisher_end.take() == []
    slice_end.put(SHARDS[3:])
    assert publisher_end.take() == SHARDS[3:]


def test_slices_and_attempts_have_lines_of_their_own(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path))
    Announcements(objects, "submissions/00000001/0000-1").put(SHARDS)
    assert Announcements(objects, "submissions/00000001/0000-2").take() == []
    assert Announcements(objects, "submissions/00000002/0000-1").take() == []


def test_a_group_that_was_told_can_be_told_again_and_is_no_other(tmp_path: Path) -> None:
    """The answer to a put may get lost, and the put be repeated."""
    objects = ObjectStore(str(tmp_path))
    for _ in range(2):
        Announcements(objects, "submissions/1/0000-1").put(SHARDS)
    assert Announcements(objects, "submissions/1/0000-1").take() == SHARDS


def test_what_is_forgotten_is_gone_and_nothing_else(destination: str) -> None:
    objects = ObjectStore(destination)
    Announcements(objects, f"{FOLDER}/00000001/0000-1").put(SHARDS)
    objects.create("parts/data/x", b"rows")
    forget(objects)
    assert list(objects.list()) == ["parts/data/x"]


def test_a_storage_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where a folder should be")
    with pytest.raises(DestinationError, match="cannot be used to write submissions/1/0000-1/00000000.json"):
        Announcements(ObjectStore(str(tmp_path)), f"{FOLDER}/1/0000-1").put(SHARDS)
