"""Beam search and the best of many samples, on windows small enough to work out by hand or by trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.beam import BeamSearch, BestOf, Candidate, candidates_wanted, likeliest
from model.errors import UsageError

A, B, C, D, EOT = range(5)
NEVER = -math.inf


def search(
    beam_size: int = 2, patience: float = 1.0, length_penalty: float | None = None, limit: int = 9
) -> BeamSearch:
    return BeamSearch(beam_size, patience, length_penalty, EOT, limit)


def step(beam: BeamSearch, *lanes: dict[int, float]) -> tuple[list[int], list[int]]:
    """Extend each lane by the likeliest of these tokens, or all lanes alike."""
    lanes = lanes * len(beam.lanes) if len(lanes) == 1 else lanes
    ranked = [sorted(lane.items(), key=lambda item: -item[1]) for lane in lanes]
    return beam.step([[p for _, p in lane] for lane in ranked], [[token for token, _ in lane] for lane in ranked])


# --- one step ---------------------------------------------------------------------------------------------------------


def test_at_first_all_lanes_read_the_same_and_each_token_counts_once() -> None:
    beam = search(beam_size=3)
    _, fed = step(beam, {A: -0.5, B: -1.5, C: -2.0, D: -3.0})
    assert fed == [A, B, C]
    assert beam.lanes == [Candidate((A,), -0.5), Candidate((B,), -1.5), Candidate((C,), -2.0)]


def test_a_likely_history_is_continued_twice_and_an_unlikely_one_not_at_all() -> None:
    beam = search()
    step(beam, {A: -0.5, B: -2.0, C: -3.0})
    parents, fed = step(beam, {A: -1.0, C: -0.5, B: -3.0}, {A: -0.25, B: -1.0, C: -2.0})
    assert (parents, fed) == ([0, 0], [C, A])
    assert beam.lanes == [Candidate((A, C), -1.0), Candidate((A, A), -1.5)]


def test_lanes_change_places_with_their_likelihood() -> None:
    beam = search()
    step(beam, {A: -0.5, B: -0.75, C: -3.0})
    parents, fed = step(beam, {A: -2.0, C: -3.0, B: -4.0}, {D: -0.5, B: -3.0, C: -4.0})
    assert (parents, fed) == ([1, 0], [D, A])
    assert [lane.tokens for lane in beam.lanes] == [(B, D), (A, A)]


def test_an_ended_reading_leaves_its_place_to_the_next() -> None:
    beam = search()
    step(beam, {A: -0.5, B: -1.0, C: -3.0})
    parents, fed = step(beam, {EOT: -0.25, A: -2.0, B: -4.0}, {C: -0.75, EOT: -2.5, A: -3.0})
    assert (parents, fed) == ([1, 0], [C, A])
    assert beam.ended == [Candidate((A,), -0.75)]  # the end's own probability included


def test_an_end_less_likely_than_every_lane_does_not_count() -> None:
    beam = search()
    step(beam, {A: -0.5, B: -1.0, C: -3.0})
    step(beam, {A: -0.5, B: -1.0, EOT: -1.25}, {C: -0.75, A: -3.0, EOT: -4.0})
    assert beam.ended == []


def test_equals_stay_in_the_order_of_their_lanes() -> None:
    beam = search(beam_size=3)
    step(beam, {B: -1.0, A: -1.0, D: -1.0, C: -1.0})
    parents, fed = step(beam, {D: -1.0, C: -1.0, B: -2.0, A: -2.0})
    assert (parents, fed) == ([0, 0, 1], [D, C, D])


def test_what_the_rules_forbid_fills_lanes_only_where_nothing_else_is_left() -> None:
    beam = search()
    _, fed = step(beam, {C: -0.1, A: NEVER, B: NEVER})
    assert fed == [C, A]
    parents, fed = step(beam, {A: -1.0, B: -2.0, C: -3.0})
    assert (parents, fed) == ([0, 0], [A, B])  # and gives its place up at once
    assert all(math.isfinite(lane.sum_logprob) for lane in beam.lanes)


def test_sums_are_kept_in_single_precision() -> None:
    beam = search(beam_size=1)
    logprobs = np.array([-1.1, -(2.0**-25), -0.3], np.float32)
    expected = np.float32(0)
    for logprob in logprobs:
        step(beam, {A: float(logprob), B: -50.0})
        expected += logprob
    assert beam.lanes[0].sum_logprob == float(expected) != float(logprobs.astype(np.float64).sum())


def test_rows_and_columns_of_a_wider_pool_are_ignored() -> None:
    beam, wide = search(), search()
    step(beam, {A: -0.5, B: -1.0, C: -3.0})
    wide.step([[-0.5, -1.0, -3.0, -3.5]] * 4, [[A, B, C, D]] * 4)
    assert wide.lanes == beam.lanes
    narrow = step(beam, {A: -2.0, C: -3.0, B: -4.0}, {D: -0.5, B: -3.0, C: -4.0})
    rows = [[-2.0, -3.0, -4.0, -5.0], [-0.5, -3.0, -4.0, -5.0], [-0.01, -0.02, -0.03, -0.04]]
    assert wide.step(np.array(rows), np.array([[A, C, B, D], [D, B, C, A], [A, B, C, D]])) == narrow


def test_fewer_lanes_than_the_beam_has_are_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        search().step([[-0.5, -1.0, -3.0]], [[A, B, C]])


# --- the end of a search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beam_size", "patience", "wanted"),
    [(1, 1.0, 1), (5, 1.0, 5), (5, 2.0, 10), (5, 0.5, 2), (3, 0.5, 2), (1, 1.5, 2), (5, 0.3, 2), (4, 0.3, 1)],
)
def test_patience_says_how_many_must_have_ended(beam_size, patience, wanted) -> None:
    assert candidates_wanted(beam_size, patience) == wanted
    beam, ended = search(beam_size, patience, limit=99), 0
    tokens = {EOT: -0.1} | {token: -3.0 - token for token in range(10, 10 + beam_size)}
    while not beam.finished:
        step(beam, tokens)
        ended += 1
        assert len(beam.ended) <= wanted
    assert len(beam.ended) == wanted


def test_a_search_that_would_wait_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="beam_size 1 × patience 0.5"):
        search(beam_size=1, patience=0.5)


def test_no_more_are_kept_than_wanted_the_likeliest_first() -> None:
    beam = search(patience=0.5)
    step(beam, {A: -0.5, B: -0.75, C: -3.0})
    step(beam, {EOT: -1.0, A: -2.0, B: -4.0}, {EOT: -0.5, A: -2.0, C: -4.0})
    assert beam.finished
    assert beam.ended == [Candidate((B,), -1.25)]


def test_a_search_ends_at_the_token_limit() -> None:
    beam = search(limit=2)
    assert not beam.finished
    step(beam, {A: -0.5, B: -1.0, C: -3.0})
    assert not beam.finished
    step(beam, {A: -0.5, B: -1.0, C: -3.0})
    assert beam.finished
    assert beam.best() == Candidate((A, A), -1.0)


def test_unfinished_readings_fill_up_those_that_ended() -> None:
    beam = search(limit=2)
    step(beam, {A: -0.5, B: -2.0, C: -3.0})
    step(beam, {EOT: -1.5, A: -0.25, B: -4.0}, {C: -0.75, B: -2.5, A: -3.0})
    assert beam.ended == [Candidate((A,), -2.0)]
    assert beam.best() == Candidate((A, A), -0.75)


def test_unfinished_readings_do_not_count_once_enough_have_ended() -> None:
    beam = search(patience=2.0, limit=3)
    step(beam, {A: -0.5, B: -0.5, C: -3.0})
    step(beam, {EOT: -1.0, A: -1.25, B: -9.0}, {EOT: -1.0, A: -1.25, B: -9.0})
    step(beam, {A: -0.01, B: -8.0, C: -9.0})
    assert beam.finished
    assert len(beam.ended) == 2
    assert beam.lanes[0].sum_logprob / 3 > -1.5  # although it is likelier per token
    assert beam.best() == Candidate((A,), -1.5)


def test_an_impatient_search_may_return_what_was_not_finished() -> None:
    beam = search(beam_size=4, patience=0.25)
    step(beam, {A: -0.5, B: -3.0, C: -4.0, D: -5.0, EOT: -6.0})
    step(beam, {EOT: -0.75, A: -0.8, B: -3.0, C: -4.0, D: -5.0})
    assert beam.finished
    assert beam.best() == Candidate((A, A), pytest.approx(-1.3))


def test_the_length_penalty_decides_between_short_and_long() -> None:
    short, long = Candidate((A,), -1.0), Candidate((A, B, C), -1.5)
    assert likeliest([short, long], None) == long  # -1 and -0.5 per token
    assert likeliest([short, long], 0.0) == short  # the plain sums
    assert likeliest([short, long], 1.0) == short  # -1 and -1.5 × 6/8
    close = Candidate((A, B, C), -1.3)
    assert [likeliest([short, close], alpha) for alpha in (0.0, 0.9, 1.0)] == [short, short, close]


@pytest.mark.parametrize(("length_penalty", "tokens"), [(None, (A, A)), (0.0, (A,))])
def test_a_search_ranks_by_its_length_penalty(length_penalty, tokens) -> None:
    beam = search(length_penalty=length_penalty, limit=3)
    step(beam, {A: -0.5, B: -2.0, C: -3.0})
    step(beam, {A: -0.25, EOT: -0.5, B: -4.0}, {A: -1.0, B: -2.0, C: -3.0})
    step(beam, {EOT: -0.5, A: -2.0, B: -3.0}, {A: -2.0, B: -2.0, C: -3.0})
    assert beam.ended == [Candidate((A,), -1.0), Candidate((A, A), -1.25)]
    assert beam.best().tokens == tokens


def test_of_equals_the_first_is_taken() -> None:
    assert likeliest([Candidate((B,), -1.0), Candidate((A,), -1.0), Candidate((A, B), -2.0)], None).tokens == (B,)


def test_an_empty_reading_counts_as_one_token() -> None:
    empty, word = Candidate((), -1.0), Candidate((A,), -1.5)
    assert likeliest([word, empty], None) == empty
    assert likeliest([word, empty], 1.0) == empty  # -1 × 6/5


# --- what holds for every search --------------------------------------------------------------------------------------

LIMIT = 3
STEPS = [prefix for length in range(LIMIT) for prefix in itertools.product((A, B), repeat=length)]


@settings(max_examples=60, deadline=None)
@given(logits=st.lists(st.tuples(*[st.floats(-4.0, 4.0)] * 3), min_size=len(STEPS), max_size=len(STEPS)))
def test_a_beam_as_wide_as_the_tree_finds_what_trying_everything_finds(logits: list[tuple[float, ...]]) -> None:
    """Two words and the end, three steps: seven readings that end, and eight that do not, of which the best counts."""
    chances = {prefix: np.array(row) - np.logaddexp.reduce(row) for prefix, row in zip(STEPS, logits, strict=True)}

    def total(tokens: tuple[int, ...]) -> float:
        return float(sum(chances[tokens[:length]][(A, B, EOT).index(t)] for length, t in enumerate(tokens)))

    every = [Candidate(prefix, total((*prefix, EOT))) for prefix in STEPS if prefix]
    every += [Candidate(tokens, total(tokens)) for tokens in itertools.product((A, B), repeat=LIMIT)]
    best = max(every, key=lambda candidate: candidate.sum_logprob / len(candidate.tokens))

    beam = search(beam_size=len(STEPS) + 1, patience=9.0, limit=LIMIT)
    fill = dict.fromkeys(range(100, 100 + len(STEPS)), NEVER)
    while not beam.finished:
        empty = {EOT: NEVER} if beam.lanes[0].tokens == () else {}  # a window does not end before it starts
        lanes = [dict(zip((A, B, EOT), chances.get(lane.tokens, [NEVER] * 3), strict=True)) for lane in beam.lanes]
        step(beam, *[{**lane, **empty, **fill} for lane in lanes])
    assert beam.best().sum_logprob / len(beam.best().tokens) == pytest.approx(best.sum_logprob / len(best.tokens), 1e-5)


tables = st.lists(st.lists(st.integers(-40, 0), min_size=6, max_size=6), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(tables, min_size=1, max_size=6), patience=st.sampled_from([0.5, 1.0, 2.0]))
def test_histories_passed_on_as_told_are_the_lanes(steps: list[list[list[int]]], patience: float) -> None:
    """What a cache sees: rows that are copied from parents and appended to, and the sums that belong to them."""
    beam, histories = search(beam_size=3, patience=patience, limit=6), [[(-1, 0.0)]] * 3
    for table in steps:
        if beam.finished:
            break
        table = [table[0]] * 3 if not beam.lanes[0].tokens else table
        chances = [{token: logprob / 8 for token, logprob in enumerate(row)} for row in table]
        ranked = [dict(sorted(row.items(), key=lambda item: -item[1])[:4]) for row in chances]
        parents, fed = step(beam, *ranked)
        histories = [[*histories[p], (t, chances[p][t])] for p, t in zip(parents, fed, strict=True)]
    assert [lane.tokens for lane in beam.lanes] == [tuple(t for t, _ in history[1:]) for history in histories]
    assert [lane.sum_logprob for lane in beam.lanes] == [sum(p for _, p in history) for history in histories]
    assert len({lane.tokens for lane in beam.lanes}) == 3  # nothing is read twice
    assert [lane.sum_logprob for lane in beam.lanes] == sorted([lane.sum_logprob for lane in beam.lanes], reverse=True)
    assert all(EOT not in tokens for tokens, _ in [*beam.lanes, *beam.ended])


@given(rows=st.lists(st.permutations([-0.25, -0.5, -1.0, -2.0, -4.0]), min_size=1, max_size=8))
def test_a_beam_of_one_is_greedy(rows: list[list[float]]) -> None:
    beam, greedy = search(beam_size=1, limit=8), BestOf(1, None, EOT, 8)
    for row in rows:
        if not beam.finished:
            step(beam, dict(sorted(enumerate(row), key=lambda item: -item[1])[:2]))
            greedy.step([int(np.argmax(row))], [max(row)])
        assert beam.finished == greedy.finished
    assert beam.best() == greedy.best()


# --- the best of many samples -----------------------------------------------------------------------------------------


def test_each_sample_goes_on_until_its_own_end() -> None:
    samples = BestOf(3, None, EOT, 9)
    assert samples.step([A, B, A], [-0.5, -1.0, -0.5]) == [A, B, A]
    assert samples.step([EOT, B, C], [-0.25, -1.0, -0.5]) == [EOT, B, C]
    assert samples.step([D, EOT, D], [-9.0, -0.5, -0.5]) == [EOT, EOT, D]  # what the first would say is not heard
    assert not samples.finished
    assert samples.step([A, A, EOT], [-9.0, NEVER, -1.5]) == [EOT, EOT, EOT]
    assert samples.finished
    assert samples.lanes == [Candidate((A,), -0.75), Candidate((B, B), -2.5), Candidate((A, C, D), -3.0)]
    assert samples.best() == Candidate((A,), -0.75)


def test_lanes_of_a_wider_pool_are_no_samples() -> None:
    samples = BestOf(2, None, EOT, 9)
    assert samples.step([A, B, EOT], [-0.5, -1.0, -0.1]) == [A, B]
    assert samples.lanes == [Candidate((A,), -0.5), Candidate((B,), -1.0)]
    with pytest.raises(ValueError, match="shorter"):
        samples.step([A], [-0.5])


def test_samples_end_at_the_token_limit() -> None:
    samples = BestOf(2, None, EOT, 2)
    samples.step([A, EOT], [-0.5, -0.25])
    assert not samples.finished
    samples.step([B, A], [-0.25, -0.25])
    assert samples.finished
    assert samples.lanes == [Candidate((A, B), -0.75), Candidate((), -0.25)]


def test_samples_are_ranked_per_token_or_by_the_length_penalty() -> None:
    best = []
    for penalty in (None, 0.0):
        samples = BestOf(2, penalty, EOT, 3)
        for tokens, logprobs in [([A, A], [-1.0, -0.75]), ([EOT, B], [-0.5, -0.75]), ([D, C], [0.0, -0.75])]:
            samples.step(tokens, logprobs)
        best.append(samples.best().tokens)
    assert best == [(A, B, C), (A,)]


def test_samples_are_summed_in_single_precision() -> None:
    samples, logprobs = BestOf(1, None, EOT, 9), np.array([-1.1, -(2.0**-25), -0.3], np.float32)
    for logprob in logprobs:
        samples.step([A], [logprob])
    assert samples.best().sum_logprob == float(np.add.accumulate(logprobs)[-1]) != float(logprobs.astype(float).sum())
