"""The graph of a run: media in, prepared shards out. The picture in the README, and nothing else."""

from __future__ import annotations

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from pipeline.job import Job
from pipeline.parts import ReadParts
from pipeline.placement import DECODE_CPUS, SINK_CPUS
from pipeline.register import Register
from pipeline.sink import PrepareShard
from pipeline.tally import Tally
from pipeline.transcriber import Transcriber


def flow(manifest: list[pa.Table], job: Job, tally: Tally, register: Register) -> Dataset:
    """Rows of `records.SHARD`, one for each prepared shard, as they come."""
    place = job.place
    readers = ActorPoolStrategy(min_size=place.decode_actors, max_size=place.decode_limit or place.decode_actors)
    calls = place.calls_in_flight
    models = ActorPoolStrategy(
        size=place.model_actors, max_concurrent_calls_per_actor=calls, max_tasks_in_flight_per_actor=calls + 1
    )
    sinks = ActorPoolStrategy(size=place.sink_actors)

    # fmt: off
    return (
        ray.data.from_arrow(manifest)
        .map_batches(ReadParts, fn_constructor_args=[job.model.n_mels, job.generation, job.config.read, tally.read,
                                                     register],
                     compute=readers, num_cpus=DECODE_CPUS, batch_size=None, batch_format="pyarrow")
        .map_batches(Transcriber, fn_constructor_args=[job, tally],
                     compute=models, num_cpus=place.model_cpus, num_gpus=place.model_gpus,
                     batch_size=place.parts_per_call, batch_format="pyarrow")
        .map_batches(PrepareShard, fn_constructor_args=[job.destination],
                     compute=sinks, num_cpus=SINK_CPUS,
                     batch_size=job.config.run.parts_per_shard, batch_format="pyarrow")
    )
