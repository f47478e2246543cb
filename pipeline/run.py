"""One run from the listing to the last commit: plan, let the flow prepare shards, publish them as they come.

This is the only writer of a destination while it runs. It counts and never collects: rows stay with the workers. Ray
must be initialised already; how is the caller's affair.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from model.errors import EarwitnessError, MediaError, SourceError
from pipeline.flow import flow
from pipeline.inventory import listing, roots
from pipeline.job import Job
from pipeline.ledger import ledger_of
from pipeline.plan import Choice, Plan, plan
from pipeline.recovery import recover
from pipeline.register import Register
from pipeline.slices import blocks, longest_first
from pipeline.store import Store
from pipeline.tally import Tally
from pipeline.writer import Writer

# Small blocks let a part move on as soon as it is read; five minutes of log-mel are 9.6 MB.
BLOCK_BYTES = 8 << 20
SECONDS_PER_HOUR = 3600.0
# A part takes as long as it takes: on a CPU, hours may pass before the first whole file is done.
NO_PROGRESS_SECONDS = 24 * SECONDS_PER_HOUR
_SUFFIXES = ".wav, .mp3, .m4a, .mp4, .flac, .ogg, .webm"


@dataclass
class Summary:
    """What a run came to. Seconds of audio, but for `elapsed_seconds`."""

    generation: str
    listed: int = 0
    new: int = 0
    changed: int = 0
    missing: int | None = None  # known below the sources, and not listed any more; None: not worked out
    pending: int = 0
    remaining: int = 0  # files left to the next run, by a deadline or by the hours that a run may do
    recovered_shards: int = 0  # prepared by a run that was killed, published by this one
    parts: int = 0
    segments: int = 0
    failed_parts: int = 0
    audio_seconds: float = 0.0
    elapsed_seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.audio_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0


@dataclass(frozen=True)
class Bounds:
    """How much of what is pending a run does. With any of them, the oldest objects come first."""

    max_hours: float | None = None  # of audio, estimated from sizes
    deadline: datetime | None = None  # files that are not begun by then are left to the next run

    @property
    def most_seconds(self) -> float | None:
        """As `plan.Choice` has it."""
        if self.max_hours is None:
            return None if self.deadline is None else math.inf
        return self.max_hours * SECONDS_PER_HOUR


@dataclass
class Run:
    """A planned run: made by `prepare`, or by `look` to see what it would do; then `execute` it.

    Raises from both: every user error of the listing and the destination.
    """

    job: Job
    plan: Plan
    summary: Summary
    writer: Writer | None = None  # None: only looked at
    bounds: Bounds = field(default_factory=Bounds)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    run_id: str | None = None  # of the configuration that is kept, once the work begins

    @classmethod
    def prepare(cls, sources: Sequence[str], writer: Writer, job: Job, bounds: Bounds | None = None) -> Run:
        """List and plan, after finishing what a killed run had prepared."""
        recovered = recover(writer)
        run = cls.look(sources, writer, job, bounds)
        run.writer = writer
        run.summary.recovered_shards = recovered
        return run

    @classmethod
    def look(cls, sources: Sequence[str], store: Store | None, job: Job, bounds: Bounds | None = None) -> Run:
        """List and plan, and write nothing."""
        started, bounds = datetime.now(UTC), bounds or Bounds()
        choice = Choice(job.config.read, job.place.total_slots, bounds.most_seconds, roots(sources))
        with ledger_of(store, job.generation) as ledger:
            planned = plan(listing(sources), ledger, choice)
        if not planned.listed:
            given = ", ".join(sources)
            raise SourceError(f"{given} holds no audio: name files, or folders that hold {_SUFFIXES} and the like.")
        summary = Summary(job.generation, **asdict(planned.seen), pending=planned.pending, remaining=planned.postponed)
        return cls(job, planned, summary, bounds=bounds, started_at=started)

    def execute(self, tally: Tally, prepared: Iterable[list[dict[str, Any]]] | None = None) -> None:
        """Transcribe what is pending; `summary` grows with each commit. May be killed at any moment.

        prepared: groups of `records.SHARD` rows that others prepare; else this process lets its own flow do it.
        """
        assert self.writer is not None, "a run that was only looked at has nowhere to write"
        started = time.monotonic()
        self.writer.add_media(self.plan.media)
        self.run_id = self.writer.add_run(self.job.config, self.job.generation)
        for shards in prepared or self._prepared_here(tally):
            self.writer.publish(shards)
            self._count(shards)
            self.summary.elapsed_seconds = time.monotonic() - started

    def _prepared_here(self, tally: Tally) -> Iterator[list[dict[str, Any]]]:
        """What this process's own flow prepares, until the deadline."""
        register = Register.start(self.plan.owners, self.bounds.deadline)
        yield from self.prepared(tally, register)
        self.summary.remaining += register.turned_away()

    def prepared(self, tally: Tally, register: Register) -> Iterator[list[dict[str, Any]]]:
        """Prepare what is pending, and publish nothing: `records.SHARD` rows in groups, as they come."""
        _configure_ray_data()
        # With bounds the oldest objects come first, as planned; else nothing long may be left for the end.
        manifest = longest_first(self.plan.manifest) if self.bounds.most_seconds is None else self.plan.manifest
        try:
            yield from self._waves(flow(blocks(manifest, self.job.place.decode_actors), self.job, tally, register))
        except RayError as error:
            told = told_by_worker(error)
            if told is None:
                raise
            raise told from error

    def _waves(self, shards: Dataset) -> Iterator[list[dict[str, Any]]]:
        """Prepared shards in groups, one for each commit, so that small parts do not make a commit each."""
        wave: list[dict[str, Any]] = []
        last = time.monotonic()
        for batch in shards.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            wave += batch.to_pylist()
            if time.monotonic() - last >= self.job.config.run.publish_seconds:
                yield wave
                wave, last = [], time.monotonic()
        if wave:
            yield wave

    def _count(self, shards: list[dict[str, Any]]) -> None:
        for shard in shards:
            self.summary.parts += shard["parts_rows"]
            self.summary.segments += shard["segments_rows"] or 0
            self.summary.failed_parts += shard["failed_rows"]
            self.summary.audio_seconds += shard["audio_seconds"]


def told_by_worker(error: RayError) -> EarwitnessError | None:
    """The user's error behind one of Ray's, or None: from a worker to its driver, only its text survives."""
    classes = {cls.__name__: cls for cls in EarwitnessError.__subclasses__() if cls is not MediaError}
    told = re.findall(rf"^model\.errors\.({'|'.join(classes)}): (.+)$", str(error), re.MULTILINE)
    if not told:
        return None
    name, sentence = told[-1]
    return classes[name](sentence)


def _configure_ray_data() -> None:
    """Ray Data captures its context when a dataset is made, so this comes before."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.max_errored_blocks = 0  # an error here is a bug: what the archive can do wrong comes as rows
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A run with fewer files than readers is no mistake.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", module="ray")
