"""The main job: an archive in, tables out. What the command line calls, and a notebook can call as well.

from jobs.transcribe import transcribe

summary = transcribe("recordings/", to="transcripts/", model="base")
print(summary.segments, "segments,", round(summary.speed, 1), "× real time")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.cluster import Machines, is_connected, ray_session, this_machine
from pipeline.config import Config
from pipeline.history import Record
from pipeline.job import Job, Model
from pipeline.lease import Holder
from pipeline.objects import ObjectStore
from pipeline.placement import place
from pipeline.precision import settled
from pipeline.run import Bounds, Run, Summary
from pipeline.store import Store
from pipeline.tally import Tally
from pipeline.writer import Writer


class Watcher:
    """Sees a run happen; override what you want to see."""

    def waiting(self, holder: Holder, seconds: float) -> None:
        """Another process held the destination, and whether it lives will be known in so many seconds at most."""

    def planned(self, run: Run) -> None:
        """The run is decided, and nothing is started."""

    def running(self, run: Run, tally: Tally) -> AbstractContextManager[None]:
        """Entered while the run goes on; `tally` tells how far the workers are."""
        return nullcontext()

    def finished(self, summary: Summary) -> None:
        """All is published, or there was nothing to do."""

    def recorded(self, row: dict[str, Any]) -> None:
        """The run has its row in the table of runs (`records.RUNS`); a dry run never has."""


@dataclass(frozen=True)
class Request:
    """What to transcribe, where to, how, and on which Ray: no address is this machine."""

    sources: tuple[str, ...]
    to: str
    config: Config
    address: str | None = None
    dry_run: bool = False
    command: str = "transcribe"  # for the table of runs
    bounds: Bounds = field(default_factory=Bounds)


def transcribe(
    sources: str | Sequence[str], to: str, model: str | None = None, config: Config | None = None
) -> Summary:
    """Transcribe every media object of `sources` that the tables at `to` do not have yet; returns what was done.

    sources: paths or urls of files, folders or globs. model: wins over that of `config`; base if neither says one.
    Uses the Ray this process is connected to, or starts one here.
    Raises: subclasses of `model.errors.EarwitnessError`, each one sentence.
    """
    listed = (sources,) if isinstance(sources, str) else tuple(sources)
    settings = config or Config()
    return execute(Request(listed, to, replace(settings, model=model or settings.model)), Watcher())


def execute(request: Request, watcher: Watcher, work: Callable[[Run, Tally], None] = Run.execute) -> Summary:
    """Plan; then, unless it is a dry run or nothing is pending, do it. Ray on this machine starts only when needed.

    work: does a planned run; else this process does it alone.
    """
    with ExitStack() as stack:
        known = request.address or is_connected()  # a cluster that can say what it has
        machines = stack.enter_context(ray_session(request.address)) if known else this_machine()
        run = _prepare(request, machines, watcher, stack)
        watcher.planned(run)
        if not request.dry_run:
            with Record(run, request.command, watcher.recorded):
                if run.plan.pending and not known:
                    stack.enter_context(ray_session(None))
                _do(run, watcher, work)
        watcher.finished(run.summary)
        return run.summary


def _do(run: Run, watcher: Watcher, work: Callable[[Run, Tally], None]) -> None:
    """All that is pending; of an archive that is done, note at least that another version has come back."""
    assert run.writer is not None, "it was prepared"
    if not run.plan.pending:
        run.writer.add_media(run.plan.media)
        return
    tally = Tally.start()
    with watcher.running(run, tally):
        work(run, tally)


def _prepare(request: Request, machines: Machines, watcher: Watcher, stack: ExitStack) -> Run:
    """The planned run; unless it is a dry run, this process is now the only writer, until the stack is left."""
    model = Model.of(request.config)
    placement = place(request.config.run, machines.resources, machines.nodes, machines.cores_per_node)
    store = Store.find(request.to)
    # Workers have other working directories: what they are told is absolute.
    to = ObjectStore(request.to).address
    job = Job(settled(request.config, placement), model, placement, to)
    if request.dry_run:
        return Run.look(request.sources, store, job, request.bounds)
    # A misspelt source leaves no new tables behind.
    run = None if store else Run.look(request.sources, None, job, request.bounds)
    writer = stack.enter_context(Writer.open(to, on_wait=watcher.waiting))
    if run is None or writer.lease.epoch > 1:  # else nobody was there before, and nothing has changed
        return Run.prepare(request.sources, writer, job, request.bounds)
    run.writer = writer
    return run
