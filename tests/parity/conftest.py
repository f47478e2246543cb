"""Real weights, real speech and openai-whisper, each loaded once, and every run of the reference made once.

Skipped with a reason where the extras `parity` and `demo` are not installed or the sample clips cannot be fetched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
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
from model.tokenizer import Tokenizer
from model.whisper import from_state
from pipeline.weights import load_model
from tests.parity.matrix import Audio, Matrix, Sides
from tests.parity.recorded import Ours, RememberingNet

LISTED = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List what the one exception was made for."""
    for line in config.stash.get(LISTED, []):
        terminalreporter.write_line(f"parity: {line}")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs stand side by side instead, two at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
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
    seconds = np.arange(10 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    heard["noise"] = random.normal(0, 0.05, 10 * SAMPLE_RATE).astype(np.float32)
    heard["silence"] = np.zeros(10 * SAMPLE_RATE, np.float32)
    heard["tone"] = (0.3 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    return heard


def _decode(path: Path) -> NDArray[np.float32]:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", "16000", "-"]
    pcm = subprocess.run(command, capture_output=True, check=True).stdout
    return pcm_to_float(np.frombuffer(pcm, np.int16))


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
        return Sides(Ours(RememberingNet(net), tokenizer), Reference(checkpoint))

    return load


@pytest.fixture(scope="session")
def matrix(sides: Callable[[str], Sides], audio: Audio, request: pytest.FixtureRequest) -> Matrix:
    return Matrix(sides, audio, request.config.stash.setdefault(LISTED, []))
