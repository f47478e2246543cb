"""One run from the listing to the last commit: plan, let the flow prepare shards, publish them as they come.

This is the only writer of a destination while it runs. It counts and never collects: rows stay with the workers. Ray
must be initialised already; how is the caller's affair.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from model.errors import EarwitnessError, MediaError, SourceError
from pipeline.flow import flow
from pipeline.inventory import list_media
from pipeline.job import Job
from pipeline.plan import Plan, blocks, plan
from pipeline.recovery import recover
from pipeline.register import Register
from pipeline.store import Store
from pipeline.tally import Tally
from pipeline.writer import Writer

# Small blocks let a part move on as soon as it is read; five minutes of log-mel are 9.6 MB.
BLOCK_BYTES = 8 << 20
# A part takes as long as it takes: on a CPU, hours may pass before the first whole file is done.
NO_PROGRESS_SECONDS = 24 * 3600.0
NOTHING_DONE = pa.table({})
_SUFFIXES = ".wav, .mp3, .m4a, .mp4, .flac, .ogg, .webm"


@dataclass
class Summary:
    """What a run came to. Seconds of audio, but for `elapsed_seconds`."""

    generation: str
    listed: int = 0
    pending: int = 0
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


@dataclass
class Run:
    """A planned run: made by `prepare`, or by `look` to see what it would do; then `execute` it.

    Raises from both: every user error of the listing and the destination.
    """

    job: Job
    plan: Plan
    summary: Summary
    writer: Writer | None = None  # None: only looked at

    @classmethod
    def prepare(cls, sources: Sequence[str], writer: Writer, job: Job) -> Run:
        """List and plan, after finishing what a killed run had prepared."""
        recovered = recover(writer)
        run = cls.look(sources, writer, job)
        run.writer = writer
        run.summary.recovered_shards = recovered
        return run

    @classmethod
    def look(cls, sources: Sequence[str], store: Store | None, job: Job) -> Run:
        """List and plan, and write nothing."""
        done = store.done_parts(job.generation) if store else NOTHING_DONE
        planned = plan(list_media(sources), done, job.config.read, job.place.total_slots)
        if not planned.listed:
            given = ", ".join(sources)
            raise SourceError(f"{given} holds no audio: name files, or folders that hold {_SUFFIXES} and the like.")
        return cls(job, planned, Summary(job.generation, planned.listed, planned.pending))

    def execute(self, tally: Tally) -> None:
        """Transcribe what is pending; `summary` grows with each commit. May be killed at any moment."""
        assert self.writer is not None, "a run that was only looked at has nowhere to write"
        started = time.monotonic()
        self.writer.add_media(self.plan.media)
        self.writer.add_run(self.job.config, self.job.generation)
        _configure_ray_data()
        manifest = blocks(self.plan.manifest, self.job.place.decode_actors)
        try:
            for shards in self._waves(flow(manifest, self.job, tally, Register.start(self.plan.owners))):
                self.writer.publish(shards)
                self._count(shards)
                self.summary.elapsed_seconds = time.monotonic() - started
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
