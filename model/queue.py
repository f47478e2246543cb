"""Which part's next window is read next: the one policy that decides when parts end and how full the slots stay.

It orders whatever it is given by how much is left of it. It refuses to know what that is: the engine queues parts of
audio, and a simulation of thousands of engines, without a net among them, queues numbers.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LongestFirst(Generic[Item]):
    """Longest remaining first, so that the tail stays full; then first come.

    With m equal slots, serving the longest first ends within 4/3 of the best order there is (Graham, 1969).
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: Item, remaining: float, order: int) -> None:
        """Queue an item of which so much remains, in any unit; it must not change until the item is popped.

        order: when it came first, unique to each item, and the same whenever it comes again.
        """
        heapq.heappush(self._heap, (-remaining, order, item))

    def pop(self) -> Item:
        """Take out the item whose turn it is. Raises: IndexError when nothing is queued."""
        return heapq.heappop(self._heap)[2]

    def clear(self) -> None:
        self._heap.clear()
