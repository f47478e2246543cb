"""`earwitness retry`: the parts that a condition in SQL picks are read and transcribed again, as they were asked for.

What comes of it takes the place of those parts in the views, unless it has no text and they have. A part that is shown
for a copy, an object with the same bytes as another, is the part of its owner: retrying either retries the one
transcript that both show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs import console
from jobs.cluster import Machines, ray_session
from jobs.transcribe import Watcher
from model.errors import DestinationError, ModelError
from pipeline import catalog
from pipeline.config import Config, configured
from pipeline.history import Record
from pipeline.job import Job, Model
from pipeline.ledger import ledger_of
from pipeline.placement import place
from pipeline.plan import plan_again
from pipeline.recovery import recover
from pipeline.run import SECONDS_PER_HOUR, Run, Summary
from pipeline.store import Store
from pipeline.tally import Tally
from pipeline.writer import Writer

# The condition stands on lines of its own, so that a comment at its end ends there.
PICKED = """
    SELECT DISTINCT coalesce(same_as, media_id) AS media_id, "index", generation, status, error,
        "end" - "start" AS seconds
    FROM parts WHERE (
{where}
)"""
REASONS_SHOWN = 20


@dataclass(frozen=True)
class Request:
    """Which parts of the tables at `to` to do again, and on which Ray: no address is this machine."""

    to: str
    where: str
    address: str | None = None
    dry_run: bool = False


def execute(request: Request, watcher: Watcher, tell: Callable[[pa.Table], None]) -> list[Summary]:
    """Do the picked parts again, one run for each generation among them; returns what was done, nothing in a dry run.

    tell: takes the picked parts, rows of PICKED. Raises: `UsageError` when the condition is none over the view `parts`;
    `LeaseError` while another process writes; `DestinationError` when a configuration is not kept; `ModelError` when
    the weights are others now.
    """
    picked = pick(Store.open(request.to), request.where)
    tell(picked)
    if request.dry_run or not picked.num_rows:
        return []
    with ExitStack() as stack:
        writer = stack.enter_context(Writer.open(request.to, on_wait=watcher.waiting))
        if recover(writer):  # perhaps of a retry like this one
            picked = pick(writer, request.where)
        machines = stack.enter_context(ray_session(request.address))
        return [
            _run(writer, generation, picked.filter(pc.equal(picked["generation"], generation)), machines, watcher)
            for generation in sorted(picked["generation"].unique().to_pylist())
        ]


def pick(store: Store, where: str) -> pa.Table:
    """The parts that fit the condition, under the names of those who own them.

    It is run behind the locks of `pipeline/catalog.py`. Raises: `UsageError` when it cannot be.
    """
    with closing(catalog.connect(store)) as connection:
        return catalog.select(connection, PICKED.format(where=where))


def show_picked(picked: pa.Table) -> None:
    """Print how many parts, files and hours fit, by what became of them before."""
    if not picked.num_rows:
        console.out.print("No part fits the condition: nothing to do again.")
        return
    counts = [("index", "count"), ("media_id", "count_distinct"), ("seconds", "sum")]
    reasons = picked.group_by(["status", "error"]).aggregate(counts).sort_by([("index_count", "descending")])
    reasons = reasons.rename_columns(["status", "error", "parts", "files", "seconds"])
    hours = pc.round(pc.divide(reasons["seconds"], SECONDS_PER_HOUR), 2)
    console.show(reasons.drop_columns(["seconds"]).append_column("hours", hours).slice(0, REASONS_SHOWN))
    if reasons.num_rows > REASONS_SHOWN:
        console.out.print(f"and {reasons.num_rows - REASONS_SHOWN} reasons more")


def print_picked(picked: pa.Table) -> None:
    """Print how many parts, files and hours fit, as one line of JSON."""
    hours = (pc.sum(picked["seconds"]).as_py() or 0.0) / SECONDS_PER_HOUR
    files = pc.count_distinct(picked["media_id"]).as_py()
    print(json.dumps({"parts": picked.num_rows, "files": files, "hours": round(hours, 3)}))


def kept_config(store: Store, generation: str) -> Config:
    """The Config of the latest run of a generation, but for what was chosen for the machines of that run.

    Raises: `DestinationError` when none is kept.
    """
    kept = [run["config"] for run in store.runs() if run["generation"] == generation]
    if not kept:
        raise DestinationError(
            f"{store.objects.url} keeps no run of generation {generation}, so nobody knows how to do it again: "
            f"transcribe those files to a new destination."
        )
    given = _as_given(kept[-1])
    if given["read"]["part_seconds"] is not None:
        given["read"]["part_seconds"] = float(given["read"]["part_seconds"])  # infinity is kept as the text "inf"
    config = configured(flags=given)
    return replace(config, run=replace(config.run, gpus=None, slots=None, model_actors=None, decode_actors=None))


def _run(writer: Writer, generation: str, picked: pa.Table, machines: Machines, watcher: Watcher) -> Summary:
    """One run over the picked parts of a generation."""
    config = kept_config(writer, generation)
    placement = place(config.run, machines.resources, machines.nodes, machines.cores_per_node)
    job = Job(config, Model.of(config), placement, writer.objects.address)
    if job.generation != generation:
        raise ModelError(
            f"The weights of {config.model} are not those that generation {generation} was made with: install the "
            f"same again, or transcribe anew with these."
        )
    with ledger_of(writer, generation) as ledger:
        plan = plan_again(picked, ledger)
    run = Run(job, plan, Summary(generation, listed=plan.listed, pending=plan.pending), writer)
    watcher.planned(run)
    tally = Tally.start()
    with Record(run, "retry", watcher.recorded), watcher.running(run, tally):
        run.execute(tally)
    watcher.finished(run.summary)
    return run.summary


def _as_given(kept: Any) -> Any:
    """What was kept as JSON, as it would be given: with tuples for lists."""
    if isinstance(kept, Mapping):
        return {name: _as_given(item) for name, item in kept.items()}
    return tuple(map(_as_given, kept)) if isinstance(kept, list) else kept
