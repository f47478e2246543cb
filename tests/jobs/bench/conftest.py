"""What the tests of the benchmark share: recordings that are made, and a setup of one thread."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.contenders import Setup
from jobs.samples import fetch_samples

RATE = 8000


@pytest.fixture
def say() -> Callable[..., Path]:
    """Writes a tone of so many seconds, whose pitch is its own, and what it "says" beside it."""

    def write(path: Path, text: str, seconds: float = 2.0, pitch: int = 300) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * RATE)) / RATE
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((8000 * np.sin(2 * np.pi * pitch * time)).astype(np.int16).tobytes())
        path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Setup("tiny.en", threads=1, scratch=str(scratch), slots=4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the sample clips only, for what is made once and then found."""
    samples, folder = fetch_samples(), tmp_path / "cache" / "earwitness"
    folder.mkdir(parents=True)
    (folder / samples.name).symlink_to(samples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    return folder
