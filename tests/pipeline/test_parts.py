"""Cutting as a pure function of the samples, and the reading stage from manifest row to log-mel rows."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.samples import read_clip
from model.dimensions import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE, WINDOW_FRAMES
from model.features import log_mel, pcm_to_float
from pipeline import parts, records
from pipeline.config import ReadOptions
from pipeline.inventory import list_media
from pipeline.media import find_ffmpeg
from pipeline.parts import PcmPart, ReadParts, best_cut, cut_parts, part_id
from pipeline.voice import FRAME_SAMPLES, Speech, Voice, speech_of

N_MELS = 80
GENERATION = "0123456789abcdef"
PART_SECONDS = 4.0
FILE_SECONDS = 10.0


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) int16 whose loudness changes every quarter of a second."""
    random = np.random.default_rng(seed)
    samples = int(seconds * SAMPLE_RATE)
    loudness = np.repeat(random.uniform(10, 6000, samples // 4000 + 1), 4000)[:samples]
    return (random.normal(0, 1, samples) * loudness).clip(-32768, 32767).astype(np.int16)


def in_chunks(pcm: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """The samples in chunks of the given sizes, over and over."""
    position = turn = 0
    while position < len(pcm):
        size = sizes[turn % len(sizes)]
        yield pcm[position : position + size]
        position, turn = position + size, turn + 1


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0, 12),
    part_seconds=st.sampled_from([0.3, 1.0, 1.7, 2.0, 5.0, math.inf]),
    sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 500),
    seed=st.integers(0, 3),
)
def test_parts_are_the_stream_whatever_its_chunks(
    seconds: float, part_seconds: float, sizes: list[int], seed: int
) -> None:
    pcm = noise(seconds, seed)
    found = list(cut_parts(in_chunks(pcm, sizes), part_seconds))
    assert describe(found) == describe(list(cut_parts([pcm], part_seconds)))
    assert np.array_equal(np.concatenate([part.pcm for part in found] or [pcm[:0]]), pcm)
    assert [part.index for part in found] == list(range(len(found)))
    assert [part.is_last for part in found] == [False] * (len(found) - 1) + [True] * bool(len(pcm))
    assert all(0 < len(part.pcm) <= part_seconds * SAMPLE_RATE for part in found)
    assert all(len(part.pcm) % HOP_LENGTH == 0 for part in found[:-1])
    assert [part.start for part in found[1:]] == [part.end for part in found[:-1]]


def describe(found: list[PcmPart]) -> list[tuple[int, float, bytes, bool]]:
    return [(part.index, part.start, hashlib.sha256(part.pcm).digest(), part.is_last) for part in found]


def loud_with_pauses(seconds: float, *pauses: tuple[float, float]) -> np.ndarray:
    pcm = np.full(int(seconds * SAMPLE_RATE), 5000, np.int16)
    for start, end in pauses:
        pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = 3
    return pcm


def test_a_part_ends_in_the_middle_of_the_pause() -> None:
    cut = best_cut(loud_with_pauses(100, (91.0, 91.3)))
    assert cut / SAMPLE_RATE == pytest.approx(91.15, abs=0.051)


def test_of_two_equal_pauses_the_earlier_is_taken() -> None:
    cut = best_cut(loud_with_pauses(100, (85.0, 85.4), (95.0, 95.4)))
    assert 85.0 < cut / SAMPLE_RATE < 85.4


def test_a_longer_pause_before_the_search_zone_is_not_looked_at() -> None:
    assert best_cut(loud_with_pauses(100, (50.0, 70.0), (95.0, 95.4))) / SAMPLE_RATE > 95.0
    # Of 15 minutes only the last 30 seconds are searched, not the last fifth.
    assert best_cut(loud_with_pauses(900, (800.0, 860.0), (895.0, 895.4))) / SAMPLE_RATE > 895.0


def test_a_click_does_not_hide_a_pause_and_a_gap_between_words_is_none() -> None:
    pcm = loud_with_pauses(100, (90.0, 90.1), (95.0, 96.0))  # 0.1 s is a stop consonant
    assert best_cut(pcm) / SAMPLE_RATE > 95.0


def test_the_loudest_samples_do_not_overflow() -> None:
    pcm = np.full(10 * SAMPLE_RATE, -32768, np.int16)
    pcm[int(9.0 * SAMPLE_RATE) : int(9.4 * SAMPLE_RATE)] = 32767
    assert 9.0 < best_cut(pcm) / SAMPLE_RATE < 9.4


def test_a_part_too_short_to_search_is_cut_at_its_limit() -> None:
    assert best_cut(np.zeros(SAMPLE_RATE, np.int16)) == SAMPLE_RATE


# --- pauses of speech ---------------------------------------------------------------------------------------------


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
        assert part.start + start / 100 == pytest.approx(spoken - 0.4, abs=0.05)
        assert part.start + end / 100 == pytest.approx(spoken + 1.4, abs=0.05)


def test_nobody_looks_unless_told_to() -> None:
    assert [part.speech for part in cut_parts([noise(10.0)], 4.0)] == [None, None, None]


# --- the stream ---------------------------------------------------------------------------------------------------


def test_a_part_leaves_before_the_stream_has_ended() -> None:
    taken = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal taken
        for chunk in in_chunks(noise(60), [SAMPLE_RATE]):
            taken += 1
            yield chunk

    next(cut_parts(stream(), 5.0))
    assert taken == 6  # one part and one chunk


def test_the_name_of_a_part_is_stable_and_names_everything() -> None:
    name = part_id("m", 1, 0.5, 2.25, GENERATION)
    assert name == hashlib.sha256(b"m 1 0.500000 2.250000 0123456789abcdef").hexdigest()[:32]
    others = [
        part_id("n", 1, 0.5, 2.25, GENERATION),
        part_id("m", 2, 0.5, 2.25, GENERATION),
        part_id("m", 1, 0.6, 2.25, GENERATION),
        part_id("m", 1, 0.5, 2.26, GENERATION),
        part_id("m", 1, 0.5, 2.25, "other"),
    ]
    assert len({name, *others}) == 6


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files; it must be empty again at the end of the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "clip.wav", noise(FILE_SECONDS))


def write_wav(path: Path, pcm: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def manifest(*paths: Path, part_seconds: float = PART_SECONDS, done: tuple[int, ...] = ()) -> pa.Table:
    rows = []
    for media in list_media([str(path) for path in paths]):
        columns = dict(media_id=media.media_id, uri=media.uri, version=media.version, bytes=media.bytes)
        rows.append(columns | dict(part_seconds=part_seconds, done_parts=list(done), attempt=2))
    return pa.Table.from_pylist(rows, schema=records.MANIFEST)


def read(table: pa.Table, options: ReadOptions | None = None) -> list[dict[str, Any]]:
    tables = list(ReadParts(N_MELS, GENERATION, options)(table))
    assert all(one.num_rows == 1 and one.schema == records.AUDIO for one in tables)
    return [one.to_pylist()[0] for one in tables]


def mel_of(row: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(row["mel"], np.float32).reshape(N_MELS, row["mel_frames"])


def test_every_part_has_the_log_mel_of_its_samples_alone(clip: Path, temporary: Path) -> None:
    rows = read(manifest(clip))
    expected = list(cut_parts([noise(FILE_SECONDS)], PART_SECONDS))
    assert len(rows) == len(expected) == 3
    for row, part in zip(rows, expected, strict=True):
        assert np.array_equal(mel_of(row), log_mel(pcm_to_float(part.pcm), N_MELS))
        assert (row["start"], row["end"], row["is_last"]) == (part.start, part.end, part.is_last)
        assert row["part_id"] == part_id(row["media_id"], part.index, part.start, part.end, GENERATION)
        assert row["content_frames"] == len(part.pcm) // HOP_LENGTH
        assert row["mel_frames"] == WINDOW_FRAMES
    assert not list(temporary.iterdir())


def test_a_long_part_has_as_many_frames_as_content(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", noise(31.0))
    (row,) = read(manifest(path, part_seconds=math.inf))
    assert (row["content_frames"], row["mel_frames"]) == (3100, 3100)
    assert len(row["mel"]) == 4 * N_MELS * 3100
    assert (row["end"], row["is_last"]) == (31.0, True)


def test_evidence_that_is_known_at_the_end_stands_on_the_last_part(clip: Path) -> None:
    *first, last = read(manifest(clip))
    assert last["sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert (last["decoded_seconds"], last["decode_errors"]) == (FILE_SECONDS, 0)
    for row in first:
        assert row["sha256"] is row["decoded_seconds"] is row["decode_errors"] is None
    for row in [*first, last]:
        assert (row["status"], row["codec"], row["expected_seconds"]) == ("ok", "pcm_s16le", FILE_SECONDS)
        assert row["mel_seconds"] > 0 and row["attempts"] == 2
    assert first[0]["fetch_seconds"] > 0 == last["fetch_seconds"]


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
        assert row["start"] + start / FRAMES_PER_SECOND == pytest.approx(begin - 0.4, abs=0.2)
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


def test_only_the_last_part_of_a_truncated_file_says_so(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:-40_000])
    rows = read(manifest(clip))
    assert [row["status"] for row in rows] == ["ok", "ok", "truncated"]
    assert rows[-1]["error"] and rows[-1]["mel"]


def test_parts_that_are_done_are_skipped_and_the_cuts_stay(clip: Path) -> None:
    everything = read(manifest(clip))
    assert names(read(manifest(clip, done=(0, 1)))) == names(everything)[2:]
    assert names(read(manifest(clip, done=(2,)))) == names(everything)[:2]
    assert read(manifest(clip, done=(0, 1, 2))) == []


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["part_id"] for row in rows]


def test_every_file_of_a_batch_is_read_in_turn(clip: Path, tmp_path: Path) -> None:
    other = write_wav(tmp_path / "other.wav", noise(1.0, seed=5))
    rows = read(manifest(clip, other))
    assert [row["is_last"] for row in rows] == [False, False, True, True]
    assert rows[-1]["uri"].endswith("other.wav")


def test_whoever_counts_files_is_told_of_each(clip: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.mp3"
    notes.write_text("no audio at all\n" * 50)
    told: list[tuple[int, float, bool]] = []
    reader = ReadParts(N_MELS, GENERATION, None, lambda *file: told.append(file))
    assert len(list(reader(manifest(clip, notes)))) == 4
    assert told == [(clip.stat().st_size, FILE_SECONDS, False), (notes.stat().st_size, 0.0, True)]


def gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()


def changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(path, (1, 1))


def crashing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_ffmpeg(path, monkeypatch, "kill -SEGV $$")


@pytest.mark.parametrize("mishap", [gone, changed, crashing])
def test_a_file_that_gives_nothing_becomes_one_row(
    clip: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, mishap: Callable[..., None]
) -> None:
    table = manifest(clip)
    mishap(clip, monkeypatch)
    (row,) = read(table)
    assert (row["status"], row["index"], row["start"], row["end"]) == ("failed", 0, 0.0, 0.0)
    assert row["is_last"] and row["mel"] is None and row["content_frames"] == 0
    assert row["error"].endswith(".") and str(temporary) not in row["error"]
    assert not list(temporary.iterdir())


def test_text_named_like_audio_becomes_one_row(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp3"
    path.write_text("no audio at all\n" * 50)
    (row,) = read(manifest(path))
    assert (row["status"], row["is_last"], row["mel"]) == ("no_audio", True, None)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def replace_ffmpeg(path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = path.parent / "stand-in"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("EARWITNESS_FFMPEG", str(script))


def test_a_file_that_hangs_half_way_keeps_its_parts_and_ends_in_a_timeout(
    clip: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(manifest(clip))
    table = manifest(clip)
    header = 'echo "[info] Output #0" >&2'
    replace_ffmpeg(clip, monkeypatch, f'{header}; tail -c +45 "{clip}" | head -c 200000; sleep 600')
    first, last = read(table, ReadOptions(timeout_seconds=0.5))
    assert (first["status"], first["mel"]) == ("ok", whole[0]["mel"])
    assert (last["status"], last["index"], last["is_last"], last["mel"]) == ("timeout", 1, True, None)
    assert (last["speech"], last["speech_seconds"]) == (None, None)
    assert last["start"] == last["end"] == first["end"]  # the samples since the cut are left for another run
    assert last["decoded_seconds"] == 200_000 / 2 / SAMPLE_RATE
    assert not list(temporary.iterdir())


def test_a_failure_takes_the_first_index_that_is_free(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts 0 and 1 have their text from an earlier run; that the file fails now must not be lost, nor replace them."""
    table = manifest(clip, done=(0, 1))
    replace_ffmpeg(clip, monkeypatch, "exit 1")
    (failure,) = read(table)
    assert (failure["index"], failure["status"], failure["is_last"]) == (2, "failed", True)


def test_a_bomb_ends_in_a_rejection(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "bomb.wav", np.zeros(3000, np.int16), rate=1)  # 6 kB that claim 50 minutes
    rows = read(manifest(path, part_seconds=300.0))
    assert [row["status"] for row in rows] == ["ok"] * (len(rows) - 1) + ["rejected"]
    assert rows[-1]["mel"] is None
    assert rows[-1]["decoded_seconds"] < 900


def test_a_part_leaves_while_ffmpeg_still_reads(clip: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = clip.parent / "stand-in.ended"
    table = manifest(clip)
    body = f'"{find_ffmpeg()}" "$@"; : > "{ended}"'
    replace_ffmpeg(clip, monkeypatch, body)
    rows = ReadParts(N_MELS, GENERATION)(table)
    assert next(rows)["index"].to_pylist() == [0]
    assert not ended.exists()
    assert len(list(rows)) == 2
    assert ended.exists()


def test_a_bug_raises_and_leaves_nothing_behind(clip: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(audio: np.ndarray, n_mels: int) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(parts, "log_mel", broken)
    with pytest.raises(ZeroDivisionError) as held:
        read(manifest(clip))
    gc.collect()
    assert not list(temporary.iterdir()), f"although {held} still holds every frame"


def test_a_reader_that_is_given_up_leaves_nothing_behind(clip: Path, temporary: Path) -> None:
    rows = ReadParts(N_MELS, GENERATION)(manifest(clip))
    next(rows)
    assert list(temporary.iterdir())
    rows.close()  # type: ignore[attr-defined]
    gc.collect()
    assert not list(temporary.iterdir())


def test_an_object_that_fits_on_no_disk_here_is_rejected_before_it_is_fetched(clip: Path, temporary: Path) -> None:
    table = manifest(clip)
    size = pa.array([1 << 60], pa.int64())
    (row,) = read(table.set_column(table.schema.get_field_index("bytes"), "bytes", size))
    assert (row["status"], row["mel"], row["is_last"]) == ("rejected", None, True)
    assert "do not fit on a disk of" in row["error"]
    assert not list(temporary.iterdir())
