"""Running counts of a run: what the stages report as they go, so that a person can watch.

Nothing depends on it: the tables are the truth, the tally is only early. Stages report without waiting, and a lost
report loses nothing but a tick of the progress bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


@dataclass
class Counts:
    """Sums over all workers of a run so far."""

    files_read: int = 0
    bytes_read: int = 0
    seconds_read: float = 0.0  # of audio, decoded
    seconds_transcribed: float = 0.0
    files_failed: int = 0


class _Sums:
    """The actor behind a tally."""

    def __init__(self) -> None:
        self._counts = Counts()

    def add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            setattr(self._counts, name, getattr(self._counts, name) + amount)

    def counts(self) -> Counts:
        return self._counts


class Tally:
    """A handle on the counts of one run: started by the driver, handed to every stage."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls) -> Tally:
        """A tally on the cluster this process is connected to; it lives as long as its handles."""
        return cls(ray.remote(_Sums).options(num_cpus=0).remote())

    def read(self, bytes_read: int, seconds: float, failed: bool) -> None:
        """One file was read to its end, or given up."""
        self._actor.add.remote(files_read=1, bytes_read=bytes_read, seconds_read=seconds, files_failed=int(failed))

    def transcribed(self, seconds: float) -> None:
        """One part of so many seconds has its transcript."""
        self._actor.add.remote(seconds_transcribed=seconds)

    def counts(self) -> Counts:
        counts: Counts = ray.get(self._actor.counts.remote())
        return counts
