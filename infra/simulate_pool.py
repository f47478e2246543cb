"""The slots of one GPU, filled and emptied as the engine does it: turns instead of tokens, numbers instead of parts.

    SharedPool   open parts share the occupied slots evenly: a part is one event
    WindowPool   each window for itself, in the order of `model.queue.LongestFirst`: a window is one event

A turn is a step of all occupied slots, and its time grows with their number: `Pace`. The two agree on how much is done,
and differ in which part is done first. Neither knows where parts come from, or what becomes of them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from model.queue import LongestFirst

MOST_SHARING = 4  # times as many open parts as slots; the pipeline opens a quarter more
_ROUNDING = 1e-6  # turns that are as good as over: after weeks, the clock itself is no finer than 1e-9 s


class Pace:
    """How fast turns follow each other with so many slots occupied.

    turn_seconds: of a turn with all slots occupied. fixed_share: of it that an empty slot does not save: reading the
    weights and starting kernels, but not encoding windows and reading their keys and values.
    """

    def __init__(self, slots: int, turn_seconds: float, fixed_share: float) -> None:
        self.slots = slots
        seconds = [turn_seconds * (fixed_share + (1 - fixed_share) * count / slots) for count in range(slots + 1)]
        self.turns_per_second = [0.0, *(1 / each for each in seconds[1:])]
        full = slots * self.turns_per_second[slots]
        # By occupied slots: share of the work of a full pool that is done in the same time.
        self.output = [count * rate / full for count, rate in enumerate(self.turns_per_second)]
        # By parts that share the slots: turns a second of each, and the output of all.
        self.shared = [(0.0, 0.0), *(self._shared(count) for count in range(1, MOST_SHARING * slots + 1))]

    def _shared(self, parts: int) -> tuple[float, float]:
        occupied = min(parts, self.slots)
        return self.turns_per_second[occupied] * occupied / parts, self.output[occupied]


class SharedPool:
    """Processor sharing: `turned` counts the turns that each open part has had, so that ends keep their order."""

    def __init__(self, pace: Pace, turns: Sequence[float]) -> None:
        self._pace, self._turns = pace, turns
        self._ends: list[tuple[float, int]] = []  # a heap: `turned` when a part ends, the part
        self._turned = 0.0
        self._since = 0.0
        self._rate = self._output = 0.0  # with the parts that are open now
        self.busy = 0.0  # seconds, as if the slots had been full

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, part: int) -> None:
        """Open a part, at the time to which the pool was advanced."""
        heapq.heappush(self._ends, (self._turned + self._turns[part], part))
        self._rate, self._output = self._pace.shared[len(self._ends)]

    def advance(self, now: float) -> list[int]:
        """Let time pass; returns the parts that have ended by then."""
        elapsed, self._since = now - self._since, now
        ended = []
        ends = self._ends
        if ends:
            self._turned += elapsed * self._rate
            self.busy += elapsed * self._output
            while ends and ends[0][0] <= self._turned + _ROUNDING:
                ended.append(heapq.heappop(ends)[1])
            if ended:
                self._rate, self._output = self._pace.shared[len(ends)]
        return ended

    def next_end(self) -> float:
        """When the next part ends if nothing is added before: at least now; never, if there is none."""
        if not self._ends:
            return math.inf
        return self._since + max(0.0, self._ends[0][0] - self._turned) / self._rate

    def busy_at(self, now: float) -> float:
        """`busy` at a time before which no part ends."""
        return self.busy + (now - self._since) * self._output

    def abandon(self) -> Iterator[tuple[int, float]]:
        """Lose everything: each open part, and the turns it has had for nothing."""
        ends, self._ends = self._ends, []
        self._rate = self._output = 0.0
        for end, part in ends:
            yield part, self._turns[part] - max(0.0, end - self._turned)


class WindowPool:
    """One window in each slot; whose turn it is to enter a free one, the engine's own queue says."""

    def __init__(self, pace: Pace, windows: Callable[[int], list[tuple[float, float]]]) -> None:
        self._pace, self._windows = pace, windows
        self._waiting: LongestFirst[int] = LongestFirst()
        self._slots: list[tuple[float, int, int]] = []  # a heap: `turned` when a window ends, its order, its part
        self._left: dict[int, list[tuple[float, float]]] = {}  # windows of each open part, the next one last
        self._order: dict[int, int] = {}
        self._come = itertools.count()
        self._turned = 0.0
        self._since = 0.0
        self.busy = 0.0

    def __len__(self) -> int:
        return len(self._left)

    def add(self, part: int) -> None:
        """As `SharedPool.add`."""
        self._left[part] = self._windows(part)[::-1]
        self._order[part] = next(self._come)
        self._wait(part)

    def advance(self, now: float) -> list[int]:
        """As `SharedPool.advance`."""
        ended: list[int] = []
        while (until := self.next_end()) <= now + _ROUNDING:
            self._turn(max(self._since, min(now, until)))
            self._turned = max(self._turned, self._slots[0][0])
            while self._slots and self._slots[0][0] <= self._turned + _ROUNDING:
                self._judge(heapq.heappop(self._slots)[2], ended)
        self._turn(now)
        return ended

    def next_end(self) -> float:
        """When the next window ends: a time to advance to, which may end no part. Fills the free slots first."""
        self._fill()
        if not self._slots:
            return math.inf
        left = max(0.0, self._slots[0][0] - self._turned)
        return self._since + left / self._pace.turns_per_second[len(self._slots)]

    def busy_at(self, now: float) -> float:
        """`busy` at a time before which no window ends."""
        return self.busy + (now - self._since) * self._pace.output[len(self._slots)]

    def abandon(self) -> Iterator[tuple[int, float]]:
        """As `SharedPool.abandon`."""
        begun = {part: end - self._turned for end, _, part in self._slots}
        open_parts, self._left, self._slots = self._left, {}, []
        self._waiting.clear()
        self._order.clear()
        for part, left in open_parts.items():
            still = sum(turns for _, turns in left)
            if part in begun:
                still += begun[part] - left[-1][1]
            yield part, sum(turns for _, turns in self._windows(part)) - still

    def _turn(self, now: float) -> None:
        elapsed, self._since = now - self._since, now
        occupied = len(self._slots)
        self._turned += elapsed * self._pace.turns_per_second[occupied]
        self.busy += elapsed * self._pace.output[occupied]

    def _judge(self, part: int, ended: list[int]) -> None:
        self._left[part].pop()
        if self._left[part]:
            self._wait(part)
        else:
            del self._left[part], self._order[part]
            ended.append(part)

    def _wait(self, part: int) -> None:
        self._waiting.push(part, self._left[part][-1][0], self._order[part])

    def _fill(self) -> None:
        while self._waiting and len(self._slots) < self._pace.slots:
            part = self._waiting.pop()
            heapq.heappush(self._slots, (self._turned + self._left[part][-1][1], self._order[part], part))
