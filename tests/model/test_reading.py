"""One attempt at one window and the next: which reading it takes, where it stands, how it ends, and what then."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.beam import BeamSearch, BestOf, Candidate
from model.dimensions import OFFICIAL
from model.fallback import IMPROBABLE, REPETITIVE, compression_ratio
from model.loops import CHECK_EVERY, LEAST_TOKENS, LOOP
from model.options import DecodeOptions
from model.progress import PartProgress
from model.reading import Greedy, Slot
from model.tokenizer import Tokenizer
from model.transcript import Part
from tests.model.scripted import Line, saying, scripted_part, tokens_of, transcribe

DIMS = OFFICIAL["tiny"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
EOT, ZERO = TOKENIZER.eot, TOKENIZER.timestamp_begin
A, B, C = 1000, 2000, 3000
WORDS = TOKENIZER.encode(" Somebody says something once and goes on to other things, as people do.")


def slot(prompt_length: int = 3, no_speech_prob: float = 0.1, **options: Any) -> Slot:
    """A slot that has just been given the first window of a part."""
    chosen = DecodeOptions(language="en", **options)
    part = PartProgress(Part("part", np.zeros((1, 3000), np.float32), 3000), chosen, TOKENIZER, DIMS)
    return Slot(part, 7, prompt_length, no_speech_prob, chosen, TOKENIZER, DIMS)


def say(one: Slot, tokens: Sequence[int], logprob: float = -0.1) -> int:
    """Sample these tokens in the first lane until the attempt ends; how many there was time for."""
    for count, token in enumerate(tokens, start=1):
        one.sample([token, C, C], [logprob, -9.0, -9.0])
        if one.has_ended():
            return count
    return len(tokens)


# --- greedy -------------------------------------------------------------------------------------------------------


def test_a_greedy_reading_takes_the_first_lane_until_the_end() -> None:
    reading = Greedy(EOT, token_limit=9)
    assert reading.step([A, B], [-0.5, -9.0]) == [A]
    assert reading.step([B, A], [-0.25, -9.0]) == [B]
    assert not reading.finished
    assert reading.step([EOT, A], [-1.0, -9.0]) == [EOT]
    assert reading.finished
    assert reading.best() == Candidate((A, B), -1.75)  # the end is counted, and is no token


def test_a_greedy_reading_ends_at_its_limit() -> None:
    reading = Greedy(EOT, token_limit=2)
    reading.step([A], [-0.5])
    assert not reading.finished
    reading.step([B], [-0.5])
    assert reading.finished and reading.best() == Candidate((A, B), -1.0)


@given(st.lists(st.tuples(st.sampled_from([A, B, EOT]), st.floats(-5, 0)), min_size=1, max_size=8), st.integers(1, 6))
def test_greedy_is_the_best_of_one(said: list[tuple[int, float]], limit: int) -> None:
    greedy, best_of_one = Greedy(EOT, limit), BestOf(1, None, EOT, limit)
    for token, logprob in said:
        assert greedy.step([token], [logprob]) == best_of_one.step([token], [logprob])
        assert greedy.finished == best_of_one.finished
        if greedy.finished:
            break
    assert greedy.best().tokens == best_of_one.best().tokens
    assert greedy.best().sum_logprob == pytest.approx(best_of_one.best().sum_logprob, rel=1e-5, abs=1e-6)


# --- attempts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beam_size", "best_of", "kinds", "samples"),
    [
        (1, 1, (Greedy, Greedy, Greedy), (0, 1, 1)),
        (5, 1, (BeamSearch, Greedy, Greedy), (0, 1, 1)),
        (1, 3, (Greedy, BestOf, BestOf), (0, 3, 3)),
        (5, 3, (BeamSearch, BestOf, BestOf), (0, 3, 3)),
    ],
)
def test_search_is_for_temperature_0_and_samples_for_those_above(
    beam_size: int, best_of: int, kinds: tuple[type, ...], samples: tuple[int, ...]
) -> None:
    one = slot(beam_size=beam_size, best_of=best_of, temperatures=(0.0, 0.4, 1.0))
    for index, (kind, count) in enumerate(zip(kinds, samples, strict=True)):
        assert type(one.reading) is kind
        assert (one.attempt, one.temperature, one.samples, one.is_last) == (
            index,
            (0.0, 0.4, 1.0)[index],
            count,
            index == 2,
        )
        if not one.is_last:
            one.retry([IMPROBABLE])


def test_options_reach_the_reading() -> None:
    search = slot(beam_size=3, patience=2.0, length_penalty=0.5).reading
    assert isinstance(search, BeamSearch)
    assert (len(search.lanes), search._wanted, search._length_penalty) == (3, 6, 0.5)
    samples = slot(best_of=4, length_penalty=0.5, temperatures=(0.3,)).reading
    assert isinstance(samples, BestOf)
    assert (len(samples.lanes), samples._length_penalty) == (4, 0.5)


@pytest.mark.parametrize(("prompt_length", "limit"), [(3, 224), (225, 224), (226, 223), (227, 222)])
@pytest.mark.parametrize("mode", [{}, {"beam_size": 2}, {"best_of": 2, "temperatures": (1.0,)}])
def test_every_reading_ends_when_the_context_is_full(prompt_length: int, limit: int, mode: dict[str, Any]) -> None:
    """224 tokens, or what a prompt leaves of 448 positions and the token that needs none."""
    one = slot(prompt_length, stop_loops=False, compression_ratio_threshold=None, **mode)
    steps = 0
    while not one.has_ended():
        if isinstance(one.reading, BeamSearch):
            one.search([[-0.1, -3.0, -4.0]] * 2, [[A, B, C]] * 2)
        else:
            one.sample([A, A], [-0.1, -0.1])
        steps += 1
        assert one.position <= 447 or one.has_ended(), "it would be fed behind the end of the context"
    assert steps == one.token_limit == limit
    attempt, _ = one.verdict()
    assert attempt.reached_limit and len(attempt.tokens) == limit


def test_the_net_is_fed_behind_the_prompt_one_position_after_the_other() -> None:
    one = slot(prompt_length=10)
    assert (one.position, one.fed, one.length) == (10, [], 0)  # rides along, should it not be fed
    for index, token in enumerate((ZERO, A, B)):
        one.sample([token], [-0.1])
        assert (one.position, one.fed, one.length) == (10 + index, [token], index + 1)
    one.retry([REPETITIVE])
    assert (one.position, one.fed, one.length) == (10, [], 0)


def test_every_lane_is_fed_its_own_token() -> None:
    one = slot(best_of=3, temperatures=(1.0,))
    one.sample([A, B, EOT], [-0.1] * 3)
    assert one.fed == [A, B, EOT]
    one.sample([B, C, A], [-0.1] * 3)
    assert one.fed == [B, C, EOT]  # the third has ended
    search = slot(beam_size=2)
    assert search.search([[-0.1, -0.2, -5.0]] * 2, [[A, B, C]] * 2) == [1, 1]  # all lanes read the same as yet
    assert search.fed == [A, B]
    assert search.search([[-9.0, -9.0, -9.0], [-0.1, -0.2, -5.0]], [[A, B, C]] * 2) == [1, 1]
    assert search.fed == [A, B]


def test_a_retry_starts_afresh_and_keeps_count() -> None:
    one = slot()
    say(one, [ZERO, A])
    one.retry([REPETITIVE, IMPROBABLE])
    assert one.reading.best() == Candidate((), 0.0)
    say(one, [ZERO, B, EOT])
    assert (one.sampled, one.length, one.attempt) == (5, 3, 1)
    one.retry([IMPROBABLE])
    assert one.rules_fired == [REPETITIVE, IMPROBABLE, IMPROBABLE]


# --- verdict ------------------------------------------------------------------------------------------------------


def test_the_evidence_is_that_of_the_best_reading() -> None:
    one = slot(no_speech_prob=0.25)
    say(one, [ZERO, *WORDS, ZERO + 150, EOT], logprob=-0.5)
    attempt, failed = one.verdict()
    assert failed == ()
    assert attempt.tokens == (ZERO, *WORDS, ZERO + 150)
    assert attempt.text == "Somebody says something once and goes on to other things, as people do."
    assert attempt.avg_logprob == pytest.approx(-0.5)  # over the tokens and the end
    assert attempt.compression_ratio == compression_ratio(attempt.text)
    assert (attempt.temperature, attempt.no_speech_prob, attempt.reached_limit) == (0.0, 0.25, False)


def test_the_best_of_many_is_judged() -> None:
    one = slot(best_of=2, temperatures=(0.5, 1.0))
    for tokens in itertools.zip_longest([ZERO, A, EOT], [ZERO, *WORDS[:3], EOT], fillvalue=EOT):
        one.sample(list(tokens), [-3.0, -0.25])
    assert one.has_ended()
    attempt, failed = one.verdict()
    assert (attempt.tokens, failed) == ((ZERO, *WORDS[:3]), ())
    assert attempt.temperature == 0.5


def test_what_is_improbable_fails_but_for_the_last_time() -> None:
    one = slot(temperatures=(0.0, 0.5))
    say(one, [ZERO, A, EOT], logprob=-2.0)
    assert one.verdict()[1] == (IMPROBABLE,)
    one.retry((IMPROBABLE,))
    say(one, [ZERO, A, EOT], logprob=-2.0)
    attempt, failed = one.verdict()
    assert (attempt.temperature, failed) == (0.5, ())


# --- loops --------------------------------------------------------------------------------------------------------

LOOPING = [ZERO, *TOKENIZER.encode(" thank you" * 150)]
NOTICED = (
    72  # tokens sampled: the first of every eighth at which 64 of text repeat themselves, the timestamp not counted
)


def test_a_loop_ends_its_attempt_and_fails_it() -> None:
    one = slot()
    assert NOTICED % CHECK_EVERY == 0 and LEAST_TOKENS < NOTICED <= LEAST_TOKENS + CHECK_EVERY
    assert say(one, LOOPING) == NOTICED
    attempt, failed = one.verdict()
    assert failed == (REPETITIVE,)
    assert not attempt.reached_limit
    assert one.rules_fired == [LOOP]
    one.retry(failed)
    assert one.rules_fired == [LOOP, REPETITIVE]
    assert not one.has_ended()


def test_the_likeliest_lane_of_a_search_is_watched() -> None:
    one = slot(beam_size=2)
    for token in LOOPING:
        one.search([[-0.1, -5.0, -9.0], [-7.0, -8.0, -9.0]], [[token, A, B], [A, B, C]])
        if one.has_ended():
            break
    assert one.length == NOTICED
    assert one.rules_fired == [LOOP]
    assert one.verdict()[1] == (REPETITIVE,)


def test_a_loop_does_not_end_a_search_that_has_found_something_better() -> None:
    """A reading of three words has ended, of which each was likelier than each of the loop's."""
    one = slot(beam_size=2)
    for count, token in enumerate(LOOPING):
        end = -0.1 if count == 4 else -1e5
        likely = -0.05 if count < 4 else -0.2
        one.search([[end, likely, -1e6], [-7.0, -8.0, -9.0]], [[EOT, token, A], [A, B, C]])
        if one.has_ended():
            break
    attempt, failed = one.verdict()
    assert (one.length, one.rules_fired, failed) == (224, [], ())
    assert attempt.tokens == tuple(LOOPING[:4])


@pytest.mark.parametrize(
    "options",
    [
        {"stop_loops": False},
        {"compression_ratio_threshold": None},  # no loop would be rejected
        {"temperatures": (0.0,)},  # the last attempt is kept, whatever it is
        {"best_of": 3, "temperatures": (0.4, 0.8)},  # another lane may be better
    ],
)
def test_loops_run_on_where_stopping_them_would_change_what_is_kept(options: dict[str, Any]) -> None:
    one = slot(**options)
    assert say(one, LOOPING) == 224
    assert one.rules_fired == []


def test_a_retry_is_watched_anew() -> None:
    one = slot(temperatures=(0.0, 0.4, 0.8))
    for _ in range(2):
        assert say(one, LOOPING) == NOTICED
        one.retry(one.verdict()[1])
    assert one.rules_fired == [LOOP, REPETITIVE] * 2
    assert say(one, LOOPING) == 224  # the last


# --- loops in the engine --------------------------------------------------------------------------------------------

FINE = Line("<0.00> Now that is rather better, and long enough to make up for one unlikely word.<6.00>", -0.01)
THANKS = Line(f"<0.00>{' thank you' * 150}", logprob=-0.05, hotter=FINE)
OPTIONS = DecodeOptions(language="en", temperatures=(0.0, 0.4))


def test_a_loop_does_not_burn_all_its_tokens() -> None:
    (stopped,) = transcribe(saying({(1, 0): THANKS}), [scripted_part(1, 30)], OPTIONS)
    (burnt,) = transcribe(saying({(1, 0): THANKS}), [scripted_part(1, 30)], replace(OPTIONS, stop_loops=False))
    said = len(tokens_of(TOKENIZER, FINE.text)) + 1
    assert (stopped.tokens, burnt.tokens) == (NOTICED + said, 224 + said)
    (segment,), (twin,) = stopped.segments, burnt.segments
    assert segment.rules_fired[:2] == (LOOP, REPETITIVE) and twin.rules_fired[0] == REPETITIVE
    assert LOOP not in twin.rules_fired
    assert (segment.tokens, segment.attempts, segment.temperature) == (twin.tokens, 2, 0.4)


def test_samples_are_never_stopped_by_a_loop() -> None:
    net = saying({(1, 0): replace(THANKS, hotter=None)})
    options = replace(OPTIONS, temperatures=(0.4, 0.8), best_of=3)
    (transcript,) = transcribe(net, [scripted_part(1, 30)], options)
    assert transcript.tokens == 2 * 224
    assert LOOP not in transcript.segments[0].rules_fired


def test_the_neighbours_of_a_loop_go_on() -> None:
    said = {(1, 0): THANKS, (2, 0): FINE, (2, 3000): FINE, (3, 0): f"<0.00>{' la lo' * 20}<9.00>"}
    parts = [scripted_part(1, 30), scripted_part(2, 60), scripted_part(3, 30)]
    together = transcribe(saying(said), parts, OPTIONS, slots=3)
    alone = [transcribe(saying(said), [part], OPTIONS, slots=1)[0] for part in parts]
    assert together == alone
    assert [one.windows_retried for one in together] == [1, 0, 1]
