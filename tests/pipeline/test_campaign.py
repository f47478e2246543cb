"""Slices, their jobs and their publisher, with jobs that are told how to end; real ones are in tests/jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.errors import EarwitnessError, ModelError
from pipeline import catalog
from pipeline.announcements import Announcements
from pipeline.campaign import ATTEMPTS, Campaign, Ended, read_manifest, remaining
from pipeline.config import Config, RunOptions
from pipeline.job import Job, Model
from pipeline.objects import ObjectStore
from pipeline.placement import Placement
from pipeline.plan import Plan
from pipeline.records import MANIFEST, MEDIA, PARTS
from pipeline.run import Run, Summary
from pipeline.sink import prepare
from pipeline.writer import Writer
from tests.writers import WriterAt

PARTS_EACH = 3
Results = Callable[..., pa.Table]
CONFIG = Config(run=RunOptions(publish_seconds=0, precision="float32"))


def manifest(*files: str, **changes: Any) -> pa.Table:
    row = {"version": "v", "bytes": 32_000, "part_seconds": 60.0, "done_parts": [], "parts_total": None, "attempt": 1}
    return pa.Table.from_pylist(
        [{"media_id": name, "uri": f"s3://archive/{name}.mp3"} | row | changes for name in files], schema=MANIFEST
    )


def stored(*parts: tuple[str, int, bool]) -> pa.Table:
    schema = pa.schema([PARTS.field(name) for name in ("media_id", "index", "is_last")])
    return pa.Table.from_pylist([dict(zip(schema.names, part, strict=True)) for part in parts], schema=schema)


@dataclass
class Obedient:
    """Jobs that prepare and announce all parts they are given but the last `withheld`, and end as they are told."""

    objects: ObjectStore
    results: Results
    ends: dict[str, Ended | None] = field(default_factory=dict)  # by the name of a slice and its attempt
    withheld: dict[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def start(self, folder: str) -> None:
        name = folder.rpartition("/")[2]
        self.started.append(name)
        line = Announcements(self.objects, folder)
        parts = [
            self.results(row["media_id"], PARTS_EACH).slice(index, 1)
            for row in read_manifest(self.objects, folder).to_pylist()
            for index in range(PARTS_EACH)
            if index not in row["done_parts"]
        ]
        for part in parts[: len(parts) - self.withheld.get(name, 0)]:
            line.put([prepare(self.objects, part)])

    def ended(self, folder: str) -> Ended | None:
        return self.ends.get(folder.rpartition("/")[2], Ended(well=True))

    def stop(self, folder: str) -> None:
        self.stopped.append(folder.rpartition("/")[2])


@pytest.fixture
def run(tmp_path: Path, writer_at: WriterAt) -> Run:
    """Six pending files."""
    job = Job(CONFIG, Model("base", "0" * 64, 80), Placement(1, 1.0, 0.0, 1, 1, 1), str(tmp_path / "tables"))
    plan = Plan(manifest(*"abcdef"), MEDIA.empty_table(), 60.0, 6.0)
    return Run(job, plan, Summary(job.generation, pending=6), writer_at(str(tmp_path / "tables")))


@pytest.fixture
def jobs(run: Run, results: Results) -> Obedient:
    assert run.writer is not None
    generation = run.job.generation
    return Obedient(run.writer.objects, lambda *args: results(*args, generation=generation))


def publish(run: Run, jobs: Obedient, count: int) -> None:
    with Campaign(run, jobs, count) as campaign:
        for shards in campaign.waves():
            assert run.writer is not None
            run.writer.publish(shards)


def rows(run: Run) -> list[tuple[str, int]]:
    assert isinstance(run.writer, Writer)
    table = catalog.query(run.writer, 'SELECT media_id, "index" FROM parts ORDER BY ALL')
    return [(row["media_id"], row["index"]) for row in table.to_pylist()]


EVERYTHING = [(name, index) for name in "abcdef" for index in range(PARTS_EACH)]


def test_every_slice_is_one_job_and_all_they_announce_is_published(run: Run, jobs: Obedient) -> None:
    publish(run, jobs, 4)
    assert jobs.started == ["0000-1", "0001-1", "0002-1", "0003-1"]
    assert rows(run) == EVERYTHING
    assert jobs.stopped == []
    assert jobs.objects.list("submissions") == {}, "nobody needs what was announced any more"


def test_a_slice_that_ends_early_is_started_again_with_what_is_left(run: Run, jobs: Obedient) -> None:
    jobs.ends = {"0001-1": Ended(well=False), "0001-2": Ended(well=False)}
    jobs.withheld = {"0001-1": 4, "0001-2": 1}
    publish(run, jobs, 2)
    assert jobs.started == ["0000-1", "0001-1", "0001-2", "0001-3"]
    assert rows(run) == EVERYTHING


def test_a_slice_that_ended_badly_with_nothing_left_is_done(run: Run, jobs: Obedient) -> None:
    jobs.ends = {"0000-1": Ended(well=False)}
    publish(run, jobs, 2)
    assert jobs.started == ["0000-1", "0001-1"]
    assert rows(run) == EVERYTHING


def test_a_slice_that_never_gets_done_ends_the_campaign_and_the_others(run: Run, jobs: Obedient) -> None:
    bad = Ended(well=False)
    jobs.ends = {f"0000-{attempt}": bad for attempt in range(1, ATTEMPTS + 1)} | {"0001-1": None}
    jobs.withheld = {f"0000-{attempt}": 1 for attempt in range(1, ATTEMPTS + 1)}
    with pytest.raises(EarwitnessError, match=f"^Slice 0 of the archive ended {ATTEMPTS} times before it was done"):
        publish(run, jobs, 2)
    assert jobs.stopped == ["0001-1"]
    assert len(rows(run)) == len(EVERYTHING) - 1, "what was announced is published"


def test_an_error_that_others_would_meet_as_well_is_not_tried_again(run: Run, jobs: Obedient) -> None:
    jobs.ends = {"0000-1": Ended(well=False, error=ModelError("No such weights.")), "0001-1": None}
    with pytest.raises(ModelError, match="No such weights."):
        publish(run, jobs, 2)
    assert (jobs.started, jobs.stopped) == (["0000-1", "0001-1"], ["0001-1"])


def test_a_publisher_that_is_interrupted_stops_its_jobs(run: Run, jobs: Obedient) -> None:
    jobs.ends = {"0000-1": None, "0001-1": None}
    with pytest.raises(KeyboardInterrupt), Campaign(run, jobs, 2) as campaign:
        next(iter(campaign.waves()))
        raise KeyboardInterrupt
    assert jobs.stopped == ["0000-1", "0001-1"]


def test_what_a_dead_publisher_was_told_is_forgotten(run: Run, jobs: Obedient) -> None:
    Announcements(jobs.objects, "submissions/00000000/0000-1").put([{"parts_path": "data/x/long_gone.parquet"}])
    publish(run, jobs, 2)
    assert rows(run) == EVERYTHING


def test_what_is_left_of_a_manifest() -> None:
    files = manifest("untouched", "begun", "whole", "gap", "failed")
    left = remaining(
        files,
        stored(
            ("begun", 0, False),
            ("whole", 1, True),
            ("whole", 0, False),
            ("gap", 2, True),
            ("gap", 0, False),
            ("failed", 0, True),
        ),
    )
    assert left["media_id"].to_pylist() == ["untouched", "begun", "gap"]
    assert left["done_parts"].to_pylist() == [[], [0], [0, 2]]
    assert left.schema == MANIFEST


def test_what_an_earlier_run_has_done_counts_as_well() -> None:
    files = manifest("half", done_parts=[0, 3], parts_total=4)
    (row,) = remaining(files, stored(("half", 1, False))).to_pylist()
    assert row["done_parts"] == [0, 1, 3]
    assert remaining(files, stored(("half", 1, False), ("half", 2, False))).num_rows == 0
