"""Where the windows lie that vote on a language, and who wins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import WINDOW_FRAMES
from model.vote import elect, voting_windows

MINUTE = 6000  # frames


@st.composite
def parts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Frames of content, and spans of speech in it."""
    edges = sorted(draw(st.sets(st.integers(0, 15 * MINUTE), min_size=2, max_size=20)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    return edges[-1] + draw(st.integers(0, MINUTE)), spans


# --- where ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "speech", "count", "begins"),
    [
        (5 * MINUTE, None, 1, (0,)),
        (5 * MINUTE, None, 3, (0, 10_000, 20_000)),
        (5 * MINUTE, [], 3, (0, 10_000, 20_000)),  # somebody looked and found nobody: the part is all there is
        (MINUTE, None, 5, (0, 3000)),  # a minute has room for two
        (5999, None, 5, (0,)),
        (800, None, 5, (0,)),  # shorter than a window
        (5 * MINUTE, [(7000, 13_000), (20_000, 26_000)], 1, (7000,)),
        (5 * MINUTE, [(7000, 13_000), (20_000, 26_000)], 2, (7000, 20_000)),
        (5 * MINUTE, [(7000, 13_000), (20_000, 26_000)], 3, (7000, 11_000, 22_000)),
        (5 * MINUTE, [(7000, 7500), (20_000, 20_500)], 3, (7000,)),  # ten seconds fill no second window
        (5 * MINUTE, [(29_500, 29_900)], 1, (27_000,)),  # earlier, to end with the part
    ],
)
def test_windows_are_spread_over_the_speech(
    content: int, speech: list[tuple[int, int]] | None, count: int, begins: tuple[int, ...]
) -> None:
    assert voting_windows(content, speech, count) == begins


@given(parts(), st.integers(1, 30))
def test_windows_lie_in_the_part_apart_from_each_other_and_begin_in_speech(
    part: tuple[int, list[tuple[int, int]]], count: int
) -> None:
    content, spans = part
    begins = voting_windows(content, spans, count)
    assert 1 <= len(begins) <= count
    assert begins[0] == min(spans[0][0], max(0, content - WINDOW_FRAMES))
    assert all(later - earlier >= WINDOW_FRAMES for earlier, later in zip(begins, begins[1:], strict=False))
    assert begins[-1] == 0 or begins[-1] + WINDOW_FRAMES <= content
    assert len(begins) == 1 or all(any(start <= begin < end for start, end in spans) for begin in begins)


# --- who -----------------------------------------------------------------------------------------------------------


def test_one_window_decides_alone() -> None:
    assert elect([[0.2, 0.7, 0.1]]) == (1, 0.7)


def test_the_mean_decides_and_is_the_probability() -> None:
    index, probability = elect([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    assert (index, probability) == (1, pytest.approx(0.55))


def test_two_windows_in_doubt_do_not_outvote_a_sure_one() -> None:
    """By heads the first language would win."""
    index, probability = elect([[0.30, 0.25, 0.23, 0.22], [0.30, 0.25, 0.23, 0.22], [0.01, 0.97, 0.01, 0.01]])
    assert (index, probability) == (1, pytest.approx(0.49))


def test_of_equals_the_first_wins_in_any_order_of_windows() -> None:
    assert elect([[0.0, 0.5, 0.5]])[0] == 1
    votes = np.random.default_rng(0).dirichlet(np.ones(99), size=5)
    assert elect(votes)[0] == elect(votes[::-1])[0]
