"""The row of a run: what it holds, however the run ends, and that it takes the place of no error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import LeaseError, ModelError
from pipeline import catalog
from pipeline.config import Config, RunOptions
from pipeline.history import Record
from pipeline.job import Job, Model
from pipeline.placement import Placement
from pipeline.plan import Plan
from pipeline.records import MANIFEST, MEDIA, RUNS
from pipeline.run import Run, Summary
from pipeline.store import Store
from pipeline.writer import Writer
from tests.writers import WriterAt

PLACE = Placement(model_actors=4, model_cpus=0.0, model_gpus=1.0, threads=1, slots=64, decode_actors=8)
DONE = Summary(
    "f" * 16, listed=9, new=5, changed=2, missing=1, pending=7, parts=70, segments=500, audio_seconds=7200.0,
    elapsed_seconds=90.0, failed_parts=3,
)  # fmt: skip


def run_of(writer: Writer, summary: Summary = DONE, postponed: int = 0, price: float | None = None) -> Run:
    config = Config(run=RunOptions(cost_per_hour=price, precision="float16"))
    job = Job(config, Model("base", "0" * 64, 80), PLACE, writer.objects.address)
    plan = Plan(MANIFEST.empty_table(), MEDIA.empty_table(), 30.0, 0.0, postponed=postponed)
    return Run(job, plan, replace(summary, remaining=summary.remaining + postponed), writer)


def rows(store: Store) -> list[dict[str, Any]]:
    return catalog.query(store, "FROM runs ORDER BY started_at").to_pylist()


@pytest.fixture
def writer(tmp_path: Path, writer_at: WriterAt) -> Writer:
    return writer_at(str(tmp_path / "tables"))


def test_a_run_leaves_a_row(destination: str, writer_at: WriterAt) -> None:
    writer = writer_at(destination)
    told: list[dict[str, Any]] = []
    with Record(run_of(writer, price=2.0), "ingest", told.append):
        assert rows(writer) == []
    (row,) = rows(writer)
    assert row == told[0] and list(row) == RUNS.names
    assert (row["command"], row["ended"], row["error"], row["generation"]) == ("ingest", "done", None, "f" * 16)
    assert (row["listed"], row["new"], row["changed"], row["missing"], row["pending"]) == (9, 5, 2, 1, 7)
    assert (row["audio_hours"], row["speed"]) == (2.0, 80.0)
    assert (row["worker_seconds"], row["gpu_seconds"], row["cost_estimate"]) == (360.0, 360.0, 0.2)
    assert row["started_at"] <= row["ended_at"] and row["host"]


def test_without_a_price_there_is_no_cost(writer: Writer) -> None:
    with Record(run_of(writer), "transcribe"):
        pass
    assert rows(writer)[0]["cost_estimate"] is None


@pytest.mark.parametrize(
    ("left_in_time", "postponed", "ended"),
    [(0, 0, "done"), (0, 4, "max_hours"), (3, 0, "deadline"), (3, 4, "deadline")],
)
def test_what_is_left_says_how_it_ended(writer: Writer, left_in_time: int, postponed: int, ended: str) -> None:
    with Record(run_of(writer, replace(DONE, remaining=left_in_time), postponed), "ingest"):
        pass
    assert [(row["ended"], row["remaining"]) for row in rows(writer)] == [(ended, left_in_time + postponed)]


@pytest.mark.parametrize(
    ("error", "ended", "said"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(15), "interrupted", None),
        (ModelError("The weights are gone: get them."), "error", "The weights are gone: get them."),
        (ValueError("first line\nsecond line"), "error", "ValueError: first line"),
        (ValueError(), "error", "ValueError: "),
    ],
    ids=["interrupted", "terminated", "user's error", "bug", "silent bug"],
)
def test_an_end_that_nobody_wanted_is_told(writer: Writer, error: BaseException, ended: str, said: str | None) -> None:
    with pytest.raises(type(error)), Record(run_of(writer), "transcribe"):
        raise error
    assert [(row["ended"], row["error"], row["remaining"]) for row in rows(writer)] == [(ended, said, None)]


def test_who_lost_the_lease_leaves_no_row_and_the_first_error_stays(writer: Writer) -> None:
    run = run_of(writer)
    writer.objects.create(f"lease/{writer.lease.epoch + 1:08d}.json", b'{"host": "other", "machine": "", "pid": 1, '
                          b'"born": "", "taken_at": "now", "seconds": 30.0, "token": "x"}')  # fmt: skip
    writer.lease._beat()
    with pytest.raises(ModelError), Record(run, "transcribe"):
        raise ModelError("The weights are gone: get them.")
    with pytest.raises(LeaseError, match="has been taken over by process 1 on other"), Record(run, "transcribe"):
        pass
    assert rows(writer) == []


def test_the_row_has_the_name_of_the_configuration(writer: Writer) -> None:
    run = run_of(writer)
    with Record(run, "transcribe"):
        run.run_id = writer.add_run(run.job.config, run.summary.generation)
    assert [row["run_id"] for row in rows(writer)] == [kept["run"] for kept in writer.runs()] == [run.run_id]
