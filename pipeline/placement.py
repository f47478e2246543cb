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
# Reading is a few hundred times faster than real time per core, a GPU a thousand and more.
DECODE_ACTORS_PER_GPU = 4
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

    @property
    def total_slots(self) -> int:
        return self.slots * self.model_actors

    @property
    def calls_in_flight(self) -> int:
        """Blocks that a model actor works on at once: each holds at least one part, and a quarter more wait."""
        return self.slots * 5 // 4

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
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0.0)
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
        placement = _with_fewer_readers(placement, cpus)
    _check(placement, gpus, cpus)
    return placement


def _with_fewer_readers(placement: Placement, cpus: float) -> Placement:
    lacking = placement.booked_cpus + FREE_CPUS - cpus
    fewer = placement.decode_actors - math.ceil(max(0.0, lacking) / DECODE_CPUS)
    return replace(placement, decode_actors=max(1, fewer))


def _check(placement: Placement, gpus: int, cpus: float) -> None:
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
