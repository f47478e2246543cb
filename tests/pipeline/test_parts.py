"""Cutting as a pure function of the samples, and the reading stage from manifest row to log-mel rows."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.dimensions import HOP_LENGTH, SAMPLE_RATE, WINDOW_FRAMES
from model.features import log_mel, pcm_to_float
from pipeline import parts
from pipeline.config import ReadOptions
from pipeline.cuts import best_cut, cut_parts
from pipeline.media import find_ffmpeg
from pipeline.parts import ReadParts, part_id
from tests.pipeline.reading import (
    FILE_SECONDS,
    GENERATION,
    N_MELS,
    PART_SECONDS,
    describe,
    in_chunks,
    loud_with_pauses,
    manifest,
    names,
    noise,
    read,
    write_wav,
)


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
def clip(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "clip.wav", noise(FILE_SECONDS))


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
    monkeypatch.setenv("EARWITNESS_BWRAP", "")  # which would hide the clip from it


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


def test_an_object_that_fits_on_no_disk_here_is_left_to_another_before_it_is_fetched(
    clip: Path, temporary: Path
) -> None:
    table = manifest(clip)
    size = pa.array([1 << 60], pa.int64())
    (row,) = read(table.set_column(table.schema.get_field_index("bytes"), "bytes", size))
    assert (row["status"], row["mel"], row["is_last"]) == ("failed", None, True)
    assert row["error"].startswith("Its 1,152,921,504,606,846,976 bytes do not fit into ")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("room", [0, 1 << 62])
def test_an_object_that_fills_the_disk_fails_alone_unless_the_disk_was_full(
    clip: Path, temporary: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are read at once, and of some a server does not say how long they are."""
    monkeypatch.setattr(parts, "ROOM_BYTES", room)
    with files_up_to(10_000):
        if room:
            with pytest.raises(OSError, match="File too large"):
                read(manifest(clip))
        else:
            (row,) = read(manifest(clip))
            assert (row["status"], row["mel"]) == ("failed", None)
            assert row["error"].endswith("bytes do not fit into 10,000 on this disk: set TMPDIR to another.")
    assert not list(temporary.iterdir())


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
