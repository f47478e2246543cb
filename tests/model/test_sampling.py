"""Choosing tokens: greedy and by chance, by streams that know nothing of neighbours; and what is likeliest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from model.dimensions import OFFICIAL
from model.options import DecodeOptions
from model.sampling import Sampler, random_stream
from model.tokenizer import Tokenizer

DIMS = OFFICIAL["tiny"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
ZERO = TOKENIZER.timestamp_begin
HELLO, WORLD = TOKENIZER.encode(" hello")[0], TOKENIZER.encode(" world")[0]
STARTS = {ZERO: 0.4, ZERO + 1: 0.3, ZERO + 2: 0.2, ZERO + 3: 0.1}
WORDS = {HELLO: 0.7, WORLD: 0.3}


def sampler(slots: int, lanes: int = 1, beam_size: int = 1) -> Sampler:
    return Sampler(TOKENIZER, DecodeOptions(beam_size=beam_size), DIMS, slots, torch.device("cpu"), lanes)


def logits(probabilities: Mapping[int, float]) -> Tensor:
    """Logits (V,) of these tokens and hardly anything else."""
    row = torch.full((DIMS.n_vocab,), -1e4)
    for token, probability in probabilities.items():
        row[token] = math.log(probability)
    return row


def stream(seek: int = 0, lane: int = 0) -> torch.Generator:
    return random_stream(0, "part", seek, 1, lane)


def say(chooser: Sampler, row: int, steps: int, count: int, words: Mapping[int, float] = WORDS) -> list[int]:
    """What lane `row` samples in so many steps, every lane of `count` slots fed with the same logits after each."""
    said = []
    for _ in range(steps):
        tokens = chooser.choose(count)[0]
        chooser.record(tokens)
        chooser.update(torch.arange(len(tokens)), logits(words).expand(len(tokens), -1))
        said.append(tokens[row])
    return said


def begin(chooser: Sampler, slot: int, temperature: float = 0.0, seek: int = 0, samples: int = 1) -> None:
    """Start an attempt that draws in `samples` lanes, if it is hot."""
    chooser.admit(slot, logits(STARTS))
    chooser.start(slot, temperature, [stream(seek, lane) for lane in range(samples)] if temperature else [])


def test_at_temperature_zero_the_likeliest_allowed_token_is_chosen() -> None:
    chooser = sampler(1)
    chooser.admit(0, logits({HELLO: 0.5, ZERO: 0.2, ZERO + 1: 0.3}))  # text may not come first
    chooser.start(0, 0.0, [])
    assert chooser.choose(1)[0] == [ZERO + 1]


def test_the_log_probability_is_taken_under_the_rules() -> None:
    chooser = sampler(1)
    chooser.admit(0, logits({HELLO: 0.5, ZERO: 0.2, ZERO + 1: 0.3}))
    chooser.start(0, 0.0, [])
    assert chooser.choose(1)[1] == [pytest.approx(math.log(0.3 / 0.5))]


def test_the_log_probability_is_taken_at_temperature_one() -> None:
    chooser = sampler(2)
    for row, temperature in enumerate((0.3, 3.0)):
        begin(chooser, row, temperature, seek=row)
    tokens, logprobs = chooser.choose(2)
    assert logprobs == [pytest.approx(math.log(STARTS[token]), abs=1e-5) for token in tokens]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_chance_follows_the_probabilities_at_the_temperature(temperature: float) -> None:
    slots, rounds = 50, 20
    chooser, counts = sampler(slots), dict.fromkeys(STARTS, 0)
    for turn in range(rounds):
        for row in range(slots):
            begin(chooser, row, temperature, seek=turn * slots + row)
        for token in chooser.choose(slots)[0]:
            counts[token] += 1
    powers = {token: probability ** (1 / temperature) for token, probability in STARTS.items()}
    expected = {token: slots * rounds * power / sum(powers.values()) for token, power in powers.items()}
    chi_square = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in STARTS)
    assert chi_square < 16.27  # three degrees of freedom, one in a thousand


def test_what_a_slot_draws_depends_on_no_neighbour_and_no_slot_number() -> None:
    alone = sampler(1)
    begin(alone, 0, 1.0, seek=7)
    expected = say(alone, 0, steps=8, count=1)
    crowd = sampler(3)
    begin(crowd, 0, 1.0, seek=1)
    begin(crowd, 1, 0.0, seek=2)
    begin(crowd, 2, 1.0, seek=7)
    assert say(crowd, 2, steps=8, count=3) == expected
    assert len(set(expected[1:])) == 2  # by chance, indeed


def test_a_greedy_slot_is_greedy_among_others() -> None:
    chooser = sampler(2)
    begin(chooser, 0, 2.0)
    begin(chooser, 1, 0.0)
    assert say(chooser, 1, steps=4, count=2) == [ZERO, HELLO, HELLO, HELLO]


def test_choosing_twice_chooses_the_same_until_it_is_recorded() -> None:
    chooser = sampler(1)
    begin(chooser, 0)
    assert chooser.choose(1)[0] == chooser.choose(1)[0] == [ZERO]
    chooser.record([ZERO])
    chooser.update(torch.tensor([0]), logits({ZERO + 9: 0.9, HELLO: 0.1})[None])
    assert chooser.choose(1)[0] == [HELLO]  # two timestamps in a row open no segment


# --- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_repeats_itself_and_no_other() -> None:
    streams = [(0, "part", 0, 1), (1, "part", 0, 1), (0, "other", 0, 1), (0, "part", 200, 1), (0, "part", 0, 2)]
    streams += [(0, "part", 0, 1, 1), (0, "part", 0, 1, 2)]
    draws = [tuple(torch.rand(4, generator=random_stream(*name)).tolist()) for name in streams]
    assert len(set(draws)) == len(streams)
    assert draws == [tuple(torch.rand(4, generator=random_stream(*name)).tolist()) for name in streams]


def test_streams_are_the_same_on_every_machine() -> None:
    """They decide the text of hot windows, so changing them means a new generation of tables."""
    numbers = torch.randint(1000, (4,), generator=random_stream(0, "part", 200, 1))
    assert numbers.tolist() == [401, 305, 133, 821]
    assert torch.randint(1000, (4,), generator=random_stream(0, "part", 200, 1, 0)).tolist() == numbers.tolist()
    assert torch.randint(1000, (4,), generator=random_stream(0, "part", 200, 1, 3)).tolist() == [400, 449, 715, 332]


def test_a_hotter_attempt_starts_from_the_logits_of_the_prompt() -> None:
    chooser = sampler(1)
    begin(chooser, 0)
    first = chooser.choose(1)
    chooser.record(first[0])
    chooser.update(torch.tensor([0]), logits(WORDS)[None])
    assert chooser.choose(1)[0] == [HELLO]
    chooser.start(0, 0.0, [])
    assert chooser.choose(1) == first


def test_what_is_drawn_together_is_what_each_lane_would_draw_by_itself() -> None:
    """One race in each lane: the first to arrive after an exponential wait, the likely ones walking faster."""
    chooser, starts = sampler(3, lanes=2), (STARTS, {ZERO + 7: 1.0}, {ZERO + 4: 0.5, ZERO + 5: 0.5})
    for slot, (first, temperature) in enumerate(zip(starts, (0.4, 0.0, 1.0), strict=True)):
        chooser.admit(slot, logits(first))
        chooser.start(slot, temperature, [stream(slot, lane) for lane in range(2)] if temperature else [])
    expected = []
    for slot, lane in ((0, 0), (0, 1), (2, 0), (2, 1)):
        probabilities = (logits(starts[slot]) / (0.4 if slot == 0 else 1.0)).softmax(-1)
        waits = torch.empty(DIMS.n_vocab).exponential_(generator=stream(slot, lane))
        expected.append(int((probabilities / waits)[ZERO:].argmax()) + ZERO)
    assert chooser.choose(3)[0] == [*expected[:2], ZERO + 7, ZERO + 7, *expected[2:]]


def test_each_attempt_draws_from_the_stream_it_was_given() -> None:
    chooser = sampler(1)
    begin(chooser, 0, 1.0, seek=3)
    once = say(chooser, 0, steps=8, count=1)
    chooser.start(0, 1.0, [stream(4)])
    other = say(chooser, 0, steps=8, count=1)
    chooser.start(0, 1.0, [stream(3)])
    assert say(chooser, 0, steps=8, count=1) == once != other


def test_only_the_rows_that_were_fed_get_new_logits() -> None:
    chooser = sampler(3)
    for row in range(3):
        begin(chooser, row)
    chooser.record(chooser.choose(3)[0])
    chooser.update(torch.tensor([2, 0]), torch.stack([logits({WORLD: 1.0}), logits({HELLO: 1.0})]))
    chooser.start(1, 0.0, [])  # began anew in between
    assert chooser.choose(3)[0] == [HELLO, ZERO, WORLD]


# --- moving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_moved_slot_goes_on_where_it_was(lanes: int) -> None:
    words = {HELLO: 0.4, WORLD: 0.35, ZERO + 40: 0.25}  # a timestamp now and then, so that the rules matter
    still, moved = sampler(1, lanes), sampler(3, lanes)
    begin(still, 0, 1.0, seek=7, samples=lanes)
    begin(moved, 0, 0.0)
    begin(moved, 1, 0.0)
    begin(moved, 2, 1.0, seek=7, samples=lanes)
    last = lanes - 1
    assert say(moved, 2 * lanes + last, 3, count=3, words=words) == say(still, last, 3, count=1, words=words)
    moved.start(0, 0.0, [])  # what stands in the gap has just begun, and would end at once
    moved.update(torch.arange(lanes), logits({TOKENIZER.eot: 1.0}).expand(lanes, -1))
    moved.move(2, 0)
    assert say(moved, last, 12, count=1, words=words) == say(still, last, 12, count=1, words=words)


def test_a_moved_slot_can_start_again() -> None:
    chooser = sampler(2)
    begin(chooser, 0)
    chooser.admit(1, logits({ZERO + 5: 1.0}))
    chooser.start(1, 0.0, [])
    chooser.record(chooser.choose(2)[0])
    chooser.move(1, 0)
    chooser.start(0, 0.0, [])
    assert chooser.choose(1)[0] == [ZERO + 5]


# --- lanes --------------------------------------------------------------------------------------------------------


def test_all_lanes_start_from_the_prompt_of_their_slot() -> None:
    chooser = sampler(2, lanes=3)
    chooser.admit(0, logits({ZERO + 3: 1.0}))
    chooser.admit(1, logits({ZERO + 5: 1.0}))
    chooser.start(0, 0.0, [])
    chooser.start(1, 0.0, [])
    assert chooser.choose(2)[0] == [ZERO + 3] * 3 + [ZERO + 5] * 3
    assert chooser.choose(1)[0] == [ZERO + 3] * 3


def test_each_lane_draws_from_a_stream_of_its_own() -> None:
    """As many as were asked for; the others take the likeliest."""
    chooser = sampler(2, lanes=3)
    begin(chooser, 0)
    begin(chooser, 1, 1.0, seek=7, samples=2)
    drawn: list[list[int]] = [[] for _ in range(6)]
    for _ in range(12):
        tokens = chooser.choose(2)[0]
        chooser.record(tokens)
        chooser.update(torch.arange(6), logits(WORDS).expand(6, -1))
        for lane, token in zip(drawn, tokens, strict=True):
            lane.append(token)
    assert [lane[1:] for lane in (*drawn[:3], drawn[5])] == [[HELLO] * 11] * 4
    alone = [sampler(1), sampler(1)]
    for lane, chooser in enumerate(alone):
        chooser.admit(0, logits(STARTS))
        chooser.start(0, 1.0, [stream(7, lane)])
    assert [drawn[3], drawn[4]] == [say(chooser, 0, 12, count=1) for chooser in alone]
    assert drawn[3] != drawn[4]


def test_a_lane_that_follows_another_obeys_the_rules_of_that_history() -> None:
    """Lane 1 has closed a segment, lane 0 has not; then they change places."""
    chooser = sampler(1, lanes=3)
    begin(chooser, 0)
    for tokens in ([ZERO] * 3, [HELLO, HELLO, HELLO], [HELLO, ZERO + 50, HELLO]):
        chooser.record(tokens)
    chooser.follow([1, 0, 0])
    chooser.update(torch.arange(3), logits({HELLO: 0.7, ZERO + 50: 0.2, ZERO + 20: 0.1}).expand(3, -1))
    assert chooser.choose(1)[0] == [ZERO + 50, HELLO, HELLO]


def test_the_likeliest_tokens_are_those_under_the_rules() -> None:
    chooser = sampler(3, lanes=2, beam_size=2)
    for slot, first in enumerate((STARTS, {HELLO: 1.0}, {HELLO: 0.5, ZERO + 4: 0.3, ZERO + 5: 0.15, ZERO: 0.05})):
        chooser.admit(slot, logits(first))
        chooser.start(slot, 0.0, [])
    chooser.choose(3)
    (third, first) = chooser.likeliest([2, 0])
    for lane in range(2):
        assert third[1][lane] == [ZERO + 4, ZERO + 5, ZERO]
        assert third[0][lane] == [pytest.approx(math.log(share / 0.5), abs=1e-4) for share in (0.3, 0.15, 0.05)]
        assert first[1][lane] == [ZERO, ZERO + 1, ZERO + 2]


def test_the_likeliest_tokens_are_those_of_each_lane() -> None:
    chooser = sampler(1, lanes=2, beam_size=2)
    begin(chooser, 0)
    chooser.record([ZERO, ZERO])
    chooser.update(torch.arange(2), torch.stack([logits({HELLO: 0.6, WORLD: 0.3}), logits({HELLO: 0.2, WORLD: 0.8})]))
    chooser.choose(1)
    ((logprobs, tokens),) = chooser.likeliest([0])
    assert [lane[:2] for lane in tokens] == [[HELLO, WORLD], [WORLD, HELLO]]
    assert [len(lane) for lane in (*logprobs, *tokens)] == [3] * 4  # one more than the beam keeps
    assert logprobs[0][:2] == [pytest.approx(math.log(2 / 3), abs=1e-4), pytest.approx(math.log(1 / 3), abs=1e-4)]


def test_nothing_is_likeliest_where_nobody_asks() -> None:
    assert sampler(1, lanes=2, beam_size=2).likeliest([]) == []
