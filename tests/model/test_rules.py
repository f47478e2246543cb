"""Each rule of one window: where it fires, where it must not, and that rows of one batch do not mix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.dimensions import OFFICIAL
from model.options import DecodeOptions
from model.rules import (
    NO_TIMESTAMP,
    Rules,
    RuleState,
    forbid_blank_start,
    forbid_decreasing_timestamps,
    forbid_unpaired_timestamps,
    prefer_timestamp_mass,
    require_timestamp_start,
)
from model.tokenizer import Tokenizer

CPU = torch.device("cpu")

# A vocabulary to see at a glance: five words, the end, two symbols, six timestamps.
WORD, EOT, BEGIN, SIZE = 0, 5, 8, 14
WORDS, SYMBOLS, TIMES = set(range(EOT)), {6, 7}, set(range(BEGIN, SIZE))
EVERYTHING = set(range(SIZE))


def state_after(*rows: list[int]) -> RuleState:
    """The state of slots in which these tokens were sampled, one by one."""
    states = []
    for tokens in rows:
        state = RuleState.allocate(1, CPU)
        for token in tokens:
            state.record(torch.tensor([token]), BEGIN)
        states.append(state)
    fields = ("count", "last_is_timestamp", "before_last_is_timestamp", "last_timestamp")
    return RuleState(*(torch.cat([getattr(state, name) for state in states]) for name in fields))


def allowed(logits: Tensor) -> list[set[int]]:
    return [{index for index, value in enumerate(row) if value > -math.inf} for row in logits.tolist()]


def level(rows: int) -> Tensor:
    return torch.zeros(rows, SIZE)


def test_a_window_starts_neither_blank_nor_ended() -> None:
    logits = level(3)
    forbid_blank_start(logits, state_after([], [BEGIN], [BEGIN, WORD]), torch.tensor([2, EOT]))
    assert allowed(logits) == [EVERYTHING - {2, EOT}, EVERYTHING, EVERYTHING]


def test_without_blank_tokens_a_window_may_start_with_anything() -> None:
    logits = level(1)
    forbid_blank_start(logits, state_after([]), torch.tensor(()).long())
    assert allowed(logits) == [EVERYTHING]


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        ([], EVERYTHING),
        ([WORD], EVERYTHING),
        ([BEGIN], EVERYTHING - TIMES),  # a segment was opened: text follows
        ([BEGIN, WORD], EVERYTHING),
        ([BEGIN, WORD, BEGIN + 1], EVERYTHING - WORDS),  # a segment was ended: the next opens, or the window ends
        ([BEGIN, WORD, BEGIN + 1, BEGIN + 1], EVERYTHING - TIMES),
        ([BEGIN, WORD, BEGIN + 1, BEGIN + 1, WORD], EVERYTHING),
        ([BEGIN, WORD, BEGIN + 1, BEGIN + 1, WORD, BEGIN + 2], EVERYTHING - WORDS),
    ],
)
def test_timestamps_come_in_pairs(sampled: list[int], expected: set[int]) -> None:
    logits = level(1)
    forbid_unpaired_timestamps(logits, state_after(sampled), BEGIN, EOT)
    assert allowed(logits) == [expected]


@pytest.mark.parametrize(
    ("sampled", "earliest"),
    [
        ([], 0),
        ([WORD, WORD], 0),
        ([BEGIN], 1),  # zero is a timestamp as good as any
        ([BEGIN + 2], 3),
        ([BEGIN + 2, WORD], 3),  # a segment is never empty
        ([BEGIN + 2, WORD, WORD, WORD], 3),  # however long ago it began
        ([BEGIN + 2, WORD, BEGIN + 4], 4),  # the next may start where this one ended
        ([BEGIN + 2, WORD, BEGIN + 4, BEGIN + 4], 5),
        ([BEGIN + 2, WORD, BEGIN + 4, BEGIN + 5, WORD], 6),
    ],
)
def test_time_never_runs_back(sampled: list[int], earliest: int) -> None:
    logits = level(1)
    forbid_decreasing_timestamps(logits, state_after(sampled), BEGIN)
    assert allowed(logits) == [EVERYTHING - set(range(BEGIN, BEGIN + earliest))]


@pytest.mark.parametrize(("latest", "times"), [(2, {BEGIN, BEGIN + 1, BEGIN + 2}), (0, {BEGIN}), (None, TIMES)])
def test_a_window_starts_with_an_early_timestamp(latest: int | None, times: set[int]) -> None:
    logits = level(3)
    require_timestamp_start(logits, state_after([], [BEGIN], [BEGIN, WORD]), BEGIN, latest)
    assert allowed(logits) == [times, EVERYTHING, EVERYTHING]


def test_timestamps_that_are_likelier_together_win() -> None:
    logits = level(3)
    logits[:, BEGIN:] = -math.log(5.0)  # six at a fifth of the likeliest word
    logits[1, WORD] = math.log(6 / 5) + 1e-3  # a likelier word stays
    logits[2, EOT] = math.log(6 / 5) + 1e-3  # and so does the end
    prefer_timestamp_mass(logits, BEGIN)
    assert allowed(logits) == [TIMES, EVERYTHING, EVERYTHING]


def test_timestamps_as_likely_as_a_word_do_not_win() -> None:
    logits = torch.full((1, SIZE), -math.inf)
    logits[0, WORD] = logits[0, BEGIN] = 0.0
    prefer_timestamp_mass(logits, BEGIN)
    assert allowed(logits) == [{WORD, BEGIN}]


def test_every_rule_leaves_other_rows_alone() -> None:
    rows = [[], [BEGIN], [BEGIN, WORD], [BEGIN, WORD, BEGIN + 3]]
    together, state = level(4), state_after(*rows)
    apply_toy_rules(together, state)
    for row, tokens in zip(together, rows, strict=True):
        alone = level(1)
        apply_toy_rules(alone, state_after(tokens))
        assert torch.equal(row, alone[0])


def apply_toy_rules(logits: Tensor, state: RuleState) -> None:
    forbid_blank_start(logits, state, torch.tensor([2, EOT]))
    forbid_unpaired_timestamps(logits, state, BEGIN, EOT)
    forbid_decreasing_timestamps(logits, state, BEGIN)
    require_timestamp_start(logits, state, BEGIN, 2)
    prefer_timestamp_mass(logits, BEGIN)


# --- the state ----------------------------------------------------------------------------------------------------


def values(state: RuleState, row: int) -> tuple[int, bool, bool, int]:
    tensors = (state.count, state.last_is_timestamp, state.before_last_is_timestamp, state.last_timestamp)
    return tuple(tensor[row].item() for tensor in tensors)  # type: ignore[return-value]


def test_the_state_follows_what_is_sampled() -> None:
    state = RuleState.allocate(1, CPU)
    assert values(state, 0) == (0, False, True, NO_TIMESTAMP)
    for token, expected in [
        (BEGIN, (1, True, True, BEGIN)),
        (WORD, (2, False, True, BEGIN)),
        (WORD, (3, False, False, BEGIN)),
        (BEGIN + 1, (4, True, False, BEGIN + 1)),
        (BEGIN + 2, (5, True, True, BEGIN + 2)),
    ]:
        state.record(torch.tensor([token]), BEGIN)
        assert values(state, 0) == expected


def test_a_slot_starts_afresh_and_leaves_its_neighbour_alone() -> None:
    state = state_after([BEGIN, WORD, BEGIN + 2], [BEGIN + 1])
    state.reset(slice(0, 1))
    assert values(state, 0) == (0, False, True, NO_TIMESTAMP)
    assert values(state, 1) == (1, True, True, BEGIN + 1)


def test_all_lanes_of_a_slot_start_afresh() -> None:
    state = state_after([BEGIN], [BEGIN, WORD, BEGIN + 2], [BEGIN, WORD], [BEGIN + 1])
    state.reset(slice(1, 3))
    assert values(state, 0) == (1, True, True, BEGIN)
    assert values(state, 1) == values(state, 2) == (0, False, True, NO_TIMESTAMP)
    assert values(state, 3) == (1, True, True, BEGIN + 1)


def test_a_slot_moves_with_all_it_knows() -> None:
    state = state_after([], [BEGIN, WORD, BEGIN + 2])
    state.move(slice(1, 2), slice(0, 1))
    assert values(state, 0) == values(state, 1) == (3, True, False, BEGIN + 2)


def test_lanes_move_in_their_order() -> None:
    state = state_after([], [], [BEGIN, WORD, BEGIN + 2], [BEGIN, WORD])
    state.move(slice(2, 4), slice(0, 2))
    assert [values(state, row)[0] for row in range(4)] == [3, 2, 3, 2]
    assert values(state, 0) == (3, True, False, BEGIN + 2)


def test_lanes_that_change_places_each_take_what_the_other_knew() -> None:
    state = state_after([BEGIN], [BEGIN, WORD, BEGIN + 2], [BEGIN, WORD], [BEGIN + 1])
    before = [values(state, row) for row in range(4)]
    state.follow(torch.tensor([1, 0, 0]))
    assert [values(state, row) for row in range(4)] == [before[1], before[0], before[0], before[3]]


def test_the_first_rows_are_views() -> None:
    state = RuleState.allocate(3, CPU)
    state.first(2).record(torch.tensor([BEGIN, WORD]), BEGIN)
    assert [values(state, row)[0] for row in range(3)] == [1, 1, 0]
    assert [values(state, row)[1] for row in range(3)] == [True, False, False]


# --- all rules over the real vocabulary ---------------------------------------------------------------------------

DIMS = OFFICIAL["tiny"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
HELLO = TOKENIZER.encode(" hello")[0]
FIRST = TOKENIZER.timestamp_begin


def apply(options: DecodeOptions, *rows: list[int], logits: Tensor | None = None) -> Tensor:
    """Logits, level unless given, after all rules for slots that sampled `rows`."""
    states = []
    for tokens in rows:
        state = RuleState.allocate(1, CPU)
        for token in tokens:
            state.record(torch.tensor([token]), FIRST)
        states.append(state)
    fields = ("count", "last_is_timestamp", "before_last_is_timestamp", "last_timestamp")
    state = RuleState(*(torch.cat([getattr(one, name) for one in states]) for name in fields))
    logits = torch.zeros(len(rows), DIMS.n_vocab) if logits is None else logits
    Rules(TOKENIZER, options, DIMS, CPU).apply(logits, state)
    return logits


def test_the_first_timestamp_is_at_most_one_second() -> None:
    (starts,) = allowed(apply(DecodeOptions(), []))
    assert starts == set(range(FIRST, FIRST + 51))


@pytest.mark.parametrize(("latest", "last"), [(None, 1500), (0.0, 1500), (0.02, 1), (30.0, 1500)])
def test_the_limit_of_the_first_timestamp_is_an_option(latest: float | None, last: int) -> None:
    (starts,) = allowed(apply(DecodeOptions(max_initial_timestamp=latest), []))
    assert starts == set(range(FIRST, FIRST + last + 1))


def test_symbols_and_annotations_are_never_sampled() -> None:
    (follow,) = allowed(apply(DecodeOptions(), [FIRST]))
    t = TOKENIZER
    symbols = {t.sot, t.sot_prev, t.sot_lm, t.no_speech, t.no_timestamps, t.transcribe, t.translate}
    assert not follow & (symbols | set(t.non_speech_tokens))
    assert {HELLO, t.eot} <= follow


def test_suppressed_tokens_are_an_option() -> None:
    (follow,) = allowed(apply(DecodeOptions(suppress_tokens=(HELLO,)), [FIRST]))
    assert HELLO not in follow
    assert set(TOKENIZER.non_speech_tokens) <= follow


def test_a_forbidden_word_does_not_hold_back_the_timestamps() -> None:
    logits = torch.full((2, DIMS.n_vocab), -20.0)
    logits[:, TOKENIZER.no_timestamps] = 10.0  # likeliest of all, but never allowed
    logits[:, HELLO] = 0.0
    logits[:, FIRST + 100 : FIRST + 110] = -1.0  # ten at e⁻¹: together likelier than the word
    rows = apply(DecodeOptions(), [FIRST, HELLO], [FIRST + 105, HELLO], logits=logits)
    assert allowed(rows)[0] == set(range(FIRST + 1, FIRST + 1501))
    # In the second row six of them lie in the past, and the four that are left still outweigh the word.
    assert HELLO not in allowed(rows)[1]


def test_forbidden_timestamps_do_not_outweigh_a_word() -> None:
    logits = torch.full((1, DIMS.n_vocab), -20.0)
    logits[:, HELLO] = 0.0
    logits[:, FIRST + 100 : FIRST + 110] = 3.0
    rows = apply(DecodeOptions(), [FIRST + 200, HELLO], logits=logits)
    assert HELLO in allowed(rows)[0]


def test_blank_is_a_lone_space_or_the_end_unless_switched_off() -> None:
    blank = Rules(TOKENIZER, DecodeOptions(), DIMS, CPU).blank
    assert set(blank.tolist()) == {*TOKENIZER.encode(" "), TOKENIZER.eot}
    assert len(Rules(TOKENIZER, DecodeOptions(suppress_blank=False), DIMS, CPU).blank) == 0


def test_blank_starts_are_forbidden_even_where_timestamps_would_allow_them() -> None:
    """Blanks are text, which the first timestamp forbids anyhow; a timestamp as blank shows that both rules apply."""
    rules = Rules(TOKENIZER, DecodeOptions(), DIMS, CPU)
    rules.blank = torch.tensor([FIRST + 3])
    logits = torch.zeros(1, DIMS.n_vocab)
    rules.apply(logits, RuleState.allocate(1, CPU))
    assert allowed(logits) == [set(range(FIRST, FIRST + 51)) - {FIRST + 3}]


def spelled_out(logits: list[float], sampled: list[int]) -> set[int]:
    """What may follow `sampled`, token by token: the same rules said once more, the slow way."""
    times = [token for token in sampled if token >= FIRST]
    last = bool(sampled) and sampled[-1] >= FIRST
    before_last = len(sampled) < 2 or sampled[-2] >= FIRST
    never = {*TOKENIZER.suppressed((-1,)), TOKENIZER.no_timestamps}

    def may_follow(token: int) -> bool:
        if token in never or (not sampled and not FIRST <= token <= FIRST + 50):
            return False
        if token < FIRST:
            return not (last and not before_last and token < TOKENIZER.eot)
        if last and before_last:
            return False
        return not times or (token >= times[-1] if last else token > times[-1])

    possible = {token for token in range(len(logits)) if may_follow(token)}
    later = {token for token in possible if token >= FIRST}
    mass = sum(math.exp(logits[token]) for token in later)
    other = max((math.exp(logits[token]) for token in possible - later), default=0.0)
    return later if mass > other else possible


@settings(max_examples=25, deadline=None)
@given(
    sampled=st.lists(st.sampled_from([HELLO, TOKENIZER.eot - 1, FIRST, FIRST + 1, FIRST + 700, FIRST + 1500])),
    loud=st.floats(0.0, 12.0),
    seed=st.integers(0, 99),
)
def test_all_rules_together_are_the_ones_spelled_out(sampled: list[int], loud: float, seed: int) -> None:
    logits = torch.randn(1, DIMS.n_vocab, generator=torch.Generator().manual_seed(seed))
    logits[0, HELLO] += loud  # from surely a timestamp to surely text
    expected = spelled_out(logits[0].tolist(), sampled)
    assert allowed(apply(DecodeOptions(), sampled, logits=logits)) == [expected]
