"""The mix, each channel, or one where the mix is silent: as arithmetic on samples, and through real files to rows."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.dimensions import HOP_LENGTH, SAMPLE_RATE
from model.features import log_mel, pcm_to_float
from pipeline import channels, media
from pipeline.channels import STRETCH, LoudestChannel, Tracks, as_they_are, cancelled, loudness, stretches
from pipeline.config import SPLIT, ReadOptions
from pipeline.cuts import cut_parts
from pipeline.media import Decoding, find_ffmpeg
from pipeline.parts import part_id
from tests.chaos.corpus import write_wav
from tests.pipeline.reading import GENERATION, N_MELS, in_chunks, manifest, noise, read

SILENT = np.zeros(SAMPLE_RATE, np.int16)
EACH = ReadOptions(voice_activity=False, channels=SPLIT)
MIXED = ReadOptions(voice_activity=False)


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], axis=1)


# --- on samples ---------------------------------------------------------------------------------------------------


def test_loudness_is_the_root_of_the_mean_square() -> None:
    assert loudness(np.array([3, -3, 3, -3], np.int16)) == 3.0
    assert loudness(np.full((1000, 2), -32768, np.int16)) == 32768.0
    assert loudness(SILENT[:0]) == 0.0


def mix(pcm: np.ndarray) -> np.ndarray:
    return pcm.mean(axis=1).astype(np.int16)


@pytest.mark.parametrize(
    ("pcm", "loudest"),
    [
        (stereo(noise(1.0), -noise(1.0)), 0),
        (stereo(noise(1.0) // 2, -noise(1.0)), None),  # half of the louder one is left
        (stereo(noise(1.0), SILENT), None),  # a mix at half of it
        (stereo(noise(1.0), noise(1.0, seed=1)), None),
        (stereo(noise(1.0) // 200, -(noise(1.0) // 200)), None),  # too quiet to be missed
        (np.stack([noise(1.0), *[SILENT] * 7], axis=1), None),
        (np.stack([SILENT, noise(1.0), SILENT, -noise(1.0), SILENT, SILENT], axis=1), 1),
        (np.stack([SILENT, SILENT], axis=1), None),
    ],
    ids=["opposite", "partly", "one-sided", "different", "quiet", "one-of-eight", "two-of-six", "silence"],
)
def test_only_channels_that_cancel_out_are_replaced(pcm: np.ndarray, loudest: int | None) -> None:
    assert cancelled(mix(pcm), pcm) == loudest


def test_tracks_are_the_mix_or_every_channel() -> None:
    pcm = stereo(noise(0.1), noise(0.1, seed=1))
    assert as_they_are(0, pcm[:, 0]).numbers == (None,)
    each = as_they_are(0, pcm)
    assert each.numbers == (0, 1) and not each.antiphase
    for number, track in enumerate(each.separate()):
        assert np.array_equal(track, pcm[:, number]) and track.flags.c_contiguous
    (one,) = Tracks(pcm[:, 1], (1,)).separate()
    assert np.array_equal(one, pcm[:, 1])


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.floats(0.1, 6),
    part_seconds=st.sampled_from([1.0, 2.0, 5.0, float("inf")]),
    sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 500),
)
def test_every_channel_is_cut_at_the_same_places_whatever_the_chunks(
    seconds: float, part_seconds: float, sizes: list[int]
) -> None:
    pcm = np.stack([noise(seconds, seed) for seed in range(3)], axis=1)
    found = list(cut_parts(in_chunks(pcm, sizes), part_seconds))
    whole = list(cut_parts([pcm], part_seconds))
    assert [(part.index, part.start, part.end) for part in found] == [(p.index, p.start, p.end) for p in whole]
    assert [part.index for part in found] == list(range(len(found)))
    assert [part.channel for part in found] == [0, 1, 2] * (len(found) // 3)
    assert [part.is_last for part in found] == [False] * (len(found) - 1) + [True]
    for channel in range(3):
        mine = found[channel::3]
        assert [part.start for part in mine] == [part.start for part in found[::3]]
        assert np.array_equal(np.concatenate([part.pcm for part in mine]), pcm[:, channel])


def test_a_cut_is_where_all_channels_are_quiet() -> None:
    """Each has a pause of its own, which is no pause in the other; both are quiet at 9.5 s only."""
    pcm = np.full((10 * SAMPLE_RATE, 2), 5000, np.int16)
    pcm[int(8.2 * SAMPLE_RATE) : int(9.2 * SAMPLE_RATE), 0] = 0
    pcm[int(9.3 * SAMPLE_RATE) : int(9.7 * SAMPLE_RATE)] = 5
    first = next(cut_parts(in_chunks(np.concatenate([pcm, pcm]), [SAMPLE_RATE]), 10.0))
    assert 9.3 < first.end < 9.7


# --- through files ------------------------------------------------------------------------------------------------


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_split_gives_each_channel_its_own_parts(tmp_path: Path) -> None:
    left, right = noise(10.0), noise(10.0, seed=1)
    rows = read(manifest(write_wav(tmp_path / "a.wav", stereo(left, right))), EACH)
    assert columns(rows, "index", "channel", "is_last") == [
        *[(0, 0, False), (1, 1, False), (2, 0, False), (3, 1, False), (4, 0, False), (5, 1, True)]
    ]
    for row in rows:
        samples = (left, right)[row["channel"]][round(row["start"] * SAMPLE_RATE) : round(row["end"] * SAMPLE_RATE)]
        assert row["mel"] == log_mel(pcm_to_float(samples), N_MELS).tobytes()
        named = (row["media_id"], row["index"], row["start"], row["end"], GENERATION, row["channel"])
        assert row["part_id"] == part_id(*named) != part_id(*named[:-1])
    assert (rows[-1]["status"], rows[-1]["decoded_seconds"], rows[-1]["channels"]) == ("ok", 10.0, 2)
    assert [row["end"] for row in rows[:2]] == [rows[0]["end"]] * 2


def test_split_mono_is_channel_0_and_the_same_samples(tmp_path: Path) -> None:
    table = manifest(write_wav(tmp_path / "a.wav", noise(10.0)))
    split, mixed = read(table, EACH), read(table, MIXED)
    assert columns(split, "index", "start", "end", "mel") == columns(mixed, "index", "start", "end", "mel")
    assert {row["channel"] for row in split} == {0} and {row["channel"] for row in mixed} == {None}


def test_split_goes_on_at_what_is_missing(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", stereo(noise(10.0), noise(10.0, seed=1)))
    whole = read(manifest(path), EACH)
    rest = read(manifest(path, done=(0, 1, 2, 5)), EACH)
    assert columns(rest, "part_id", "index", "channel") == columns([whole[3], whole[4]], "part_id", "index", "channel")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of ffmpeg."""

    def install(body: str) -> None:
        script = tmp_path / "stand-in"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setenv("EARWITNESS_FFMPEG", str(script))
        monkeypatch.setenv("EARWITNESS_BWRAP", "")

    return install


def test_a_split_file_that_fails_is_one_failure_and_is_read_again_from_there(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    """No channel may keep the half of a part: another run would cut it elsewhere."""
    path = write_wav(tmp_path / "a.wav", stereo(noise(10.0), noise(10.0, seed=1)))
    table = manifest(path)
    whole = read(table, EACH)
    stand_in(f'"{find_ffmpeg()}" "$@" | head -c {5 * SAMPLE_RATE * 4}; sleep 600')
    rows = read(table, ReadOptions(voice_activity=False, channels=SPLIT, timeout_seconds=1.5))
    assert columns(rows[:2], "part_id", "mel") == columns(whole[:2], "part_id", "mel")
    assert columns(rows[2:], "index", "channel", "status", "mel", "is_last") == [(2, None, "timeout", None, True)]


def test_too_many_channels_to_split_are_rejected_and_can_be_mixed(tmp_path: Path) -> None:
    pcm = np.stack([noise(0.5, seed) for seed in range(media.MAX_SPLIT_CHANNELS + 8)], axis=1)
    table = manifest(write_wav(tmp_path / "a.wav", pcm))
    (row,) = read(table, EACH)
    assert row["status"] == "rejected" and "24 channels, of which up to 16 can be split" in row["error"]


@pytest.mark.parametrize("layout", ["mono", "stereo", "3.0", "quad", "5.1", "7.1"])
def test_every_layout_is_split_into_what_it_holds(tmp_path: Path, layout: str) -> None:
    """In the order of the file, and nothing of one channel in another."""
    path = tmp_path / "a.wav"
    silence = f"anullsrc=r={SAMPLE_RATE}:cl={layout}:d=0.5"
    tone = ["-f", "lavfi", "-i", silence, "-af", "aeval='val(ch)+0.05*(ch+1)':c=same"]
    subprocess.run([find_ffmpeg(), "-v", "error", *tone, path], check=True)
    decoding = Decoding(path, EACH)
    with closing(iter(decoding)) as chunks:
        pcm = np.concatenate(list(chunks))
    expected = [round(0.05 * (number + 1) * 32768) for number in range(decoding.report.channels or 0)]
    assert np.abs(pcm - np.array(expected)).max() <= 1


def test_opposite_channels_are_heard_as_the_louder_one(tmp_path: Path) -> None:
    voice = noise(10.0)
    rows = read(manifest(write_wav(tmp_path / "a.wav", stereo(-(voice // 10 * 9), voice))), MIXED)
    alone = read(manifest(write_wav(tmp_path / "b.wav", voice)), MIXED)
    assert columns(rows, "index", "start", "end", "mel") == columns(alone, "index", "start", "end", "mel")
    assert {(row["channel"], row["antiphase"]) for row in rows} == {(1, True)}
    assert {(row["channel"], row["antiphase"]) for row in alone} == {(None, False)}


def test_only_the_parts_that_cancel_out_are_replaced(tmp_path: Path) -> None:
    """Twelve seconds: the wires are right, swapped, and right again; the second ffmpeg has to catch up, and to stay."""
    voice = noise(12.0)
    other = voice.copy()
    other[4 * SAMPLE_RATE : 8 * SAMPLE_RATE] *= -1
    rows = read(manifest(write_wav(tmp_path / "a.wav", stereo(voice, other)), part_seconds=2.0), MIXED)
    swapped = [row for row in rows if row["antiphase"]]
    assert swapped and all(row["end"] > 4.0 and row["start"] < 8.0 for row in swapped)
    for row in rows:
        if row["start"] >= 4.0 and row["end"] <= 8.0:
            samples = voice[round(row["start"] * SAMPLE_RATE) : round(row["end"] * SAMPLE_RATE)]
            assert row["mel"] == log_mel(pcm_to_float(samples), N_MELS).tobytes()


def test_what_is_in_phase_does_not_hide_what_is_not(tmp_path: Path) -> None:
    """A jingle of three seconds, and then a voice on a swapped wire, in one part; the jingle stays the mix."""
    jingle, voice = stereo(noise(3.0), noise(3.0, seed=1)), noise(17.0)
    pcm = np.concatenate([jingle, stereo(voice, -voice)])
    (row,) = read(manifest(write_wav(tmp_path / "a.wav", pcm), part_seconds=60.0), MIXED)
    assert (row["antiphase"], row["channel"]) == (True, 0)
    start = 4 * SAMPLE_RATE  # the stretch in which one ends and the other begins is neither
    heard = np.concatenate([mix(jingle), voice])
    found = np.frombuffer(row["mel"], np.float32).reshape(N_MELS, -1)
    expected = log_mel(pcm_to_float(heard), N_MELS)
    assert np.abs(found - expected)[:, start // HOP_LENGTH + 10 :].max() < 0.01
    assert np.abs(found - expected)[:, : SAMPLE_RATE // HOP_LENGTH].max() < 0.01


def test_pauses_in_stereo_stay_the_mix(tmp_path: Path) -> None:
    pcm = np.concatenate([stereo(noise(4.0), noise(4.0, seed=1)), np.zeros((5 * SAMPLE_RATE, 2), np.int16)])
    rows = read(manifest(write_wav(tmp_path / "a.wav", pcm), part_seconds=60.0), MIXED)
    assert {(row["channel"], row["antiphase"]) for row in rows} == {(None, False)}


def test_stretches_are_all_of_it() -> None:
    for samples in (0, 1, STRETCH - 1, STRETCH, 2 * STRETCH - 1, 7 * STRETCH + 5):
        found = stretches(samples)
        assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])] and found[
            -1
        ].stop == samples
        assert all(piece.stop - piece.start >= STRETCH for piece in found) or len(found) == 1


def test_mono_and_loud_stereo_take_one_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    start = media.Decoding.__init__

    def counted(
        self: Decoding, path: Path, options: ReadOptions | None = None, every_channel: bool = False, **more: Any
    ) -> None:
        started.append(every_channel)
        start(self, path, options, every_channel, **more)

    monkeypatch.setattr(media.Decoding, "__init__", counted)
    quiet = noise(10.0) // 100
    read(manifest(write_wav(tmp_path / "mono.wav", quiet)), MIXED)
    read(manifest(write_wav(tmp_path / "loud.wav", stereo(noise(10.0), noise(10.0, seed=1)))), MIXED)
    assert started == [False, False]
    rows = read(manifest(write_wav(tmp_path / "quiet.wav", stereo(quiet, quiet))), MIXED)
    assert started == [False, False, False, True], "a quiet mix is looked behind once"
    assert {(row["channel"], row["antiphase"]) for row in rows} == {(None, False)}


def test_where_the_second_ffmpeg_fails_the_mix_is_what_there_is(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    path = write_wav(tmp_path / "a.wav", stereo(noise(2.0), -noise(2.0)))
    ffmpeg = find_ffmpeg()
    stand_in(f'case "$*" in *"-ac 1"*) exec "{ffmpeg}" "$@";; esac; exit 1')
    (row,) = read(manifest(path), MIXED)
    assert (row["status"], row["antiphase"], row["end"]) == ("ok", False, 2.0)


def test_both_ffmpegs_end_with_the_reader(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", stereo(noise(60.0), -noise(60.0)))
    decoding = Decoding(path, MIXED)
    with closing(iter(decoding)) as chunks, closing(LoudestChannel(decoding)) as listen:
        heard = listen(0, np.concatenate([next(chunks), next(chunks)]))
        assert heard.antiphase and listen.waited_seconds > 0
        second = listen._chunks
    assert second is not None and next(second, None) is None


def test_what_was_passed_is_not_held(tmp_path: Path) -> None:
    """An hour of sound may pass before a mix is silent; the channels of it are not kept."""
    path = write_wav(tmp_path / "a.wav", stereo(noise(60.0), -noise(60.0)))
    decoding = Decoding(path, MIXED)
    with closing(iter(decoding)) as chunks, closing(LoudestChannel(decoding)) as listen:
        next(chunks)
        listen(50 * SAMPLE_RATE, SILENT)
        assert sum(map(len, listen._held)) < 2 * SAMPLE_RATE
        assert channels.NEARLY_SILENT > channels.LOUD


def test_the_stream_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """A film with three languages: the second has another rate, and two channels."""
    tracks = [noise(1.0), noise(2.0, seed=1), noise(3.0, seed=2)]
    inputs = []
    for number, pcm in enumerate(tracks):
        source = write_wav(tmp_path / f"{number}.wav", stereo(pcm, pcm) if number == 1 else pcm)
        inputs += ["-i", str(source)]
    film = tmp_path / "film.mkv"
    maps = [argument for number in range(3) for argument in ("-map", f"{number}:a")]
    subprocess.run([find_ffmpeg(), "-v", "error", *inputs, *maps, "-c", "copy", film], check=True)
    for stream, seconds in ((None, 1.0), (0, 1.0), (1, 2.0), (2, 3.0)):
        (row,) = read(manifest(film), ReadOptions(voice_activity=False, stream=stream))
        assert (row["status"], row["end"], row["channels"]) == ("ok", seconds, 2 if stream == 1 else 1)
    (row,) = read(manifest(film), ReadOptions(stream=3))
    assert (row["status"], row["error"]) == ("no_audio", "Its audio streams are 0 to 2: it has no stream 3.")
