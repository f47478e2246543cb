"""A hostile archive through the reading stage: every file ends in a truthful row, and nobody follows what it names.

EARWITNESS_CHAOS_FILES=5000 mutates so many files instead of 500, and looks longer everywhere else.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.dimensions import SAMPLE_RATE
from model.errors import SourceError
from pipeline import media
from pipeline.config import ReadOptions
from pipeline.evidence import SHORT_FRACTION, SHORT_SECONDS, WITHOUT_TIMES
from pipeline.media import Decoding, MediaReport, name_for
from pipeline.parts import ReadParts
from pipeline.records import FAILURES, WITH_TEXT
from tests.chaos import corpus
from tests.chaos.corpus import CONTAINERS, Watched, encode, exposed, ffmpeg, listening
from tests.pipeline.reading import GENERATION, N_MELS, manifest

FILES = int(os.environ.get("EARWITNESS_CHAOS_FILES", "500"))
IS_LONG = FILES > 500
CUTS = 60 if IS_LONG else 12  # places at which each container is cut, to see how often that is noticed
HANG_SECONDS = 60.0
LONG_SECONDS = 300.0  # of which 5 % are lost: more than the ten seconds from which ffmpeg would close a gap
# So low that 5 % of an Ogg are less than 64 KB: behind more than that, it finds no page again.
LOW_RATES = {"ts": "16k", "opus": "16k", "ogg": "16k", "m4a": "16k", "webm": "16k", "wma": "32k"}
OPTIONS = ReadOptions(timeout_seconds=HANG_SECONDS, voice_activity=False)
Rows = dict[str, list[dict[str, Any]]]


def read_all(folder: Path, options: ReadOptions = OPTIONS, part_seconds: float = 60.0) -> Rows:
    """Every file of a folder through one reader: its rows, by its name."""
    found: Rows = {}
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    for table in ReadParts(N_MELS, GENERATION, options)(manifest(*paths, part_seconds=part_seconds)):
        (row,) = table.to_pylist()
        row["mel"] = row["mel"] is not None  # hundreds of files of log-mel need not be kept
        found.setdefault(Path(row["uri"]).name, []).append(row)
    assert sorted(found) == [path.name for path in paths]
    return found


def decode(path: Path) -> tuple[np.ndarray, MediaReport]:
    decoding = Decoding(path, OPTIONS)
    with closing(iter(decoding)) as chunks:
        pcm = list(chunks)
    return (np.concatenate(pcm) if pcm else np.empty(0, np.int16)), decoding.report


def lies(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as it must be in the rows of any one file, whatever is in it."""
    *before, last = rows
    if last["same_as"] is not None:
        return [f"same: {last}"] * bool(before or last["status"] != "same" or last["mel"])
    expected, decoded = last["expected_seconds"], last["decoded_seconds"]
    has_text = last["status"] in WITH_TEXT
    short = (expected or 0.0) - (decoded or 0.0)
    checks = {
        "indices": [row["index"] for row in rows] == list(range(len(rows))),
        "last": last["is_last"] and not any(row["is_last"] for row in before),
        "joined": [row["start"] for row in rows] == [0.0, *(row["end"] for row in before)],
        "status": last["status"] in (*WITH_TEXT, *FAILURES) and all(row["status"] == "ok" for row in before),
        "in time": last["status"] != "timeout",
        "text": last["mel"] == has_text and (not has_text or abs(last["end"] - decoded) < 0.001),
        "reason": (last["error"] is None) == (last["status"] == "ok"),
        "sentence": last["error"] is None or (last["error"].endswith(".") and "earwitness-media-" not in last["error"]),
        "sure": last["status"] != "ok"
        or (not last["decode_errors"] and short < max(SHORT_SECONDS, SHORT_FRACTION * decoded)),
    }
    return [f"{name}: {last}" for name, holds in checks.items() if not holds]


@dataclass
class Archive:
    """The corpus, what was read of it, and what was opened or asked for meanwhile that should not have been."""

    folder: Path
    clips: dict[str, Path]
    rows: Rows = field(default_factory=dict)
    opened: bool = False
    asked: list[str] = field(default_factory=list)

    def last(self, name: str) -> dict[str, Any]:
        """The verdict on a file; of several with the same bytes, the one that stands for all."""
        row = self.rows[name][-1]
        owner = row["same_as"]
        return row if owner is None else next(rows[-1] for rows in self.rows.values() if rows[0]["media_id"] == owner)


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    try:
        return corpus.speech()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def archive(pcm: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Ten containers, clean and in every kind of trouble, read by one reader in one go."""
    folder = tmp_path_factory.mktemp("damage") / "archive"
    folder.mkdir()
    clips = encode(pcm, folder, "clean")
    encode(np.stack([pcm, -pcm], axis=1), folder, "antiphase")
    (folder / "antiphase.g722").unlink()  # mono by nature
    random = np.random.default_rng(4)
    for suffix, clip in clips.items():
        data = clip.read_bytes()
        (folder / f"cut.{suffix}").write_bytes(corpus.cut(data))
        (folder / f"corrupted.{suffix}").write_bytes(corpus.corrupted(data))
        (folder / f"zeros.{suffix}").write_bytes(bytes(len(data)))
        (folder / f"random.{suffix}").write_bytes(random.bytes(len(data)))
        (folder / f"empty.{suffix}").touch()
        shutil.copy(clip, folder / f"wrong-{suffix}.{'wav' if suffix == 'mp3' else 'mp3'}")
    corpus.bombs(folder)
    corpus.many_streams(clips, folder)
    canary = shutil.copy(clips["m4a"], folder.parent / "canary.m4a")
    made = Archive(folder, clips)
    with listening() as (address, asked), closing(Watched(canary)) as watched, exposed(canary):
        corpus.scripts(folder, canary, address)
        made.rows = read_all(folder)
        made.opened, made.asked = watched.was_opened(), list(asked)
    yield made


def test_every_file_ends_in_a_truthful_row(archive: Archive) -> None:
    assert len(archive.rows) > 10 * len(CONTAINERS)
    assert [lie for rows in archive.rows.values() for lie in lies(rows)] == []


def test_nobody_follows_what_a_file_names(archive: Archive) -> None:
    assert (archive.opened, archive.asked) == (False, [])
    for name in corpus.SCRIPTS:
        for suffix in set(CONTAINERS) - {"g722"}:
            row = archive.last(f"{name}.{suffix}")
            assert row["status"] in ("rejected", "no_audio"), (name, suffix)
            assert row["status"] == "rejected" or name not in corpus.FOLLOWED, (name, suffix)


# What is left of the command's bounds, and what becomes of the canaries then.
FORMATS, PROTOCOLS = "-format_whitelist", "-protocol_whitelist"
UNBOUND = {
    "neither": ({FORMATS: None, PROTOCOLS: None}, True, False),  # a file may name files, as ffmpeg has it
    "protocols": ({FORMATS: None}, True, False),
    "formats": ({PROTOCOLS: "file,http,tcp"}, False, False),
    "neither, and the network": ({FORMATS: None, PROTOCOLS: "file,http,tcp"}, True, True),
}


def unbind(patch: pytest.MonkeyPatch, changed: dict[str, str | None]) -> None:
    """Take options from the command that reads a file, or give them other values."""
    bounded = media.command

    def command(*arguments: Any) -> list[str]:
        words = bounded(*arguments)
        for option, value in changed.items():
            place = words.index(option)
            words[place : place + 2] = [] if value is None else [option, value]
        return words

    patch.setattr(media, "command", command)


@pytest.mark.parametrize("left", UNBOUND)
def test_the_canaries_sing(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """The control: without its bounds, the same reader follows the same texts, or the test before proves nothing."""
    changed, is_opened, is_asked = UNBOUND[left]
    unbind(monkeypatch, changed)
    canary = archive.folder.parent / "canary.m4a"
    with listening() as (address, asked), closing(Watched(canary)) as watched, exposed(canary):
        corpus.scripts(tmp_path, canary, address)
        for name in corpus.SCRIPTS:
            (tmp_path / name).mkdir()
            (tmp_path / f"{name}.wav").rename(tmp_path / name / f"{name}.wav")
            read_all(tmp_path / name)
            assert watched.was_opened() == (is_opened and name in corpus.FOLLOWED), name
            assert bool(asked) == (is_asked and name == "dash-http"), name
            asked.clear()


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_clean_file_is_ok_whatever_it_is_called(archive: Archive, pcm: np.ndarray, suffix: str) -> None:
    other = "wav" if suffix == "mp3" else "mp3"
    rows = [archive.last(f"clean.{suffix}")]
    if suffix != "g722":  # which has no header: nothing but its suffix tells what it is
        rows.append(archive.last(f"wrong-{suffix}.{other}"))
    for row in rows:
        assert (row["status"], row["decode_errors"], row["antiphase"]) == ("ok", 0, False)
        assert row["decoded_seconds"] == pytest.approx(len(pcm) / SAMPLE_RATE, abs=0.1)
        assert row["expected_seconds"] is None or row["expected_seconds"] == pytest.approx(row["end"], abs=0.1)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_what_holds_no_audio_is_no_audio(archive: Archive, suffix: str) -> None:
    assert archive.last(f"empty.{suffix}")["status"] == "no_audio"
    if suffix != "g722":  # in which everything is sound
        assert archive.last(f"zeros.{suffix}")["status"] == "no_audio"
        assert archive.last(f"random.{suffix}")["status"] in ("no_audio", "damaged")


@pytest.mark.parametrize("suffix", sorted(set(CONTAINERS) - {"wav", "g722"}))  # in these two, no byte is wrong
def test_five_percent_of_damage_is_noticed(archive: Archive, suffix: str) -> None:
    row = archive.last(f"corrupted.{suffix}")
    assert row["status"] in ("damaged", "truncated") and row["decode_errors"] > 0
    assert ("holds no times" in row["error"]) == (row["container"] in WITHOUT_TIMES)


@pytest.mark.parametrize("suffix", sorted(set(CONTAINERS) - {"mp3"}))  # which has no times
def test_what_follows_the_damage_keeps_its_time(archive: Archive, suffix: str) -> None:
    whole, _ = decode(archive.clips[suffix])
    rest, _ = decode(archive.folder / f"corrupted.{suffix}")
    assert abs(shift(whole, rest)) <= 0.1


@pytest.fixture(scope="module")
def long_speech(pcm: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The words of the clip over and over, each time in another order, so that no time looks like another."""
    random = np.random.default_rng(8)
    words = pcm[: len(pcm) // 8000 * 8000].reshape(-1, 8000)
    times = round(LONG_SECONDS * SAMPLE_RATE / words.size)
    long = np.concatenate([random.permutation(words) for _ in range(times)]).ravel()
    return corpus.write_wav(tmp_path_factory.mktemp("long") / "long.source", long)


@pytest.mark.parametrize("suffix", LOW_RATES)
def test_what_follows_a_long_gap_keeps_its_time(long_speech: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long.{suffix}"
    ffmpeg("-i", long_speech, *CONTAINERS[suffix], "-b:a", LOW_RATES[suffix], *corpus.BITEXACT, path)
    whole, _ = decode(path)
    path.write_bytes(corpus.corrupted(path.read_bytes()))
    rest, _ = decode(path)
    assert abs(shift(whole, rest)) <= 0.1


def shift(whole: np.ndarray, rest: np.ndarray) -> float:
    """Seconds by which the last third of the one must be moved to lie on the other."""
    start = len(whole) * 2 // 3
    known = whole[start:].astype(np.float64)
    size = 1 << (len(rest) + len(known)).bit_length()
    spectrum = np.fft.rfft(rest.astype(np.float64), size) * np.conj(np.fft.rfft(known, size))
    return float(np.argmax(np.fft.irfft(spectrum, size)[: len(rest)]) - start) / SAMPLE_RATE


def test_a_shift_would_be_seen(pcm: np.ndarray) -> None:
    assert shift(pcm, pcm) == 0.0
    assert shift(pcm, np.delete(pcm, slice(20_000, 28_000))) == -0.5


@pytest.mark.parametrize("suffix", sorted(set(CONTAINERS) - {"g722"}))
def test_channels_that_cancel_out_are_heard(archive: Archive, pcm: np.ndarray, suffix: str) -> None:
    row = archive.last(f"antiphase.{suffix}")
    assert (row["antiphase"], row["status"], row["channels"]) == (True, "ok", 2)
    assert row["channel"] in (0, 1)
    assert row["end"] == pytest.approx(len(pcm) / SAMPLE_RATE, abs=0.1)


def test_a_bomb_is_rejected_after_its_bound(archive: Archive) -> None:
    for name in ("bomb.wav", "bomb.au"):
        row = archive.last(name)
        assert row["status"] == "rejected" and row["decoded_seconds"] < 60 + 10_100 / 8


@pytest.mark.parametrize("suffix", corpus.MANY_STREAMS)
def test_of_64_streams_the_one_that_is_wanted_is_read(archive: Archive, suffix: str) -> None:
    name = f"streams64.{suffix}"
    assert archive.last(name)["status"] == "ok"
    (row,) = archive.rows[name]
    assert row["end"] == pytest.approx(archive.last(f"clean.{suffix}")["end"], abs=0.1)
    for stream, status in ((63, "ok"), (64, "no_audio")):
        decoding = Decoding(archive.folder / name, ReadOptions(stream=stream))
        with closing(iter(decoding)) as chunks:
            assert sum(map(len, chunks)) / SAMPLE_RATE == pytest.approx(row["end"] * (stream < 64), abs=0.1)
        assert decoding.report.status == status


# --- truncation ---------------------------------------------------------------------------------------------------

# MPEG-TS may be cut between two packets of sound, and G.722 has no end at all.
LEAST_NOTICED = dict.fromkeys(CONTAINERS, 1.0) | {"ts": 0.9, "g722": 0.0}


def test_truncation_is_noticed(archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {}
    for suffix, clip in archive.clips.items():
        data = clip.read_bytes()
        places = np.random.default_rng(6).uniform(0.1, 0.98, CUTS)
        path = tmp_path / name_for(clip.name)
        noticed = 0
        for place in places:
            path.write_bytes(corpus.cut(data, place))
            noticed += decode(path)[1].status != "ok"
        rates[suffix] = noticed / CUTS
    with capsys.disabled():
        print("\ntruncation noticed:", ", ".join(f"{suffix} {rate:.0%}" for suffix, rate in rates.items()))
    assert {suffix: rate for suffix, rate in rates.items() if rate < LEAST_NOTICED[suffix]} == {}


# --- length -------------------------------------------------------------------------------------------------------


def test_ten_hours_of_silence_are_read_in_the_memory_of_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "silence.flac"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "36000", *corpus.BITEXACT, path)
    assert path.stat().st_size < 5_000_000
    decoding = Decoding(path, OPTIONS)
    largest = samples = 0
    with closing(iter(decoding)) as chunks:
        for chunk in chunks:
            largest, samples = max(largest, chunk.nbytes), samples + len(chunk)
    assert (decoding.report.status, samples) == ("ok", 36_000 * SAMPLE_RATE)
    assert largest <= 1 << 16


@pytest.mark.skipif(not IS_LONG, reason="takes minutes: set EARWITNESS_CHAOS_FILES")
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.timeout(600)
def test_ten_hours_of_silence_in_any_container(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "archive").mkdir()
    minute, whole = tmp_path / f"minute.{suffix}", tmp_path / "archive" / f"silence.{suffix}"
    silence = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono")
    if suffix == "flac":  # whose frames count their samples: a minute that is joined to another is the same again
        ffmpeg(*silence, "-t", "36000", whole)
    else:
        ffmpeg(*silence, "-t", "60", *CONTAINERS[suffix], minute)
        ffmpeg("-stream_loop", "599", "-i", minute, "-c", "copy", whole)
    (rows,) = read_all(tmp_path / "archive", ReadOptions(voice_activity=False), part_seconds=900.0).values()
    assert not lies(rows)
    assert rows[-1]["end"] == pytest.approx(36_000, rel=0.02)


# --- mutations ----------------------------------------------------------------------------------------------------


def test_mutated_files_end_in_truthful_rows(
    archive: Archive, pcm: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(7)
    (tmp_path / "seeds").mkdir()
    seeds = encode(pcm[:SAMPLE_RATE], tmp_path / "seeds", "seed")
    canary = shutil.copy(archive.clips["m4a"], tmp_path / "canary.m4a")
    mutants = tmp_path / "mutants"
    mutants.mkdir()
    with listening() as (address, asked), closing(Watched(canary)) as watched, exposed(canary):
        scripts = corpus.scripts(tmp_path / "seeds", canary, address)[:: len(CONTAINERS)]
        originals = [path.read_bytes() for path in (*seeds.values(), *scripts)]
        for number in range(FILES):
            suffix = list(CONTAINERS)[number % len(CONTAINERS)]
            name = mutants / f"{number:05}.{suffix}"
            name.write_bytes(corpus.mutated(originals[random.integers(len(originals))], random))
        started = time.monotonic()
        rows = read_all(mutants)
        elapsed = time.monotonic() - started
        assert (watched.was_opened(), asked) == (False, [])
    statuses = Counter(found[-1]["status"] for found in rows.values())
    with capsys.disabled():
        print(f"\n{FILES} mutated files in {elapsed:.0f} s: {dict(statuses.most_common())}")
    assert [lie for found in rows.values() for lie in lies(found)] == []
    assert len(rows) == FILES and statuses["ok"] < FILES / 2
    assert statuses["failed"] <= FILES / 100, "the same would be tried again, and come to the same"


def test_a_mutated_script_would_be_followed(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without its bounds, the reader follows what mutation has left of a script."""
    unbind(monkeypatch, {FORMATS: None, PROTOCOLS: None})
    canary = archive.folder.parent / "canary.m4a"
    original = (archive.folder / "ffconcat-beside.wav").read_bytes()
    random = np.random.default_rng(9)
    for number in range(20):
        (tmp_path / f"{number:02}.wav").write_bytes(corpus.mutated(original, random))
    with closing(Watched(canary)) as watched, exposed(canary):
        read_all(tmp_path)
        assert watched.was_opened()
