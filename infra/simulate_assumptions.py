"""Everything the simulation takes for given, each with its value and where that comes from.

    measured   by this project, on two cores of a Zen 4 machine: `docs/decisions.md`
    setting    of this project or of Ray, as a run has it
    published  by who runs the service
    assumed    by nobody's measurement: change it, and look what happens

No number of the simulation stands elsewhere; the settings of the project itself are not repeated here but imported
where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from model.errors import UsageError
from pipeline.placement import SLOTS_ON_GPU
from pipeline.slices import GPUS_PER_JOB

SOURCES = ("measured", "setting", "published", "assumed")
# Turns of the full windows of a quarter hour of prompts in three languages, base, default options; and of the one
# window among the 39 that was rejected at five temperatures.
WINDOW_TURNS = (65, 67, 69, 70, 70, 71, 74, 78, 80, 81, 82, 84, 85, 87, 87, 89)
WINDOW_TURNS += (89, 90, 91, 91, 93, 95, 100, 100, 103, 107, 108, 112, 115, 120, 132, 287)


def _given(default: Any, what: str, source: str) -> Any:
    assert source in SOURCES
    return field(default=default, metadata={"what": what, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """One simulated job. Seconds, unless a name says otherwise.

    Raises: `UsageError` when a value is not possible.
    """

    hours: float = _given(6400.0, "of audio in the archive", "assumed")
    gpus: int = _given(16, "of the cluster, all of one kind", "assumed")
    seed: int = _given(0, "of every random draw", "assumed")
    shortest: float = _given(2.0, "the shortest file, three sigma below the median duration", "assumed")
    longest: float = _given(12 * 3600.0, "the longest file, three sigma above it", "assumed")
    bitrate_spread: float = _given(0.3, "sigma of bytes a second: how wrong the planner's estimates are", "assumed")
    pace_spread: float = _given(0.25, "sigma of the work in an hour of audio, from file to file", "assumed")

    gpu_speed: float = _given(400.0, "times real time of a GPU whose slots are full", "assumed")
    slots: int = _given(SLOTS_ON_GPU, "of a GPU's engine", "setting")
    fixed_share: float = _given(0.25, "of a full turn that does not shrink with empty slots", "assumed")
    slow_share: float = _given(0.02, "of GPUs that are stragglers", "assumed")
    slow_speed: float = _given(0.6, "of a straggler, relative to the others", "assumed")

    gpus_per_node: int = _given(8, "of a node, with its readers beside them", "assumed")
    cores_per_gpu: float = _given(4.0, "of a node, for its readers", "assumed")
    gpus_per_job: int = _given(GPUS_PER_JOB, "at most, with a driver of their own", "setting")
    lost_per_hour: float = _given(0.05, "of nodes, at random times", "assumed")
    replaced_after: float = _given(240.0, "from the loss of a node until another one is there", "assumed")
    start_seconds: float = _given(60.0, "from a node's arrival until its model and readers are ready", "assumed")

    reader_speed: float = _given(370.0, "times real time of a reader with a core of its own", "measured")
    slow_readers: float = _given(0.02, "of readers that are stragglers, as slow as such GPUs", "assumed")
    blocks_per_reader: int = _given(2, "handed to a reader at once: one it reads, the others wait for it", "setting")
    ready_parts: int = _given(64, "read and waiting, for each GPU, before readers pause", "assumed")
    driver_seconds: float = _given(0.0005, "of a job's driver for each part", "measured")

    requests_per_second: float = _given(5500.0, "of reading that a prefix of the bucket allows", "published")
    prefixes: int = _given(4, "of the bucket, over which files are spread evenly", "assumed")
    request_seconds: float = _given(0.1, "until the first byte", "assumed")
    reader_bandwidth: float = _given(50e6, "bytes a second of one reader", "assumed")
    bandwidth: float = _given(100e9, "bytes a second of all readers together", "assumed")
    requests_per_file: int = _given(3, "to look at an object and to copy it, for each 50 MiB", "setting")

    prepare_seconds: float = _given(0.5, "to store the two objects of a shard", "assumed")
    commit_seconds: float = _given(0.5, "of a commit to both tables, whatever is in it", "assumed")
    commit_shard_seconds: float = _given(0.0001, "of a commit, for each shard in it", "measured")

    price: float = _given(2.0, "dollars, for an hour of a GPU with its share of the node", "assumed")
    windows: bool = _given(False, "every window for itself, instead of parts that share a GPU evenly", "assumed")

    def __post_init__(self) -> None:
        for name in ("hours", "gpus", "gpu_speed", "slots", "gpus_per_node", "reader_speed", "bandwidth", "prefixes"):
            self._require(getattr(self, name) > 0, name, "a number above 0")
        for name in ("fixed_share", "slow_share", "slow_readers", "lost_per_hour"):
            self._require(0 <= getattr(self, name) < 1, name, "a share from 0 to below 1")
        self._require(0 < self.slow_speed <= 1, "slow_speed", "a share above 0, at most 1")
        self._require(0 < self.shortest < self.longest, "shortest", "seconds below those of the longest")

    def table(self) -> Iterator[tuple[str, str, str, str]]:
        """Name, value, source and meaning of each."""
        for one in fields(self):
            value = getattr(self, one.name)
            yield one.name, f"{value:g}" if isinstance(value, float) else str(value), *describe(one.name)

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name):g}: give {allowed}.")


def describe(name: str) -> tuple[str, str]:
    """Source and meaning of an assumption."""
    about = Assumptions.__dataclass_fields__[name].metadata
    return about["source"], about["what"]
