"""The order in which parts are read: longest remaining first, whatever the parts are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.queue import LongestFirst


class Incomparable:
    """What is queued need not have an order of its own."""

    __lt__ = None


def drained(queue: LongestFirst[str]) -> str:
    return "".join(queue.pop() for _ in range(len(queue)))


def test_the_longest_goes_first_whenever_it_came() -> None:
    queue: LongestFirst[str] = LongestFirst()
    for order, (name, remaining) in enumerate([("b", 20), ("c", 10), ("a", 30)]):
        queue.push(name, remaining, order)
    assert drained(queue) == "abc"


def test_of_equals_the_first_to_come_goes_first_and_is_never_compared() -> None:
    queue: LongestFirst[Incomparable] = LongestFirst()
    items = [Incomparable() for _ in range(20)]
    for order in reversed(range(20)):
        queue.push(items[order], 300.0, order)
    assert [queue.pop() for _ in items] == items


def test_one_that_comes_back_shorter_waits_behind_the_longer_and_keeps_its_place_among_equals() -> None:
    queue: LongestFirst[str] = LongestFirst()
    queue.push("a", 60, 0)
    queue.push("b", 60, 1)
    queue.push("c", 30, 2)
    assert queue.pop() == "a"
    queue.push("a", 30, 0)
    assert drained(queue) == "bac"


def test_cleared_it_is_empty_and_of_use() -> None:
    queue: LongestFirst[str] = LongestFirst()
    queue.push("a", 1, 0)
    assert len(queue) == 1
    queue.clear()
    assert not queue
    with pytest.raises(IndexError):
        queue.pop()
    queue.push("b", 1, 0)
    assert queue.pop() == "b"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_whatever_is_pushed_in_between_the_longest_of_all_that_wait_is_popped(moves: list[tuple[bool, int]]) -> None:
    queue: LongestFirst[int] = LongestFirst()
    waiting: dict[int, int] = {}
    for order, (pops, remaining) in enumerate(moves):
        if pops and waiting:
            first = queue.pop()
            assert first == min(waiting, key=lambda one: (-waiting[one], one))
            del waiting[first]
        queue.push(order, remaining, order)
        waiting[order] = remaining
        assert len(queue) == len(waiting)
