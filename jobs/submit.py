"""`earwitness submit`: an archive handed to a cluster as one job, and followed from here until it ends.

The name of the job follows from what is asked for, so asking twice leads to the same job: it is followed where it
works, and begun again, under the next number, where it has ended. It refuses to know how the job does its work
(`coordinator.py`), and what becomes of it while nobody follows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import TaskID

from jobs import console, orders
from jobs.orders import MARK, Order, failure, parse_event, written
from jobs.progress import LOG_SECONDS, bar, show_recovered, show_summary
from jobs.ray_jobs import ENDED, RayJobs
from jobs.slice_jobs import COORDINATOR
from model.errors import INTERRUPTED, EarwitnessError
from pipeline.config import Config
from pipeline.run import Bounds, Summary
from pipeline.slices import GPUS_PER_JOB

LONGEST_NOTE = 200  # characters of sources in what Ray keeps of a job
_COMMAND = "python -m jobs.coordinator"


@dataclass(frozen=True)
class Request:
    """What to hand to the cluster whose dashboard is at `address`, and what to see of it here."""

    sources: tuple[str, ...]
    to: str
    config: Config
    address: str
    gpus_per_job: int = GPUS_PER_JOB
    bounds: Bounds = field(default_factory=Bounds)
    detach: bool = False
    as_json: bool = False


def submit(request: Request) -> int:
    """Start the job of a request, or find it where it works already; follow it to its end. Returns the exit code.

    Raises: `UsageError` when no dashboard answers, and the error that ended the job, as if it had happened here.
    """
    sources = tuple(absolute(source) for source in request.sources)
    order = Order(sources, absolute(request.to), request.config, request.gpus_per_job, request.bounds)
    jobs = RayJobs.at(request.address)
    name, is_new = start(jobs, order)
    if request.detach:
        return _leave_alone(name, request)
    if not is_new:
        console.err.print(f"The job {name} works on this already: following it.", soft_wrap=True)
    return _follow(jobs, name, order, request)


def start(jobs: RayJobs, order: Order) -> tuple[str, bool]:
    """The name of the job that does what is ordered, and whether it was started by this."""
    number = 0
    while True:
        for job in _attempts(jobs, order.name):
            if job.status not in ENDED:
                return job.submission_id, False
            number = max(number, _number(job.submission_id))
        number += 1
        name = order.name if number == 1 else f"{order.name}-{number}"
        note = {"to": order.to, "sources": " ".join(order.sources)[:LONGEST_NOTE], "model": order.config.model}
        if jobs.submit(name, f"{_COMMAND} {shlex.quote(written(order))}", {MARK: COORDINATOR} | note):
            return name, True


def absolute(place: str) -> str:
    """A source or a destination as a machine with another working directory must be told it."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def _attempts(jobs: RayJobs, name: str) -> list[Any]:
    ours = re.compile(rf"{re.escape(name)}(-\d+)?")
    return [job for job in jobs.all(**{MARK: COORDINATOR}) if ours.fullmatch(job.submission_id)]


def _number(name: str) -> int:
    """1 for earwitness-0123456789ab, 2 for earwitness-0123456789ab-2."""
    parts = name.split("-")
    return int(parts[2]) if len(parts) > 2 else 1


def _leave_alone(name: str, request: Request) -> int:
    if request.as_json:
        print(json.dumps({"job": name}))
    else:
        console.out.print(f"{name} works; the same command without --detach follows it.", soft_wrap=True)
    return 0


def _follow(jobs: RayJobs, name: str, order: Order, request: Request) -> int:
    try:
        with _view() as view:
            job = jobs.follow(name, view.line)
    except KeyboardInterrupt:
        console.err.print(
            f"Not followed any more; the job goes on. The same command follows it again; "
            f"`earwitness jobs stop {name} --address {jobs.address}` ends it.",
            soft_wrap=True,
        )
        return INTERRUPTED
    if job.status == "STOPPED":
        console.error(f"The job {name} was stopped: what was stored stays, and the same command goes on from there.")
        return INTERRUPTED
    if view.failure is not None:
        raise failure(view.failure)
    if view.summary is None:
        raise EarwitnessError(
            f"The job {name} has failed: `earwitness jobs logs {name} --address {jobs.address}` shows how."
        )
    if request.as_json:
        print(json.dumps({"job": name} | view.summary))
    else:
        fields = {field: value for field, value in view.summary.items() if field != "speed"}
        show_summary(Summary(**fields), order.to)
    return 0


class View:
    """What is seen of a job: its plan and its warnings as lines, its progress as one line that changes."""

    def __init__(self, progress: Any, task: TaskID) -> None:
        self.summary: dict[str, Any] | None = None
        self.failure: dict[str, Any] | None = None
        self._progress, self._task = progress, task
        self._logged = progress.get_time()

    def line(self, text: str) -> None:
        """One line of the log. What is no event is for `earwitness jobs logs`."""
        event = parse_event(text)
        if event is None:
            return
        match event[MARK]:
            case orders.WAITING:
                console.err.print(event["sentence"], soft_wrap=True, markup=False)
            case orders.PLANNED:
                show_recovered(event["recovered_shards"])
                if event["line"]:
                    console.err.print(event["line"], soft_wrap=True, markup=False)
            case orders.PROGRESS:
                self._show(event["share"], event["line"])
            case orders.FINISHED:
                self.summary = event["summary"]
            case orders.FAILED:
                self.failure = event

    def _show(self, share: float, line: str) -> None:
        self._progress.update(self._task, completed=share, line=line)
        now = self._progress.get_time()
        if self._progress.disable and now - self._logged >= LOG_SECONDS:
            self._logged = now
            console.err.print(line, soft_wrap=True)


@contextmanager
def _view() -> Iterator[View]:
    with bar() as progress:
        yield View(progress, progress.add_task("", total=1.0, line="starting"))
