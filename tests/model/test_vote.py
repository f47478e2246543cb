"""Where the windows lie that vote on a language, and who wins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import WINDOW_FRAMES
from model.vote import elect, voting_windows

MINUTE = 6000  # frames


# --- where ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "count", "begins"),
    [
        (5 * MINUTE, 1, (0,)),
        (5 * MINUTE, 3, (0, 10_000, 20_000)),
        (MINUTE, 5, (0, 3000)),  # a minute has room for two
        (5999, 5, (0,)),
        (800, 5, (0,)),  # shorter than a window
    ],
)
def test_windows_are_spread_over_the_audio(content: int, count: int, begins: tuple[int, ...]) -> None:
    assert voting_windows(content, count) == begins


@given(st.integers(1, 15 * MINUTE), st.integers(1, 30))
def test_windows_lie_in_the_part_apart_from_each_other(content: int, count: int) -> None:
    begins = voting_windows(content, count)
    assert 1 <= len(begins) <= count
    assert begins[0] == 0
    assert all(later - earlier >= WINDOW_FRAMES for earlier, later in zip(begins, begins[1:], strict=False))
    assert begins[-1] == 0 or begins[-1] + WINDOW_FRAMES <= content


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
