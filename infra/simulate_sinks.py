"""What follows the models: ended parts gather in shards, shards are stored, and one writer commits them in waves.

Sinks, drivers and the writer stand on machines that are not lost; the results that wait for a shard do not.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.simulate_assumptions import Assumptions
from infra.simulate_clock import Clock
from infra.simulate_ledger import Ledger
from pipeline.config import RunOptions


class Commits:
    """The only writer: a commit at most every `publish_seconds`, of all that is prepared by then."""

    def __init__(self, clock: Clock, given: Assumptions, options: RunOptions, ledger: Ledger) -> None:
        self._clock, self._given, self._options, self._ledger = clock, given, options, ledger
        self._waiting = 0
        self._planned = False
        self._last = 0.0

    def take(self) -> None:
        """A shard is prepared."""
        self._waiting += 1
        if not self._planned:
            self._planned = True
            self._clock.at(max(self._clock.now, self._last + self._options.publish_seconds), self._commit)

    def _commit(self) -> None:
        shards, self._waiting = self._waiting, 0
        self._last = self._clock.now
        counts = self._ledger.counts
        counts.commits += 1
        counts.shards += shards
        spent = self._given.commit_seconds + shards * self._given.commit_shard_seconds
        self._clock.after(spent, self._committed)

    def _committed(self) -> None:
        self._planned = False
        if self._ledger.stored == self._ledger.parts and not self._waiting:
            self._clock.stop()
        elif self._waiting:
            self._waiting -= 1
            self.take()


class Sinks:
    """Those of one job of so many parts. turns: of each part; unread: takes parts whose results are lost."""

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        commits: Commits,
        parts: int,
        preparing: tuple[int, float],
        lost: Callable[[list[int]], None],
    ) -> None:
        self._clock, self._ledger, self._commits = clock, ledger, commits
        self._parts_per_shard, self._prepare_seconds = preparing
        self._lost = lost
        self._left = parts  # that no shard has yet
        self._gathered: list[tuple[int, int]] = []  # parts, and the nodes that hold their results
        self.last_end = 0.0

    def take(self, part: int, node: int) -> None:
        """A part ended on a node."""
        self._gathered.append((part, node))
        self.last_end = self._clock.now
        if len(self._gathered) in (self._parts_per_shard, self._left):
            shard, self._gathered = self._gathered, []
            self._left -= len(shard)
            self._clock.after(self._prepare_seconds, self._prepared, [part for part, _ in shard])

    def lose(self, node: int) -> None:
        """A node is gone, and with it the results that it held."""
        lost = [part for part, place in self._gathered if place == node]
        self._gathered = [(part, place) for part, place in self._gathered if place != node]
        self._lost(lost)

    def _prepared(self, parts: list[int]) -> None:
        for part in parts:
            self._ledger.store(part)
        self._commits.take()
