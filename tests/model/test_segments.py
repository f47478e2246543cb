"""Cutting a window at its timestamps: every shape of window, and what holds for all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import OFFICIAL, WINDOW_FRAMES
from model.segments import NO_TIMESTAMP_PAIR, UNFINISHED_TAIL_DROPPED, Piece, WindowCut, cut_window

DIMS = OFFICIAL["base"]
BEGIN = 50_364
A, B, C = 100, 200, 300  # words


def at(seconds: float) -> int:
    """The timestamp token of so many seconds."""
    return BEGIN + round(seconds * 50)


def cut(*tokens: int, frames: int = WINDOW_FRAMES) -> WindowCut:
    return cut_window(tokens, BEGIN, frames, DIMS)


def times(result: WindowCut) -> list[tuple[float, float]]:
    return [(piece.start, piece.end) for piece in result.pieces]


def test_a_pair_ends_one_segment_and_starts_the_next() -> None:
    result = cut(at(0), A, at(2.5), at(3), B, C, at(7.5), at(7.5))
    assert result.pieces == (Piece(0.0, 2.5, (at(0), A, at(2.5))), Piece(3.0, 7.5, (at(3), B, C, at(7.5))))
    assert result.advance == 750  # to where the last segment ended: frames of 10 ms
    assert result.rule is None  # a bare timestamp behind the last pair is nothing lost


def test_what_follows_the_last_pair_is_heard_again() -> None:
    result = cut(at(0.5), A, at(2), at(2.2), B)
    assert result == WindowCut((Piece(0.5, 2.0, (at(0.5), A, at(2))),), 200, UNFINISHED_TAIL_DROPPED)


def test_the_seek_goes_to_the_end_of_the_last_segment_not_to_the_start_of_the_next() -> None:
    assert cut(at(0), A, at(2), at(9), B).advance == 200


def test_a_single_timestamp_at_the_end_means_nothing_follows() -> None:
    result = cut(at(0), A, at(2), at(2), B, at(4))
    assert times(result) == [(0.0, 2.0), (2.0, 4.0)]
    assert (result.advance, result.rule) == (WINDOW_FRAMES, None)


def test_a_pair_at_the_very_end_is_not_a_single_timestamp() -> None:
    result = cut(at(0), A, at(4), at(4))
    assert (times(result), result.advance) == ([(0.0, 4.0)], 400)


def test_without_a_pair_the_window_is_one_segment_up_to_its_last_timestamp() -> None:
    result = cut(at(1), A, B, at(6))
    assert result == WindowCut((Piece(0.0, 6.0, (at(1), A, B, at(6))),), WINDOW_FRAMES, NO_TIMESTAMP_PAIR)


def test_an_opening_timestamp_alone_gives_the_duration() -> None:
    assert times(cut(at(0.8), A, B)) == [(0.0, pytest.approx(0.8))]


@pytest.mark.parametrize("tokens", [(A, B), (at(0), A, B), ()])
def test_with_no_timestamp_above_zero_the_segment_fills_the_window(tokens: tuple[int, ...]) -> None:
    result = cut(*tokens)
    assert result == WindowCut((Piece(0.0, 30.0, tokens),), WINDOW_FRAMES, NO_TIMESTAMP_PAIR)


def test_a_short_last_window_is_filled_and_left_as_a_whole() -> None:
    assert cut(at(0), A, frames=1234) == WindowCut((Piece(0.0, 12.34, (at(0), A)),), 1234, NO_TIMESTAMP_PAIR)
    assert cut(at(0), A, at(2), at(2), B, at(4), frames=1234).advance == 1234


def test_a_timestamp_behind_the_end_of_a_short_window_still_counts() -> None:
    """The reference trusts the timestamp, even beyond the audio; the seek then ends the part."""
    result = cut(at(0), A, at(25), at(25), B, frames=1234)
    assert (times(result), result.advance) == ([(0.0, 25.0)], 2500)


@st.composite
def windows(draw: st.DrawFn) -> list[int]:
    """Tokens as the rules of `model.rules` let them be sampled: pairs, rising, with any ending."""
    count = draw(st.integers(1, 5))
    ticks = sorted(draw(st.lists(st.integers(0, 1500), min_size=2 * count, max_size=2 * count, unique=True)))
    words = st.lists(st.integers(0, 999), min_size=1, max_size=3)
    tokens = []
    for start, end in zip(ticks[::2], ticks[1::2], strict=True):
        tokens += [BEGIN + start, *draw(words), BEGIN + end]
    ending = draw(st.sampled_from(["single", "pair", "tail", "unended"]))
    if ending == "unended":
        return tokens[:-1]
    return tokens + {"single": [], "pair": [BEGIN + ticks[-1]], "tail": [BEGIN + ticks[-1], *draw(words)]}[ending]


@given(windows())
def test_segments_are_in_order_and_the_seek_moves_on(tokens: list[int]) -> None:
    result = cut(*tokens)
    assert 1 <= result.advance <= WINDOW_FRAMES
    assert all(0 <= piece.start < piece.end <= 30 or result.rule == NO_TIMESTAMP_PAIR for piece in result.pieces)
    assert all(one.end <= other.start for one, other in pairwise(result.pieces))


@given(windows())
def test_no_token_is_lost_but_an_unfinished_tail(tokens: list[int]) -> None:
    result = cut(*tokens)
    kept = [token for piece in result.pieces for token in piece.tokens]
    assert kept == tokens[: len(kept)]
    lost = tokens[len(kept) :]
    assert any(token < BEGIN for token in lost) == (result.rule == UNFINISHED_TAIL_DROPPED)
    assert result.advance == WINDOW_FRAMES or len(lost) >= 1 or kept[-1] == BEGIN + 1500


@given(windows())
def test_what_is_dropped_lies_behind_the_seek(tokens: list[int]) -> None:
    result = cut(*tokens)
    if result.rule == UNFINISHED_TAIL_DROPPED:
        assert result.advance == round(result.pieces[-1].end * 100)
