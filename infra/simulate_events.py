"""The simulated job: an archive, the real policies that plan it, and a cluster that loses nodes.

    archive ─ choose_part_seconds ─ split ─┬─ blocks ─▶ Readers ─▶ Models ─▶ Sinks ─┬─▶ Commits
                       (pipeline's own)    └─ …  one row for each job of a slice    ┘

Nodes come and go; each belongs to one job, and takes its readers and GPUs along. It prints nothing.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.simulate_archive import Archive, archive
from infra.simulate_assumptions import Assumptions
from infra.simulate_bucket import Bucket
from infra.simulate_clock import Clock
from infra.simulate_ledger import Counts, Ledger
from infra.simulate_models import Consumers, Gpu, Models
from infra.simulate_pool import Pace, SharedPool, WindowPool
from infra.simulate_readers import Readers
from infra.simulate_sinks import Commits, Sinks
from pipeline.config import RunOptions
from pipeline.inventory import choose_part_seconds
from pipeline.placement import Placement, place, shares
from pipeline.slices import blocks, longest_first, slices_needed, split

SAMPLES = 400  # of utilisation, in the time that the work takes at least
HEAD_CPUS = 10.0  # of machines without GPUs, for each job: the driver, its sinks, and what Ray leaves free
GONE = -1


def _longest_first(manifest: pa.Table, readers: int) -> list[pa.Table]:
    return blocks(longest_first(manifest), readers)


@dataclass(frozen=True)
class Policies:
    """What decides the order and the size of things: the project's own, unless one is to be tried out."""

    part_seconds: Callable[[float, int], float] = choose_part_seconds
    split: Callable[[pa.Table, int], list[pa.Table]] = split
    blocks: Callable[[pa.Table, int], list[pa.Table]] = _longest_first


@dataclass
class Outcome:
    """What happened. Seconds since the nodes arrived."""

    given: Assumptions
    archive: Archive
    counts: Counts
    placements: list[Placement]  # of each job
    full_speed: float  # turns a second of a GPU with full slots
    capacity: list[tuple[float, int, float]] = field(default_factory=list)  # when: GPUs more, and what they can do
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # when: seconds busy so far, GPUs there
    busy_seconds: float = 0.0
    last_end: float = 0.0  # of a part
    committed: float = 0.0
    requests: int = 0
    refused: int = 0


@dataclass
class _Place:
    """Where a node stands: a part of one job, whichever machine it is."""

    job: _Job
    gpus: list[Gpu]
    readers: list[float]  # speeds
    node: int = GONE  # its incarnation


@dataclass
class _Job:
    """One slice, read, transcribed and prepared by nodes of its own."""

    readers: Readers
    models: Models
    sinks: Sinks


class Simulation:
    """One run: made, then `run` once."""

    def __init__(self, given: Assumptions, policies: Policies | None = None) -> None:
        self._given, self._policies = given, policies or Policies()
        self._random = random.Random(given.seed)
        self._clock = Clock()
        self._nodes = itertools.count()
        whole, cpus = _placement(given)
        self._archive, manifest = archive(given, self._policies.part_seconds, whole.total_slots)
        self._ledger = Ledger(self._archive.parts)
        self._bucket = Bucket(given)
        self._commits = Commits(self._clock, given, RunOptions(), self._ledger)
        turns, seconds = float(self._archive.turns.sum()), float(self._archive.seconds.sum())
        self._turn_seconds = given.slots * seconds / (given.gpu_speed * turns)
        self._turns = memoryview(self._archive.turns)
        slices = self._policies.split(manifest, slices_needed(given.gpus, given.gpus_per_job))
        placements = shares(whole, cpus, len(slices))
        jobs = zip(placements, slices, strict=True)
        self._places = [one for placement, own in jobs for one in self._job(placement, own)]
        full_speed = given.slots / self._turn_seconds
        self._outcome = Outcome(given, self._archive, self._ledger.counts, placements, full_speed)

    def run(self) -> Outcome:
        """Until the last part is committed."""
        for one in self._places:
            self._arrive(one)
        self._sample(self._archive.seconds.sum() / (self._given.gpu_speed * self._given.gpus * SAMPLES))
        self._clock.run()
        assert self._ledger.stored == self._archive.parts, "the job came to a standstill"
        outcome = self._outcome
        outcome.committed = self._clock.now
        outcome.last_end = max(one.job.sinks.last_end for one in self._places)
        outcome.busy_seconds = self._busy()
        outcome.requests, outcome.refused = self._bucket.requests, self._bucket.refused
        return outcome

    # --- before it starts -----------------------------------------------------------------------------------------

    def _job(self, placement: Placement, manifest: pa.Table) -> list[_Place]:
        given, clock, ledger = self._given, self._clock, self._ledger
        tables = self._policies.blocks(manifest, placement.decode_actors)
        files = [pc.cast(table["media_id"], pa.int64()).to_pylist() for table in tables]
        parts = int(np.diff(self._archive.first_part)[np.concatenate(files)].sum())
        models = Models(clock, ledger, placement.calls_in_flight, given.driver_seconds, given.start_seconds)
        most_ready = given.ready_parts * placement.model_actors
        readers = Readers(
            clock,
            given,
            (self._archive, ledger),
            self._bucket,
            files,
            (models.offer, lambda: models.ready < most_ready),
        )
        sinks = Sinks(
            clock,
            ledger,
            self._commits,
            parts,
            (RunOptions().parts_per_shard, given.prepare_seconds),
            partial(self._results_lost, readers),
        )
        models.tell = Consumers(readers.go_on, partial(self._ended, sinks), readers.read_again, readers.all_read)
        return self._stand(_Job(readers, models, sinks), placement)

    def _stand(self, job: _Job, placement: Placement) -> list[_Place]:
        """The job's GPUs and readers, spread over nodes."""
        count = -(-placement.model_actors // self._given.gpus_per_node)
        gpus = _evenly(placement.model_actors, count)
        readers = _evenly(placement.decode_actors, count)
        return [
            _Place(
                job, [self._gpu() for _ in range(own)], [self._reader_speed(readers, placement) for _ in range(more)]
            )
            for own, more in zip(gpus, readers, strict=True)
        ]

    def _gpu(self) -> Gpu:
        given = self._given
        speed = given.slow_speed if self._random.random() < given.slow_share else 1.0
        pace = Pace(given.slots, self._turn_seconds / speed, given.fixed_share)
        pool = WindowPool(pace, self._archive.windows) if given.windows else SharedPool(pace, self._turns)
        return Gpu(pool, speed)

    def _reader_speed(self, readers: Sequence[int], placement: Placement) -> float:
        given = self._given
        core = min(1.0, given.cores_per_gpu * placement.model_actors / sum(readers))
        slow = self._random.random() < given.slow_readers
        return given.reader_speed * core * (given.slow_speed if slow else 1.0)

    def _arrive(self, one: _Place) -> None:
        """A node is there, and counts; some day it will be lost."""
        one.node = next(self._nodes)
        self._capacity(one, 1)
        self._clock.after(self._given.start_seconds, self._ready, one, one.node)
        if self._given.lost_per_hour:
            lasts = self._random.expovariate(-math.log1p(-self._given.lost_per_hour) / 3600.0)
            self._clock.after(lasts, self._lose, one)

    def _ready(self, one: _Place, node: int) -> None:
        if one.node == node:
            one.job.models.join(node, one.gpus)
            one.job.readers.join(node, one.readers)

    def _lose(self, one: _Place) -> None:
        lost, one.node = one.node, GONE
        self._capacity(one, -1)
        self._ledger.counts.nodes_lost += 1
        one.job.readers.lose(lost)
        one.job.models.lose(lost)
        one.job.sinks.lose(lost)
        self._clock.after(self._given.replaced_after, self._arrive, one)

    def _ended(self, sinks: Sinks, part: int, node: int) -> None:
        self._ledger.counts.turns += self._turns[part]
        sinks.take(part, node)

    def _results_lost(self, readers: Readers, parts: list[int]) -> None:
        self._ledger.counts.lost_parts += len(parts)
        self._ledger.counts.lost_turns += sum(self._turns[part] for part in parts)
        readers.read_again(parts)

    def _capacity(self, one: _Place, sign: int) -> None:
        speed = sum(gpu.speed for gpu in one.gpus)
        self._outcome.capacity.append((self._clock.now, sign * len(one.gpus), sign * speed))

    def _busy(self) -> float:
        return sum(gpu.pool.busy_at(self._clock.now) for one in self._places for gpu in one.gpus)

    def _sample(self, every: float) -> None:
        there = sum(len(one.gpus) for one in self._places if one.node != GONE)
        self._outcome.samples.append((self._clock.now, self._busy(), there))
        self._clock.after(every, self._sample, every)


def _placement(given: Assumptions) -> tuple[Placement, float]:
    """The project's own choice for the whole cluster, and the CPUs that it is made of, heads included."""
    nodes = -(-given.gpus // given.gpus_per_node)
    cpus = given.cores_per_gpu * given.gpus + HEAD_CPUS * slices_needed(given.gpus, given.gpus_per_job)
    resources = {"GPU": float(given.gpus), "CPU": cpus}
    cores = int(given.cores_per_gpu * given.gpus_per_node)
    return place(RunOptions(slots=given.slots), resources, nodes, cores), cpus


def _evenly(number: int, count: int) -> list[int]:
    return [number // count + (place < number % count) for place in range(count)]
