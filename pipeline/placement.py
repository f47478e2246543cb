"""Where the stages of a run sit: how many actors, with how much of the cluster each.

Arithmetic over what the cluster says it has, done before anything starts: a run that cannot fit is refused in one
sentence instead of waiting forever (ray-project/ray#44687). It starts nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from model.errors import UsageError
from pipeline.config import RunOptions

SLOTS_ON_CPU = 24
SLOTS_ON_GPU = 64
# Times real time. A reader with a core of its own fetches, decodes, looks for speech and makes log-mel: measured with
# 16 kHz waves. A GPU is taken for a fast one with a small model, so that no other has to wait for its readers.
READER_SPEED = 250.0
GPU_SPEED = 1000.0
DECODE_ACTORS_PER_GPU = math.ceil(GPU_SPEED / READER_SPEED)
DECODE_CPUS = 0.5  # ffmpeg runs beside its actor, and both wait for each other
CPU_MODEL_SHARE = 0.5  # of a machine's cores that its model actors without GPU book; their threads use all
SINK_CPUS = 0.25
MODELS_PER_SINK = 8
FREE_CPUS = 0.25  # never booked by actors, so that Ray's own tasks always find room


@dataclass(frozen=True)
class Placement:
    """Actors of each stage, and what each books."""

    model_actors: int
    model_cpus: float
    model_gpus: float
    threads: int  # of torch, in each model actor
    slots: int  # in each model actor
    decode_actors: int
    decode_limit: int | None = None  # readers at most, where GPUs are awaited that bring more CPUs; None: no more

    @property
    def total_slots(self) -> int:
        return self.slots * self.model_actors

    @property
    def calls_in_flight(self) -> int:
        """Blocks that a model actor works on at once: each holds at least one part, and a quarter more wait."""
        return self.slots * 5 // 4

    @property
    def parts_per_call(self) -> int | None:
        """None: whole blocks as they come. With GPUs, Ray Data refuses that, and waits until it has what it is told.

        One by one then: four parts of a block at once, as Ray's RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY says.
        """
        return 1 if self.model_gpus else None

    @property
    def sink_actors(self) -> int:
        return -(-self.model_actors // MODELS_PER_SINK)

    @property
    def booked_cpus(self) -> float:
        return self.model_actors * self.model_cpus + self.decode_actors * DECODE_CPUS + self.sink_actors * SINK_CPUS


def place(run: RunOptions, resources: Mapping[str, float], nodes: int, cores_per_node: int) -> Placement:
    """Spread a run over a cluster with so many CPUs and GPUs (`resources`, as Ray counts them) on `nodes` machines.

    Raises: `UsageError` when the actors asked for, or the fewest possible, do not fit.
    """
    present, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0.0)
    gpus = run.gpus or present
    on_gpu = gpus > 0
    model_actors = run.model_actors or (gpus if on_gpu else nodes)
    per_node = math.ceil(model_actors / nodes)
    placement = Placement(
        model_actors=model_actors,
        model_cpus=0.0 if on_gpu else max(DECODE_CPUS, cpus / nodes * CPU_MODEL_SHARE / per_node),
        model_gpus=1.0 if on_gpu else 0.0,
        threads=max(1, cores_per_node // per_node),
        slots=run.slots or (SLOTS_ON_GPU if on_gpu else SLOTS_ON_CPU),
        decode_actors=run.decode_actors or (DECODE_ACTORS_PER_GPU * model_actors if on_gpu else model_actors),
    )
    if run.decode_actors is None:  # slower reading is better than none: a machine of one GPU may have two cores
        wanted, placement = placement.decode_actors, _with_fewer_readers(placement, cpus)
        if gpus > present and placement.decode_actors < wanted:
            placement = replace(placement, decode_limit=wanted)
    _check(placement, gpus, present, cpus)
    return placement


def shares(whole: Placement, cpus: float, count: int) -> list[Placement]:
    """What each of several jobs gets of a placement: at most `count` of them, at least one model and one reader each.

    cpus: of the whole cluster. Raises: `UsageError` when there are too few for so many jobs.
    """
    count = min(count, whole.model_actors)
    parts = [replace(whole, model_actors=models, decode_actors=1) for models in _evenly(whole.model_actors, count)]
    needed = sum(part.booked_cpus + FREE_CPUS for part in parts)
    if needed > cpus:
        raise UsageError(
            f"{count} jobs need {needed:g} CPUs, and the cluster has {cpus:g}: raise --gpus-per-job, or add CPUs."
        )
    readers = min(whole.decode_actors, count + int((cpus - needed) / DECODE_CPUS))
    limits = _evenly(whole.decode_limit, count) if whole.decode_limit else [None] * count
    return [
        replace(part, decode_actors=max(1, own), decode_limit=limit)
        for part, own, limit in zip(parts, _evenly(readers, count), limits, strict=True)
    ]


def _evenly(number: int, count: int) -> list[int]:
    """A number of things dealt out to so many, the first of them getting one more where it does not come out even."""
    return [number // count + (place < number % count) for place in range(count)]


def _with_fewer_readers(placement: Placement, cpus: float) -> Placement:
    lacking = placement.booked_cpus + FREE_CPUS - cpus
    fewer = placement.decode_actors - math.ceil(max(0.0, lacking) / DECODE_CPUS)
    return replace(placement, decode_actors=max(1, fewer))


def _check(placement: Placement, gpus: int, present: int, cpus: float) -> None:
    if gpus and not present:
        raise UsageError(
            f"run.gpus is {gpus}, and the cluster has no GPU yet: add one, or leave it out to run on CPUs."
        )
    if placement.model_gpus and placement.model_actors > gpus:
        raise UsageError(
            f"{placement.model_actors} model actors need a GPU each, and the cluster has {gpus}: "
            f"lower run.model_actors, or add GPUs."
        )
    needed = placement.booked_cpus + FREE_CPUS
    if needed > cpus:
        raise UsageError(
            f"{placement.model_actors} model and {placement.decode_actors} decode actors need {needed:g} CPUs, "
            f"and the cluster has {cpus:g}: lower run.model_actors or run.decode_actors, or add CPUs."
        )
