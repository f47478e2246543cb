"""The models of one job: parts that were read wait, are handed to the GPU with the fewest open, and end there.

As Ray Data does it: first come, first served, by a driver that needs its time for each part; a GPU of the machine that
holds a part is preferred. What a lost model had open waits until it starts again: where its node is replaced, or, once
all is read and handed out, on the GPU of a model that has nothing left to do, which Ray Data ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from infra.simulate_clock import Clock
from infra.simulate_ledger import Ledger
from infra.simulate_pool import SharedPool, WindowPool

SOON = 0.1  # seconds of waiting for the driver that are not simulated: less than any part waits for its next window


@dataclass(eq=False)
class Gpu:
    """One model actor, and what it comes back to after its node was lost."""

    pool: SharedPool | WindowPool
    speed: float  # relative to the others
    node: int | None = None  # the incarnation of its node, while it is ready
    kept: list[int] = field(default_factory=list)  # parts that wait for it to come back
    open: int = 0  # parts in its pool, and those that the driver is about to hand to it
    plans: int = 0  # of its next end; only the last is believed


@dataclass(frozen=True)
class Consumers:
    """Whom the models tell what happens."""

    taken: Callable[[], None]  # a part has left the queue
    ended: Callable[[int, int], None]  # a part, and the node it ended on
    unread: Callable[[list[int]], None]  # parts whose log-mel is lost
    all_read: Callable[[], bool]


class Models:
    """All of a job. most_open: parts in each model. driver_seconds: for each part. start_seconds: of a model."""

    def __init__(
        self, clock: Clock, ledger: Ledger, most_open: int, driver_seconds: float, start_seconds: float
    ) -> None:
        self._clock, self._ledger = clock, ledger
        self._most_open, self._driver_seconds, self._start_seconds = most_open, driver_seconds, start_seconds
        self.tell: Consumers
        self._ready: deque[int] = deque()
        self._nodes: dict[int, list[Gpu]] = {}  # those that are ready, by incarnation
        self._lost: dict[Gpu, None] = {}
        self._roomy: dict[Gpu, None] = {}  # in a fixed order, for a run to be the same again
        self._driver_free_at = 0.0

    @property
    def ready(self) -> int:
        """Parts that were read, and that no model has taken yet."""
        return len(self._ready)

    def offer(self, part: int) -> None:
        """A part was read."""
        self._ready.append(part)
        self._spread()

    def join(self, node: int, gpus: list[Gpu]) -> None:
        """A node is ready; it begins with what the one that stood there had open."""
        self._nodes[node] = gpus
        unread: list[int] = []
        for gpu in gpus:
            gpu.node = node
            self._lost.pop(gpu, None)
            gpu.pool.advance(self._clock.now)
            kept, gpu.kept = gpu.kept, []
            gpu.open += len(kept)
            unread += self._begin(gpu, kept)
        self._spread()
        self.tell.unread(unread)

    def lose(self, node: int) -> None:
        """A node is gone, with all that is open on its GPUs, and the log-mel of what was read on it."""
        gpus = self._nodes.pop(node, [])
        self._lost |= dict.fromkeys(gpus)
        displaced = [(gpu, part) for gpu in gpus for part in self._abandon(gpu)]
        unread = [part for part in self._ready if self._ledger.home[part] == node]
        self._ready = deque(part for part in self._ready if self._ledger.home[part] != node)
        unread += self._displace(displaced)
        for _ in range(len(unread)):
            self.tell.taken()
        self.tell.unread(unread)
        self._spread()
        self._start_elsewhere()

    def _start_elsewhere(self) -> None:
        """When nothing is left to hand out: lost models start where others have nothing left to do."""
        if self._ready or not self._lost or not self.tell.all_read():
            return
        free = [gpu for gpu in self._roomy if not gpu.open]
        waiting = [gpu for gpu in self._lost if gpu.kept]
        for gpu, lost in zip(free, waiting, strict=False):
            kept, lost.kept = lost.kept, []
            gpu.open += len(kept)
            self._roomy.pop(gpu)
            self._clock.after(self._start_seconds, self._started, gpu, gpu.node, kept)

    def _started(self, gpu: Gpu, node: int, parts: list[int]) -> None:
        there = gpu.node == node
        self.tell.unread(self._begin(gpu, parts) if there else self._displace([(gpu, part) for part in parts]))

    def _begin(self, gpu: Gpu, parts: list[int]) -> list[int]:
        """Open parts that were reserved for a GPU; returns those that have to be read again first."""
        self._end(gpu)
        unread = [part for part in parts if self._ledger.home[part] not in self._nodes]
        for part in parts:
            if self._ledger.home[part] in self._nodes:
                gpu.pool.add(part)
        gpu.open -= len(unread)
        self._plan(gpu)
        self._note_room(gpu)
        return unread

    def _spread(self) -> None:
        while self._ready and self._roomy:
            part = self._ready.popleft()
            gpu = self._choose(part)
            if self._give(part, gpu):
                self._plan(gpu)
            self._note_room(gpu)
            self.tell.taken()

    def _choose(self, part: int) -> Gpu:
        """The one with the fewest open parts: on the machine where the part lies, or anywhere."""
        if len(self._roomy) == 1:
            return next(iter(self._roomy))
        near = [gpu for gpu in self._nodes.get(self._ledger.home[part], ()) if gpu.open < self._most_open]
        return min(near or self._roomy, key=_open)

    def _give(self, part: int, gpu: Gpu) -> bool:
        """Whether the part is there already: else it arrives when the driver is through with those before it."""
        now = self._clock.now
        begins = max(now, self._driver_free_at)
        self._driver_free_at = begins + self._driver_seconds
        gpu.open += 1
        if begins - now > SOON:
            self._clock.at(begins, self._arrive, part, gpu, gpu.node)
            return False
        self._end(gpu)
        gpu.pool.add(part)
        return True

    def _arrive(self, part: int, gpu: Gpu, node: int) -> None:
        if gpu.node != node:
            self.tell.unread(self._displace([(gpu, part)]))
            return
        self._end(gpu)
        gpu.pool.add(part)
        self._plan(gpu)

    def _plan(self, gpu: Gpu) -> None:
        """Come back when the next of its open parts ends; whatever was planned before does not hold any more."""
        gpu.plans += 1
        when = gpu.pool.next_end()
        if when < math.inf:
            self._clock.at(when, self._turn, gpu, gpu.plans)

    def _note_room(self, gpu: Gpu) -> None:
        if gpu.node is not None and gpu.open < self._most_open:
            self._roomy[gpu] = None
        else:
            self._roomy.pop(gpu, None)

    def _turn(self, gpu: Gpu, plan: int) -> None:
        if plan != gpu.plans:
            return
        self._end(gpu)
        while self._ready and gpu.open < self._most_open:  # it alone has room, or nothing would be waiting
            self._give(self._ready.popleft(), gpu)
            self.tell.taken()
        self._note_room(gpu)
        self._plan(gpu)
        if not gpu.open:
            self._start_elsewhere()

    def _end(self, gpu: Gpu) -> None:
        for part in gpu.pool.advance(self._clock.now):
            assert gpu.node is not None, "a part ended on a node that is gone"
            gpu.open -= 1
            self.tell.ended(part, gpu.node)

    def _abandon(self, gpu: Gpu) -> list[int]:
        self._end(gpu)
        lost = list(gpu.pool.abandon())
        gpu.node, gpu.open = None, 0
        gpu.plans += 1
        self._note_room(gpu)
        self._ledger.counts.lost_parts += len(lost)
        self._ledger.counts.lost_turns += sum(turns for _, turns in lost)
        return [part for part, _ in lost]

    def _displace(self, parts: list[tuple[Gpu, int]]) -> list[int]:
        """Find a place for parts of GPUs that are gone; returns those that have to be read again first."""
        unread = []
        for gpu, part in parts:
            if self._ledger.home[part] not in self._nodes:
                unread.append(part)
            elif gpu.node is not None:  # it came back before the driver knew that it was gone
                self._ready.appendleft(part)
            else:
                gpu.kept.append(part)
        return unread


def _open(gpu: Gpu) -> int:
    return gpu.open
