"""Real weights, real speech and openai-whisper, each loaded once, and every run of the reference made once.

Skipped with a reason where the extras `parity` and `demo` are not installed or the sample clips cannot be fetched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.samples import assemble, clips, fetch_samples
from model.dimensions import SAMPLE_RATE
from model.errors import ModelError, SourceError
from model.features import pcm_to_float
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.whisper import from_state
from pipeline.weights import load_model
from tests.parity.comparison import Comparison, compare
from tests.parity.recorded import OurRun, Ours, RememberingNet

THREADS = 2
Audio = dict[str, NDArray[np.float32]]
LISTED = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List what the one exception was made for."""
    for line in config.stash.get(LISTED, []):
        terminalreporter.write_line(f"parity: {line}")


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def samples() -> Path:
    try:
        return fetch_samples()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def audio(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Audio:
    """The 27 clips, all of them in one part of three windows, and what is no speech at all; float32 at 16 kHz."""
    long = assemble(samples, tmp_path_factory.mktemp("long") / "long.wav")
    heard = {f"{path.parent.name}/{path.stem}": _decode(path) for path in clips(samples)} | {"long": _decode(long)}
    random = np.random.default_rng(0)
    seconds = np.arange(35 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    heard["noise"] = random.normal(0, 0.05, 20 * SAMPLE_RATE).astype(np.float32)
    heard["silence"] = np.zeros(20 * SAMPLE_RATE, np.float32)
    heard["tone"] = (0.3 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    return heard


def _decode(path: Path) -> NDArray[np.float32]:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", "16000", "-"]
    pcm = subprocess.run(command, capture_output=True, check=True).stdout
    return pcm_to_float(np.frombuffer(pcm, np.int16))


@dataclass
class Sides:
    """Both sides on the weights of one checkpoint."""

    name: str
    ours: Ours
    plain: Ours  # nothing remembered: every run encodes for itself
    reference: Any  # tests.parity.reference.Reference


@pytest.fixture(scope="session")
def sides() -> Callable[[str], Sides]:
    """Both sides of a model, by its name."""

    @cache
    def load(name: str) -> Sides:
        pytest.importorskip("whisper", reason="the extra `parity` is not installed")
        from tests.parity.reference import Reference

        try:
            checkpoint = load_model(name)
        except ModelError as error:
            pytest.skip(str(error))
        net = from_state(checkpoint.dims, checkpoint.state)
        tokenizer = Tokenizer.for_dimensions(checkpoint.dims)
        return Sides(name, Ours(RememberingNet(net), tokenizer), Ours(net, tokenizer), Reference(checkpoint))

    return load


@dataclass
class Matrix:
    """Every combination of model, previous text and temperatures, over all audio, each made once."""

    sides: Callable[[str], Sides]
    audio: Audio
    listed: list[str]

    def __post_init__(self) -> None:
        self.theirs = cache(self.theirs)  # type: ignore[method-assign]
        self.compared = cache(self.compared)  # type: ignore[method-assign]

    def theirs(self, model: str, previous_text: bool, temperatures: tuple[float, ...]) -> dict[str, Any]:
        options = {"condition_on_previous_text": previous_text, "temperature": temperatures}
        reference = self.sides(model).reference
        return {name: reference.run(samples, **options) for name, samples in self.audio.items()}

    def compared(self, model: str, previous_text: bool, temperatures: tuple[float, ...]) -> Comparison:
        theirs = self.theirs(model, previous_text, temperatures)
        options = DecodeOptions(previous_text=previous_text, temperatures=temperatures)
        return self.compare(model, self.sides(model).ours.run(self.audio, options), theirs)

    def compare(self, model: str, ours: dict[str, OurRun], theirs: dict[str, Any], same: bool = False) -> Comparison:
        gap = self.sides(model).reference.top_two_gap
        parts = [compare(f"{model} {name}", ours[name], theirs[name], gap, same) for name in self.audio]
        total = sum(parts, start=Comparison())
        self.listed += [f"near tie, {tie}" for tie in total.ties]
        return total


@pytest.fixture(scope="session")
def matrix(sides: Callable[[str], Sides], audio: Audio, request: pytest.FixtureRequest) -> Matrix:
    return Matrix(sides, audio, request.config.stash.setdefault(LISTED, []))
