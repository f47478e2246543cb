"""The job of an archive: lists, plans, holds the lease and publishes; alone, or with one job for each of its slices.

    python -m jobs.coordinator ORDER

Up to `gpus_per_job` GPUs it does all itself, exactly as `earwitness transcribe --address auto` would. What it has to
tell stands on lines of its log (`jobs/orders.py`). Started by `earwitness submit`, or by whatever else starts Ray Jobs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError

from jobs import orders
from jobs.cluster import prepare_environment, ray_session
from jobs.console import count, duration
from jobs.orders import Order, event
from jobs.progress import beside, describe, plan_line
from jobs.ray_jobs import RayJobs
from jobs.slice_jobs import SliceJobs, stop_orphans
from jobs.transcribe import Request, Watcher, execute
from model.errors import UsageError
from pipeline.board import Board
from pipeline.campaign import Campaign
from pipeline.lease import Holder
from pipeline.placement import shares
from pipeline.register import Register
from pipeline.run import Run, Summary
from pipeline.slices import slices_needed
from pipeline.tally import Tally

AWAIT_SECONDS = 3600.0  # for an autoscaler to find a machine
PROGRESS_SECONDS = 2.0  # between two events; a night has 20,000 of 120 bytes


class Telling(Watcher):
    """Tells how the run goes in events; `name` is that of this job."""

    def waiting(self, holder: Holder, seconds: float) -> None:
        sentence = f"Waiting up to {duration(seconds)} to see whether {holder} still writes there."
        event(orders.WAITING, sentence=sentence)

    def planned(self, run: Run) -> None:
        event(
            orders.PLANNED,
            line=plan_line(run) if run.plan.pending else "",
            recovered_shards=run.summary.recovered_shards,
        )

    @contextmanager
    def running(self, run: Run, tally: Tally) -> Iterator[None]:
        with beside(lambda stop: _tell_progress(run, tally, stop), PROGRESS_SECONDS):
            yield

    def finished(self, summary: Summary) -> None:
        event(orders.FINISHED, summary=asdict(summary) | {"speed": summary.speed})


def coordinate(order: Order) -> None:
    """Do what an order asks for, on the cluster this job was started on. Raises: every user error of a run."""
    request = Request(order.sources, order.to, order.config, "auto", command="submit", bounds=order.bounds)
    with ray_session("auto") as machines:
        _end_when_stopped()
        gpus = order.config.run.gpus or int(machines.resources.get("GPU", 0))
        if gpus and not machines.resources.get("GPU"):
            _await_a_gpu(gpus)
        jobs = slices_needed(gpus, order.gpus_per_job)
        execute(request, Telling(), lambda run, tally: _work(run, tally, jobs))


def _work(run: Run, tally: Tally, most: int) -> None:
    """Do a planned run by at most so many jobs; one is this one. From here on the lease is this process's."""
    jobs = RayJobs.here()
    stop_orphans(jobs, run.job.destination)
    if most == 1:
        run.execute(tally)
    else:
        _divide(run, tally, jobs, most)


def _divide(run: Run, tally: Tally, jobs: RayJobs, most: int) -> None:
    """Let at most so many jobs prepare a planned run, and publish what they prepare."""
    resources = ray.cluster_resources()
    places = shares(run.job.place, resources.get("CPU", 0.0), min(most, run.plan.pending))
    name = f"board-{uuid.uuid4().hex}"
    register = Register.start(run.plan.owners, run.bounds.deadline)
    board = Board.put_up(name, register, tally)
    slices = SliceJobs(jobs, _own_name(), run.job, name, places, resources)
    with Campaign(run, slices, len(places)) as campaign:
        run.execute(tally, campaign.waves())
    run.summary.remaining += register.turned_away()
    board.handles()  # it has to be kept until here: an actor ends with its last handle


def _own_name() -> str:
    """The name under which Ray runs this job; else one of its own, as for a coordinator that was started by hand."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    name: str = told.get("metadata", {}).get("job_submission_id", f"{orders.MARK}-{uuid.uuid4().hex}")
    return name


def _await_a_gpu(gpus: int) -> None:
    """Return when the first of so many GPUs is there. Tasks that ask for them are what an autoscaler listens to.

    They are gone with this process, however it ends; a request to the autoscaler itself would outlive it, and so would
    its machines. Raises: `UsageError` when none has come after AWAIT_SECONDS.
    """
    event(orders.WAITING, sentence=f"Waiting up to {duration(AWAIT_SECONDS)} for the first of {count(gpus, 'GPU')}.")
    asker = ray.remote(num_gpus=1, num_cpus=0)(lambda: None)
    askers = [asker.remote() for _ in range(gpus)]
    came, missing = ray.wait(askers, num_returns=1, timeout=AWAIT_SECONDS)
    for waiting in missing:
        ray.cancel(waiting, force=True)
    if not came:
        raise UsageError(
            f"No GPU has come within {duration(AWAIT_SECONDS)}: see what the cluster's autoscaler says, or leave "
            f"--gpus out to run on CPUs."
        )


def _tell_progress(run: Run, tally: Tally, stop: threading.Event) -> None:
    started = time.monotonic()
    told: dict[str, Any] = {}
    while not stop.wait(PROGRESS_SECONDS):
        with suppress(RayError):  # the cluster is going, or gone: the run itself will say so
            share, line = describe(tally.counts(), run.plan, time.monotonic() - started)
            if told != (now := {"share": round(share, 4), "line": line}):
                event(orders.PROGRESS, **now)
                told = now


def _end_when_stopped() -> None:
    """Ray stops a job by SIGTERM: leave as from an interruption, so that slices end and the lease is given back."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


if __name__ == "__main__":
    prepare_environment()
    sys.exit(orders.reporting_failure(lambda: coordinate(orders.read(Order, sys.argv[1]))))
