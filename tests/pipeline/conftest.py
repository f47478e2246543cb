"""What the tests of the stages share: Ray on two CPUs, real weights, real speech, and the engine run alone."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.s3_server import S3Server
from jobs.cluster import Machines, ray_session
from jobs.samples import assemble, fetch_samples
from model.dimensions import HOP_LENGTH
from model.engine import Engine
from model.errors import ModelError, SourceError
from model.features import log_mel, pcm_to_float
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import from_state
from pipeline.config import Config
from pipeline.job import Model
from pipeline.store import Store
from pipeline.tally import Counts, Tally
from pipeline.voice import Voice, speech_of
from pipeline.weights import load_model
from tests.pipeline.runs import PATIENCE_SECONDS, STATUSES, THREADS, TINY, Alone, Done, planned


@pytest.fixture(scope="session")
def machines(s3: S3Server) -> Iterator[Machines]:
    """Ray with two CPUs, for all tests of a session. Its workers inherit the environment, so the S3 server is first."""
    assert s3.env.items() <= os.environ.items()
    with ray_session(None, Machines({"CPU": float(THREADS), "GPU": 0.0}, 1, THREADS)) as started:
        yield started


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def samples() -> Path:
    try:
        return fetch_samples()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny() -> Model:
    """tiny.en, as a job is told of it."""
    try:
        return Model.of(Config(model=TINY))
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def alone(tiny: Model) -> Alone:
    """Transcribes samples, (n,) int16, as a part of that name, by an engine that does nothing else meanwhile."""
    checkpoint = load_model(tiny.name)
    net = from_state(checkpoint.dims, checkpoint.state)
    engine = Engine(net, Tokenizer.for_dimensions(checkpoint.dims), DecodeOptions(), slots=1)
    voice = Voice()

    def transcribe(part_id: str, pcm: np.ndarray) -> Transcript:
        before = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        speech = speech_of(voice.probabilities(pcm), len(pcm)).spans
        part = Part(part_id, log_mel(pcm_to_float(pcm), tiny.n_mels), len(pcm) // HOP_LENGTH, speech)
        future = engine.submit(part)
        engine.drain()
        torch.set_num_threads(before)
        return future.result(timeout=0)

    return transcribe


@pytest.fixture(scope="session")
def archive(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven files: three clips, all of them as one file of several parts, one cut short, one no audio and one empty."""
    root = tmp_path_factory.mktemp("run")
    shutil.copytree(samples / "en", root / "clips" / "en")
    folder = root / "archive"
    (folder / "broken").mkdir(parents=True)
    for clip in (root / "clips" / "en").glob("*.wav"):
        shutil.copy(clip, folder)
    assemble(root / "clips", folder / "long.wav", repeat=2)
    whole = (folder / "quick_brown_fox.wav").read_bytes()
    (folder / "broken" / "cut_short.wav").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "broken" / "empty.wav").touch()
    (folder / "broken" / "shopping_list.mp3").write_text("bread, milk, a new microphone\n")
    return folder


@pytest.fixture(scope="session")
def undisturbed(archive: Path, machines: Machines, tiny: Model) -> Done:
    """The run that all others are compared with."""
    folder = archive.parent / "undisturbed"
    with planned(archive, folder, machines) as run:
        tally = Tally.start()
        run.execute(tally)
    return Done(Store.open(str(folder)), run.summary, _settled(tally), folder)


def _settled(tally: Tally) -> Counts:
    """The counts when nothing arrives any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (counts := tally.counts()).files_read < len(STATUSES) and time.monotonic() < deadline:
        time.sleep(0.1)
    return counts
