"""Suites: the same bytes every time, what everybody is told, and folders that do not serve."""

from __future__ import annotations

import wave
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.bench import suites
from jobs.bench.recordings import read_pcm
from jobs.bench.suites import make_suite
from jobs.samples import fetch_samples
from model.errors import SourceError

Say = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, say: Say, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight English clips of 2 s, one too short, one French; long files last 9 seconds."""
    for number in range(8):
        say(tmp_path / "clips" / "en" / f"{number}.wav", f"number {number}", pitch=300 + 40 * number)
    say(tmp_path / "clips" / "en" / "short.wav", "short", seconds=1)
    say(tmp_path / "clips" / "fr" / "a.wav", "bonjour")
    monkeypatch.setattr(suites, "FILE_SECONDS", 9.0)
    monkeypatch.setattr(suites, "WARM_UP_SECONDS", 4.0)
    return tmp_path / "clips"


def test_a_long_file_is_made_of_clips_of_one_language(folder: Path) -> None:
    suite = make_suite("long", folder, None)
    (long,) = suite.recordings
    words = long.text.split()
    assert set(words[::2]) == {"number"} and len(set(words[1::2])) == len(words) // 2  # no clip twice
    gaps = long.seconds - 2 * len(words) // 2
    assert 0.3 * len(words) / 2 <= gaps <= 0.8 * len(words) / 2
    assert 9 <= long.seconds < 9 + 2.8
    assert (suite.language, long.language, long.spoken) == ("en", "en", "en")
    assert [4 <= warm.seconds < 4 + 2.8 for warm in suite.warm_up] == [True]


def test_the_words_stand_in_the_order_in_which_they_are_heard(folder: Path) -> None:
    (long,) = make_suite("long", folder, None).recordings
    first = int(long.text.split()[1])
    loud = read_pcm(long.path)[:16_000]
    crossings = np.count_nonzero(np.diff(np.signbit(loud)))  # twice the pitch, in one second
    assert crossings / 2 == pytest.approx(300 + 40 * first, abs=3)


def test_an_hour_is_six_files_in_different_orders(folder: Path) -> None:
    suite = make_suite("hour", folder, None)
    assert len(suite.recordings) == 6 and len({recording.text for recording in suite.recordings}) == 6
    assert suite.seconds == pytest.approx(sum(_length(recording.path) for recording in suite.recordings))


def test_long_files_are_made_once_and_always_the_same(folder: Path, cache: Path) -> None:
    (made,) = make_suite("long", folder, None).recordings
    before = made.path.read_bytes(), made.path.stat().st_mtime_ns
    (found,) = make_suite("long", folder, None).recordings
    assert (found.path.read_bytes(), found.path.stat().st_mtime_ns) == before
    found.path.parent.rename(cache / "away")
    (again,) = make_suite("long", folder, None).recordings
    assert again.path.read_bytes() == before[0]


def test_other_words_are_another_suite(folder: Path) -> None:
    (before,) = make_suite("long", folder, None).recordings
    (folder / "en" / "0.txt").write_text("nothing")
    (after,) = make_suite("long", folder, None).recordings
    assert after.path != before.path and "nothing" in after.text


def test_another_language_is_told_to_all(folder: Path) -> None:
    (long,) = make_suite("long", folder, "fr").recordings
    assert set(long.text.split()) == {"bonjour"} and long.language == "fr"


def test_clips_are_mixed_and_their_language_is_told_to_nobody(folder: Path) -> None:
    suite = make_suite("clips", folder, None)
    assert {recording.language for recording in suite.recordings} == {None}
    spoken = Counter(recording.spoken for recording in suite.recordings)
    assert spoken["en"] >= 8 and spoken["fr"] >= 1 and set(spoken) >= {"hi", "ja", "pl"}
    assert all(1.5 <= recording.seconds <= 25 for recording in suite.recordings)
    names = [recording.name for recording in suite.recordings]
    assert names != sorted(names) and names == [r.name for r in make_suite("clips", folder, None).recordings]


def test_no_language_is_left_out_where_there_are_more_clips_than_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "CLIPS", 12)
    suite = make_suite("clips", folder, None)
    spoken = Counter(recording.spoken for recording in suite.recordings)
    assert spoken.total() == 12 and spoken["en"] <= 3
    assert set(spoken) == {path.name for path in fetch_samples().iterdir() if path.is_dir()}


def test_a_folder_as_it_is(folder: Path) -> None:
    suite = make_suite("folder", folder, None)
    assert len(suite.recordings) == 10 and suite.language is None
    assert {r.spoken for r in make_suite("folder", folder / "en", "en").recordings} == {"en"}
    assert [warm.name for warm in suite.warm_up] == ["en/0", "en/1"]  # four seconds


@pytest.mark.parametrize("name", ["long", "hour"])
def test_clips_of_no_use_are_one_sentence(folder: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"lasts 1\.5 to 25 seconds: give a folder of such clips"):
        make_suite(name, folder, "de")


def _length(path: Path) -> float:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return file.getnframes() / 16_000
