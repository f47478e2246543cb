"""The slots of a simulated GPU: closed forms, the two pools against each other, and both against the real engine."""

from __future__ import annotations

import numpy as np
import pytest

from infra.simulate_pool import Pace, SharedPool, WindowPool
from model.dimensions import WINDOW_FRAMES
from model.engine import Engine
from model.options import DecodeOptions
from tests.model.scripted import ScriptedNet, saying, scripted_part, tokens_of

SLOTS, TURN = 4, 0.5
PARTS = 12


def run(pool: SharedPool | WindowPool, parts: int, most_open: int) -> list[tuple[float, int]]:
    """When each part ends, with so many open until none is left."""
    waiting, ended, now = list(range(parts)), [], 0.0
    while waiting or len(pool):
        while waiting and len(pool) < most_open:
            pool.add(waiting.pop(0))
        now = pool.next_end()
        ended += [(now, part) for part in pool.advance(now)]
    return ended


def windows_of(turns: list[list[float]], part: int) -> list[tuple[float, float]]:
    """Equal windows of 27 seconds."""
    return [(27.0 * (len(turns[part]) - number), each) for number, each in enumerate(turns[part])]


def window_pool(pace: Pace, turns: list[list[float]]) -> WindowPool:
    return WindowPool(pace, lambda part: windows_of(turns, part))


def test_a_full_pool_of_equal_parts_ends_when_arithmetic_says() -> None:
    """Twelve parts of ten turns in four slots: thirty turns of half a second."""
    pace = Pace(SLOTS, TURN, fixed_share=0.25)
    for pool in (SharedPool(pace, [10.0] * 12), window_pool(pace, [[5.0, 5.0]] * 12)):
        ended = run(pool, 12, most_open=SLOTS)
        assert ended[-1][0] == pytest.approx(30 * TURN)
        assert pool.busy == pytest.approx(30 * TURN), "never a free slot"


def test_a_turn_takes_what_it_takes_for_all_and_a_share_for_each() -> None:
    """One part alone in four slots: a turn of 0.25 + 0.75 / 4 of a full one."""
    pool = SharedPool(Pace(SLOTS, TURN, fixed_share=0.25), [10.0])
    ((end, _),) = run(pool, 1, most_open=SLOTS)
    assert end == pytest.approx(10 * TURN * 0.4375)
    assert pool.busy == pytest.approx(10 * TURN / SLOTS), "a quarter of what the full pool does in ten turns"


def test_more_open_parts_than_slots_share_them() -> None:
    """Eight equal parts in four slots end together, after as long as two rounds of four."""
    ended = run(SharedPool(Pace(SLOTS, TURN, 0.25), [10.0] * 8), 8, most_open=8)
    assert [when for when, _ in ended] == pytest.approx([20 * TURN] * 8)


def test_what_is_lost_is_what_was_done() -> None:
    pace = Pace(SLOTS, TURN, fixed_share=1.0)
    pools = SharedPool(pace, [10.0, 6.0]), window_pool(pace, [[5.0, 5.0], [6.0]])
    for pool in pools:
        pool.add(0)
        pool.add(1)
        pool.next_end()
        assert pool.advance(3.5) == [1], "seven turns"
        assert dict(pool.abandon()) == {0: pytest.approx(7.0)}
        assert len(pool) == 0 and pool.next_end() == float("inf")


def test_the_longest_remaining_part_gets_the_free_slot() -> None:
    """One slot, parts of one and of three windows: the long one goes first until they are level."""
    ended = run(window_pool(Pace(1, TURN, 0.0), [[4.0], [4.0, 4.0, 4.0]]), 2, most_open=2)
    assert [part for _, part in ended] == [0, 1], "level, and the first to come goes on"
    assert [when for when, _ in ended] == pytest.approx([3 * 4 * TURN, 4 * 4 * TURN])


def test_both_pools_do_the_same_work_in_about_the_same_time() -> None:
    """What differs is which part ends first, and so how the last slots empty."""
    random = np.random.default_rng(0)
    turns = [list(random.uniform(20, 80, random.integers(1, 12))) for _ in range(1000)]
    pace = Pace(64, TURN, fixed_share=0.25)
    shared = SharedPool(pace, [sum(own) for own in turns])
    single = window_pool(pace, turns)
    ends = [run(pool, len(turns), most_open=80)[-1][0] for pool in (shared, single)]
    assert shared.busy == pytest.approx(single.busy) == pytest.approx(sum(map(sum, turns)) * TURN / 64)
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_turn_for_turn_it_is_the_real_engine() -> None:
    """Scripted windows of 4 to 20 words: turns and occupancy are those that the engine counts itself."""
    random = np.random.default_rng(1)
    lengths = [int(count) for count in random.integers(1, 5, PARTS)]
    words = {
        (part, 3000 * window): int(random.integers(4, 21)) for part in range(PARTS) for window in range(lengths[part])
    }
    said = {
        at: "<0.00>" + "".join(f" {chr(97 + n % 26)}{n}" for n in range(count)) + "<30.00>"
        for at, count in words.items()
    }
    net = saying(said)
    options = DecodeOptions.exact(temperatures=(0.0,), language="en", previous_text=False)
    engine = Engine(net, net.tokenizer, options, SLOTS, encode_batch=1)
    futures = [engine.submit(scripted_part(part, 30.0 * lengths[part])) for part in range(PARTS)]
    engine.drain()
    tokens = [[len(said_in(net, said[part, WINDOW_FRAMES * n])) for n in range(lengths[part])] for part in range(PARTS)]
    assert sum(map(sum, tokens)) == engine.counters.tokens == sum(future.result().tokens for future in futures)
    pool = window_pool(Pace(SLOTS, 1.0, fixed_share=1.0), tokens)  # a turn is a second, however full
    turns = run(pool, PARTS, most_open=PARTS)[-1][0]
    assert turns == pytest.approx(engine.counters.turns, abs=2)
    assert sum(map(sum, tokens)) / turns / SLOTS == pytest.approx(engine.counters.occupancy(SLOTS), abs=0.01)


@pytest.mark.parametrize(("most_open", "measured"), [(30, 0.909), (200, 0.986)])
def test_it_is_as_full_as_the_engine_was_over_a_whole_archive(most_open: int, measured: float) -> None:
    """The parts of `tests/model/test_engine_occupancy.py`: the same draws, and what the real engine came to."""
    random = np.random.default_rng(0)
    frames = [round(seconds * 100) for seconds in random.uniform(2.0, 900.0, 200)]
    words = [random.integers(2, 17, -(-own // WINDOW_FRAMES)) for own in frames]
    turns = [[(count + 3.0) * (2 if count % 8 == 0 else 1) for count in own] for own in words]
    left = [[own - WINDOW_FRAMES * number for number in range(len(turns[part]))] for part, own in enumerate(frames)]
    pool = WindowPool(Pace(24, 1.0, 1.0), lambda part: list(zip(left[199 - part], turns[199 - part], strict=True)))
    end = run(pool, 200, most_open)[-1][0]  # the last part first, as there
    assert sum(map(sum, turns)) / end / 24 == pytest.approx(measured, abs=0.005)


def said_in(net: ScriptedNet, line: str) -> list[int]:
    """The tokens of a scripted line and its end."""
    return [*tokens_of(net.tokenizer, line), net.tokenizer.eot]
