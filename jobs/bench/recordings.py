"""Audio with what is said in it: the input of every measurement, read from any folder of transcripts.

A folder holds `NAME.wav` (or another audio file) beside `NAME.txt`; subfolders that are called by a language code say
what is spoken below them. It refuses to know who listens, and how well.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE
from model.errors import SourceError
from model.languages import LANGUAGES
from pipeline.media import Decoding

SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")


@dataclass(frozen=True)
class Recording:
    """One file, its length in seconds, and what is said in it."""

    name: str  # of the file within its folder, without its suffix
    path: Path
    seconds: float
    text: str
    spoken: str | None  # code of the language, None where nobody said
    language: str | None = None  # what the listener is told


def read_folder(folder: Path) -> list[Recording]:
    """Every audio file below `folder` that has a transcript beside it, by name.

    Raises: `SourceError` when there is none.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    found = [_recording(folder, path) for path in paths if path.with_suffix(".txt").is_file()]
    if not found:
        raise SourceError(
            f"{folder} holds no audio with a transcript: put NAME.txt beside NAME.wav, or get prompts with "
            f"`earwitness bench --fetch {folder}`."
        )
    return found


def read_pcm(path: Path) -> NDArray[np.int16]:
    """(n,) samples of one file at 16 kHz.

    Raises: `SourceError` when ffmpeg finds no sound in it.
    """
    decoding = Decoding(path)
    chunks = list(decoding)
    if not chunks:
        raise SourceError(f"{path} cannot be heard ({decoding.report.error}): remove it and its transcript.")
    return np.concatenate(chunks)


def total_seconds(recordings: Sequence[Recording]) -> float:
    return sum(recording.seconds for recording in recordings)


def _recording(folder: Path, path: Path) -> Recording:
    inside = path.relative_to(folder)
    spoken = inside.parts[0] if len(inside.parts) > 1 and inside.parts[0] in LANGUAGES else None
    text = " ".join(path.with_suffix(".txt").read_text(encoding="utf-8").split())
    return Recording(str(inside.with_suffix("")), path, _seconds(path), text, spoken)


def _seconds(path: Path) -> float:
    """The length of a file; by its header where that is a plain wave's, else by decoding it."""
    try:
        with wave.open(str(path)) as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError):
        return len(read_pcm(path)) / SAMPLE_RATE
