"""What is found out about a model before a job starts, and that a job can be sent anywhere."""

from __future__ import annotations

import pickle

import pytest

from model.errors import ModelError, UsageError
from model.options import DecodeOptions
from pipeline.config import Config, RunOptions
from pipeline.job import Job, Model
from pipeline.placement import place
from tests.pipeline.runs import TINY


def asking(**decode: object) -> Config:
    return Config(model=TINY, decode=DecodeOptions(**decode))  # type: ignore[arg-type]


def test_a_model_is_known_by_its_weights(tiny: Model) -> None:
    assert (tiny.name, tiny.n_mels, len(tiny.sha256)) == (TINY, 80, 64)
    assert Model.of(asking(language="en")) == tiny


def test_a_language_that_the_model_lacks_is_found_out_before_anything_starts(tiny: Model) -> None:
    with pytest.raises(UsageError, match="en"):
        Model.of(asking(language="fr"))
    with pytest.raises(UsageError, match="translate"):
        Model.of(asking(task="translate"))


def test_a_token_that_does_not_exist_cannot_be_suppressed(tiny: Model) -> None:
    with pytest.raises(UsageError, match="99999"):
        Model.of(asking(suppress_tokens=(99_999,)))


def test_hotwords_that_no_prompt_has_room_for_are_refused(tiny: Model) -> None:
    with pytest.raises(UsageError, match="hotwords takes 300 tokens"):
        Model.of(asking(hotwords="so " * 300))
    assert Model.of(asking(hotwords="so " * 200)) == tiny


def test_a_model_that_is_nowhere_is_named() -> None:
    with pytest.raises(ModelError, match="There is no model 'tinny'.*closest: tiny"):
        Model.of(Config(model="tinny"))


def test_a_job_is_small_and_travels(tiny: Model) -> None:
    config = Config(model=TINY, run=RunOptions(precision="float32"))
    job = Job(config, tiny, place(config.run, {"CPU": 8.0}, 1, 8), "s3://bucket/tables")
    sent = pickle.dumps(job)
    assert pickle.loads(sent) == job and len(sent) < 4096
    assert job.generation == config.generation(tiny.sha256)
