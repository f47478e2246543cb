"""What the detector of speech decides while reading: where a part is cut, and what stands on its row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.samples import read_clip
from model.dimensions import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE
from pipeline.config import ReadOptions
from pipeline.cuts import PcmPart, best_cut, cut_parts
from pipeline.voice import FRAME_SAMPLES, PAD_SECONDS, Speech, Voice, speech_of
from tests.pipeline.reading import (
    FILE_SECONDS,
    describe,
    in_chunks,
    loud_with_pauses,
    manifest,
    names,
    noise,
    read,
    write_wav,
)


class Ear(Voice):
    """Takes for speech what is louder than so much: quick, and easy to predict."""

    def __init__(self, threshold: int = 300) -> None:
        self._threshold = threshold

    def probabilities(self, pcm: np.ndarray) -> np.ndarray:
        frames = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        return (np.abs(frames).max(axis=1) > self._threshold).astype(np.float32)


def with_murmur(pcm: np.ndarray, start: float, end: float) -> np.ndarray:
    """A pause that is not silent: somebody breathes, something hums."""
    pcm = pcm.copy()
    pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = 200
    return pcm


def test_the_longest_pause_of_speech_is_better_than_the_quietest_point() -> None:
    pcm = with_murmur(loud_with_pauses(100, (85.0, 85.4)), 93.0, 95.0)
    assert 85.0 < best_cut(pcm) / SAMPLE_RATE < 85.4
    assert 93.0 < best_cut(pcm, Ear().probabilities(pcm)) / SAMPLE_RATE < 95.0


def test_within_the_pause_it_is_cut_where_it_is_quietest() -> None:
    pcm = with_murmur(loud_with_pauses(100), 90.0, 96.0)
    pcm[94 * SAMPLE_RATE : 95 * SAMPLE_RATE] = 5
    assert 94.0 < best_cut(pcm, Ear().probabilities(pcm)) / SAMPLE_RATE < 95.0


def test_a_pause_before_the_search_zone_counts_from_there_on() -> None:
    pcm = with_murmur(loud_with_pauses(100), 50.0, 81.0)
    assert 80.0 <= best_cut(pcm, Ear().probabilities(pcm)) / SAMPLE_RATE < 81.0


@pytest.mark.parametrize("pcm", [np.full(100 * SAMPLE_RATE, 5000, np.int16), np.zeros(100 * SAMPLE_RATE, np.int16)])
def test_without_a_pause_or_without_speech_the_quietest_point_is_taken(pcm: np.ndarray) -> None:
    pcm[95 * SAMPLE_RATE : int(95.2 * SAMPLE_RATE)] //= 2
    assert best_cut(pcm, Ear().probabilities(pcm)) == best_cut(pcm)


@settings(max_examples=60, deadline=None)
@given(seconds=st.floats(1.0, 60.0), start=st.floats(0, 1), length=st.floats(0.35, 5.0))
def test_a_cut_lies_in_the_pause_on_a_whole_frame(seconds: float, start: float, length: float) -> None:
    samples = int(seconds * 100) * HOP_LENGTH
    zone = int(0.8 * samples) / SAMPLE_RATE
    start = zone + start * (samples / SAMPLE_RATE - zone)
    pcm = with_murmur(loud_with_pauses(samples / SAMPLE_RATE), start, start + length)
    cut = best_cut(pcm, Ear().probabilities(pcm))
    assert cut % HOP_LENGTH == 0 and 0 < cut <= samples
    if min(start + length, samples / SAMPLE_RATE) - start > 0.4:  # there are ten whole frames of 32 ms in it
        assert start <= cut / SAMPLE_RATE <= start + length


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.floats(0, 12),
    part_seconds=st.sampled_from([0.3, 1.7, 5.0, math.inf]),
    sizes=st.lists(st.integers(500, 60_000), min_size=1, max_size=4),
)
def test_what_is_heard_does_not_depend_on_chunks_either(seconds: float, part_seconds: float, sizes: list[int]) -> None:
    pcm = noise(seconds)
    found = list(cut_parts(in_chunks(pcm, sizes), part_seconds, Ear(3000)))
    assert described(found) == described(list(cut_parts([pcm], part_seconds, Ear(3000))))
    assert np.array_equal(np.concatenate([part.pcm for part in found] or [pcm[:0]]), pcm)
    for part in found:
        assert part.speech is not None and part.speech.seconds <= len(part.pcm) / SAMPLE_RATE
        assert all(0 <= start < end <= len(part.pcm) // HOP_LENGTH for start, end in part.speech.spans)


def described(found: list[PcmPart]) -> list[Any]:
    return [(*one, part.speech) for one, part in zip(describe(found), found, strict=True)]


def test_each_part_counts_its_speech_from_its_own_start() -> None:
    pcm = np.zeros(20 * SAMPLE_RATE, np.int16)
    pcm[8 * SAMPLE_RATE : 9 * SAMPLE_RATE] = pcm[13 * SAMPLE_RATE : 14 * SAMPLE_RATE] = 5000
    first, last = cut_parts([pcm], 12.0, Ear())
    assert 9.6 < first.end < 12.0
    for part, spoken in ((first, 8.0), (last, 13.0)):
        assert part.speech is not None and part.speech.seconds == pytest.approx(1.0, abs=0.05)
        ((start, end),) = part.speech.spans
        assert part.start + start / 100 == pytest.approx(spoken - PAD_SECONDS, abs=0.05)
        assert part.start + end / 100 == pytest.approx(spoken + 1 + PAD_SECONDS, abs=0.05)


def test_nobody_looks_unless_told_to() -> None:
    assert [part.speech for part in cut_parts([noise(10.0)], 4.0)] == [None, None, None]


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "clip.wav", noise(FILE_SECONDS))


def test_where_somebody_speaks_stands_on_each_part(samples: Path, tmp_path: Path) -> None:
    """Real speech between silences, and the spans that the detector finds in it alone."""
    silence = np.zeros(6 * SAMPLE_RATE, np.int16)
    counting = read_clip(samples / "en" / "counting.wav")
    path = write_wav(tmp_path / "spoken.wav", np.concatenate([silence, counting, silence, silence, counting, silence]))
    *spoken, silent = read(manifest(path, part_seconds=15.0))
    assert (silent["speech"], silent["speech_seconds"]) == ([], 0.0)
    for row, begin in zip(spoken, (6.0, 21.0), strict=True):
        assert row["speech_seconds"] == pytest.approx(len(counting) / SAMPLE_RATE, abs=0.7)
        ((start, end),) = row["speech"]
        assert row["start"] + start / FRAMES_PER_SECOND == pytest.approx(begin - PAD_SECONDS, abs=0.2)
        assert end - start == pytest.approx(len(counting) / HOP_LENGTH, abs=80)


def test_a_part_in_one_piece_is_heard_as_it_is(samples: Path) -> None:
    path = samples / "en" / "counting.wav"
    (row,) = read(manifest(path))
    pcm = read_clip(path)
    alone = speech_of(Voice().probabilities(pcm), len(pcm))
    assert Speech(row["speech_seconds"], tuple(map(tuple, row["speech"]))) == alone


def test_where_nobody_speaks_there_is_no_span_and_where_nobody_looks_no_answer(clip: Path) -> None:
    assert {(tuple(row["speech"]), row["speech_seconds"]) for row in read(manifest(clip))} == {((), 0.0)}
    deaf = read(manifest(clip), ReadOptions(voice_activity=False))
    assert {(row["speech"], row["speech_seconds"]) for row in deaf} == {(None, None)}
    assert names(deaf) == names(read(manifest(clip)))
