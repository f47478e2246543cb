"""What is measured: one long file, an hour in six files, many short clips, or a folder as it is.

The long files are made of a folder's clips, in an order and with gaps drawn from a fixed seed, and kept in the cache:
the same clips always give the same bytes. It refuses to know who transcribes them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import wave
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jobs.bench.recordings import Recording, read_folder, read_pcm, total_seconds
from jobs.samples import fetch_samples
from model.dimensions import SAMPLE_RATE
from model.errors import SourceError

FILES = {"long": 1, "hour": 6}
SUITES = (*FILES, "clips", "folder")

FILE_SECONDS = 600.0
WARM_UP_SECONDS = 60.0
CLIP_SECONDS = (1.5, 25.0)  # from a short sentence to what one window holds
CLIPS = 250
GAP_SECONDS = (0.3, 0.8)  # between the clips of a long file
SEED = 1


@dataclass(frozen=True)
class Suite:
    """What every contender transcribes in every round, and what it may get used to before."""

    name: str
    recordings: tuple[Recording, ...]
    warm_up: tuple[Recording, ...]
    language: str | None  # that all are told

    @property
    def seconds(self) -> float:
        return total_seconds(self.recordings)


def make_suite(name: str, folder: Path, language: str | None) -> Suite:
    """The suite of this name, made of the recordings in `folder`.

    language: what the contenders are told; for long files English, else nothing, unless it is given.

    Raises: `SourceError` when the folder holds nothing that serves.
    """
    found = read_folder(folder)
    if name in FILES:
        language = language or "en"
        made = _long_files(name, [r for r in found if r.spoken in (language, None)], language)
        return Suite(name, tuple(made[1:]), tuple(made[:1]), language)
    if name == "clips":
        found = _choose([*read_folder(fetch_samples()), *found])
    told = tuple(replace(recording, language=language, spoken=recording.spoken or language) for recording in found)
    return Suite(name, told, _first(told, WARM_UP_SECONDS), language)


def _choose(recordings: Iterable[Recording]) -> list[Recording]:
    """CLIPS recordings of the right length, as many of each language as there are, in a mixed order."""
    random = np.random.default_rng(SEED)
    by_language: defaultdict[str, list[Recording]] = defaultdict(list)
    for recording in _of_right_length(recordings):
        by_language[recording.spoken or ""].append(recording)
    mixed = [[clips[i] for i in random.permutation(len(clips))] for _, clips in sorted(by_language.items())]
    turns = itertools.zip_longest(*mixed)
    chosen = [recording for turn in turns for recording in turn if recording is not None][:CLIPS]
    return [chosen[i] for i in random.permutation(len(chosen))]


def _of_right_length(recordings: Iterable[Recording]) -> list[Recording]:
    shortest, longest = CLIP_SECONDS
    fitting = [recording for recording in recordings if shortest <= recording.seconds <= longest]
    if not fitting:
        raise SourceError(
            f"No recording in the language lasts {shortest:g} to {longest:g} seconds: give a folder of such clips, or "
            f"--suite folder."
        )
    return fitting


def _first(recordings: tuple[Recording, ...], seconds: float) -> tuple[Recording, ...]:
    """The first recordings that last so long together."""
    lengths = itertools.accumulate(recording.seconds for recording in recordings)
    return recordings[: 1 + sum(length < seconds for length in lengths)]


def _long_files(name: str, recordings: Sequence[Recording], language: str) -> list[Recording]:
    """A file to warm up with, then those of the suite; made once, then found in the cache."""
    clips = _of_right_length(recordings)
    folder = _cache() / f"{name}-{_digest(clips)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            _make(made, clips, [WARM_UP_SECONDS, *[FILE_SECONDS] * FILES[name]])
            made.rename(folder)
    return [replace(recording, spoken=language, language=language) for recording in read_folder(folder)]


def _make(folder: Path, clips: Sequence[Recording], lengths: Sequence[float]) -> None:
    """One file for each of `lengths`, which is its least number of seconds; every file in another order."""
    random = np.random.default_rng(SEED)
    with ThreadPoolExecutor() as pool:
        pcm = list(pool.map(lambda clip: read_pcm(clip.path), clips))
    for number, seconds in enumerate(lengths):
        pieces, texts, size = [], [], 0
        for index in itertools.chain.from_iterable(random.permutation(len(clips)) for _ in itertools.count()):
            gap = np.zeros(round(random.uniform(*GAP_SECONDS) * SAMPLE_RATE), np.int16)
            pieces += [pcm[index], gap]
            texts.append(clips[index].text)
            size += len(pcm[index]) + len(gap)
            if size >= seconds * SAMPLE_RATE:
                break
        _write(folder / f"{number}.wav", np.concatenate(pieces), " ".join(texts))


def _write(path: Path, pcm: np.ndarray[tuple[int], np.dtype[np.int16]], text: str) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    path.with_suffix(".txt").write_text(text, encoding="utf-8")


def _digest(clips: Sequence[Recording]) -> str:
    """Name of all that decides the bytes of the long files, 12 hex digits."""
    recipe = (SEED, FILE_SECONDS, WARM_UP_SECONDS, GAP_SECONDS)
    named = [f"{recipe}", *(f"{clip.name} {clip.seconds} {clip.text}" for clip in clips)]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:12]


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "earwitness" / "bench"
