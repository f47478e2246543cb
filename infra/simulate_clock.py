"""Simulated time: what happens next, and who waits for it.

Things happen at a time, those at the same time in the order they were planned, so a seed decides everything. A process
is a generator that yields seconds to sleep, or None to sleep until it is woken. It knows nothing of what is simulated.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from typing import Any

Sleeps = Generator[float | None, None, None]


class Clock:
    """`now` moves from event to event while `run` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = itertools.count()
        self._stopped = False

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """Call `act(*args)` at a time that has not passed."""
        heapq.heappush(self._events, (when, next(self._planned), act, args))

    def after(self, seconds: float, act: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, act, *args)

    def run(self) -> None:
        """Until nothing is planned any more, or it was stopped."""
        events = self._events
        while events and not self._stopped:
            self.now, _, act, args = heapq.heappop(events)
            act(*args)

    def stop(self) -> None:
        """Let nothing happen any more, though things are planned."""
        self._stopped = True


class Process:
    """A generator that lives on the clock from now on, until it ends or is killed."""

    def __init__(self, clock: Clock, sleeps: Sleeps) -> None:
        self._clock, self._sleeps = clock, sleeps
        self._alive = True
        self.wake()

    def wake(self) -> None:
        """Go on: now, after what was planned for now. Only for one that sleeps until it is woken."""
        self._clock.at(self._clock.now, self._go_on)

    def kill(self) -> None:
        """It does not wake any more."""
        self._alive = False
        self._sleeps.close()

    def _go_on(self) -> None:
        if self._alive:
            seconds = next(self._sleeps, None)
            if seconds is not None:
                self._clock.at(self._clock.now + seconds, self._go_on)
