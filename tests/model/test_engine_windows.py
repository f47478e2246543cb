"""What the engine does from window to window of a part: language, prompt, seek, retries, silence and limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from model.fallback import CONFIDENT_DESPITE_NO_SPEECH, IMPROBABLE, REPETITIVE, TEMPERATURES_EXHAUSTED
from model.options import DecodeOptions
from model.progress import PROMPT_RESET, TOKEN_LIMIT
from model.segments import NO_TIMESTAMP_PAIR
from tests.model.scripted import Line, ScriptedNet, saying, scripted_part, tokens_of, transcribe

WORD = "<0.00> Word.<2.00>"
FINE = Line(
    "<0.00> Now that is rather better, and long enough to make up for one unlikely word at its start.<6.00>", -0.01
)
BAD = Line("<0.00> Bad bad.<2.00>", logprob=-2.0, hotter=FINE)


def languages(net: ScriptedNet) -> list[str]:
    """The language in each prompt, in order."""
    codes = dict(zip(net.tokenizer.language_tokens, net.tokenizer.languages, strict=True))
    return [codes[prompt[-2]] for _, prompt in net.prompts]


# --- language -----------------------------------------------------------------------------------------------------


def test_the_language_is_found_on_the_first_window_as_it_was_encoded() -> None:
    net = saying({}, WORD)
    net.languages = {1: ("de", 0.8), 2: ("ja", 0.6)}
    first, second = transcribe(net, [scripted_part(1, 60), scripted_part(2, 75)])
    assert (first.language, second.language) == ("de", "ja")
    assert first.language_probability == pytest.approx(0.8)
    assert second.language_probability == pytest.approx(0.6)
    assert len(net.heard) == 5  # two and three windows: none was encoded for the language
    assert sorted((window.part, window.seek) for window in net.language_steps) == [(1, 0), (2, 0)]
    assert sorted(languages(net)) == ["de"] * 2 + ["ja"] * 3


def test_only_language_symbols_compete() -> None:
    net = saying({}, WORD)
    net.no_speech = {(1, 0): 0.5}
    net.languages = {1: ("cy", 0.02)}  # a little more than the 98 others, far less than no speech
    (transcript,) = transcribe(net, [scripted_part(1, 30)])
    assert transcript.language == "cy"
    assert transcript.language_probability == pytest.approx(0.02)


def test_the_language_of_a_short_part_is_found_on_the_silence_behind_it() -> None:
    """The reference decodes the audio followed by zeros, but identifies it followed by silence."""
    net = saying({}, WORD)
    net.languages = {1: ("de", 0.8)}
    (transcript,) = transcribe(net, [scripted_part(1, 20)])
    assert transcript.language == "de"
    assert [window.silence_behind for window in net.heard] == [False, True]
    assert [window.silence_behind for window in net.language_steps] == [True]
    assert [window.silence_behind for window, _ in net.prompts] == [False]


def test_short_and_long_parts_share_a_batch_and_keep_their_windows_apart() -> None:
    net = saying({}, WORD)
    net.languages = {number: (code, 0.9) for number, code in enumerate(("de", "fr", "ja", "ko"))}
    parts = [scripted_part(number, seconds) for number, seconds in enumerate((20, 40, 10, 30))]
    transcripts = transcribe(net, parts)
    assert [transcript.language for transcript in transcripts] == ["de", "fr", "ja", "ko"]
    assert net.encode_batches == [6, 1]
    assert {(window.part, window.silence_behind) for window in net.language_steps} == {
        (0, True),
        (1, False),
        (2, True),
        (3, False),
    }


def test_a_shared_language_window_saves_the_second_encoding() -> None:
    net = saying({}, WORD)
    transcribe(net, [scripted_part(1, 20)], DecodeOptions(language_window="shared"))
    assert [window.silence_behind for window in net.heard] == [False]
    assert net.language_steps == net.heard


@pytest.mark.parametrize("seconds", [20, 60])
def test_a_given_language_is_not_looked_for(seconds: float) -> None:
    net = saying({}, WORD)
    net.languages = {1: ("de", 0.9)}
    (transcript,) = transcribe(net, [scripted_part(1, seconds)], DecodeOptions.exact(language="fr"))
    assert (transcript.language, transcript.language_probability) == ("fr", None)
    assert net.language_steps == []
    assert not any(window.silence_behind for window in net.heard)
    assert set(languages(net)) == {"fr"}


@pytest.mark.parametrize("seconds", [20, 60])
def test_an_english_only_model_is_not_asked_for_a_language(seconds: float) -> None:
    net = saying({}, WORD, english_only=True)
    (transcript,) = transcribe(net, [scripted_part(1, seconds)])
    assert (transcript.language, transcript.language_probability) == ("en", None)
    assert not any(window.silence_behind for window in net.heard)
    assert net.prompts[0][1] == (net.tokenizer.sot,)
    assert [segment.text for segment in transcript.segments][:1] == [" Word."]


def test_the_task_is_in_the_prompt() -> None:
    net = saying({}, WORD)
    transcribe(net, [scripted_part(1, 30)], DecodeOptions.exact(task="translate", language="de"))
    assert net.prompts[0][1][-1] == net.tokenizer.translate


# --- prompt and seek ----------------------------------------------------------------------------------------------


def test_every_row_has_the_prompt_of_its_part() -> None:
    """Four parts that say different things and, at the second window, share a prefill with prompts of four lengths."""
    said = {(number, 0): f"<0.00>{' so' * (number + 1)}<2.00>" for number in range(4)}
    net = saying(said, WORD)
    transcribe(net, [scripted_part(number, 60) for number in range(4)], DecodeOptions.exact(language="en"))
    start = net.tokenizer.sot_sequence("en", "transcribe")
    second = {window.part: prompt for window, prompt in net.prompts if window.seek}
    assert second == {
        number: (net.tokenizer.sot_prev, *tokens_of(net.tokenizer, said[(number, 0)]), *start) for number in range(4)
    }


def test_prompts_of_different_lengths_share_a_prefill() -> None:
    """Both first windows end in one turn, but the blank segment of the one is not shown to its second."""
    said = {(1, 0): "<0.00> One.<1.00><1.00> <30.00>", (2, 0): "<0.00> I will say two.<30.00>"}
    net = saying({**said, (1, 3000): "<0.00> Three.<2.00>"}, "<0.00> Four.<2.00>")
    first, second = transcribe(net, [scripted_part(1, 60), scripted_part(2, 60)], DecodeOptions.exact(language="en"))
    assert net.prefill_batches == [2, 2]
    assert {window.part: len(prompt) for window, prompt in net.prompts if window.seek} == {1: 8, 2: 11}
    assert [segment.text for segment in first.segments] == [" One.", " Three."]
    assert [segment.text for segment in second.segments] == [" I will say two.", " Four."]


def test_an_unfinished_tail_is_heard_again_from_where_it_was_cut() -> None:
    said = {
        (1, 0): "<0.00> One.<2.00><2.00> Two.<14.50><14.50> Thr",
        (1, 1450): "<0.00> Three.<10.02><10.02> Fo",
        (1, 2452): "<0.00> Four.<30.00>",
        (1, 5452): "<0.00> Five.<3.00>",
    }
    net = saying(said)
    (transcript,) = transcribe(net, [scripted_part(1, 58)])
    assert [(segment.text, round(segment.start, 2), round(segment.end, 2)) for segment in transcript.segments] == [
        (" One.", 0.0, 2.0),
        (" Two.", 2.0, 14.5),
        (" Three.", 14.5, 24.52),
        (" Four.", 24.52, 54.52),
        (" Five.", 54.52, 57.52),
    ]
    assert [(window.seek, window.frames) for window in net.heard] == [
        (0, 3000),
        (1450, 3000),
        (2452, 3000),
        (5452, 348),
    ]


def test_zeros_follow_the_last_window() -> None:
    net = saying({}, WORD)
    transcribe(net, [scripted_part(1, 31.5)], DecodeOptions.exact(language="en"))
    assert [(window.seek, window.frames, window.silence_behind) for window in net.heard] == [
        (0, 3000, False),
        (3000, 150, False),
    ]


# --- retries ------------------------------------------------------------------------------------------------------


def test_a_rejected_window_is_tried_hotter_and_computes_nothing_twice() -> None:
    net = saying({(1, 0): BAD})
    (transcript,) = transcribe(net, [scripted_part(1, 30)])
    (segment,) = transcript.segments
    assert (segment.temperature, segment.attempts) == (0.2, 2)
    assert segment.text.endswith("at its start.")
    assert segment.rules_fired == (IMPROBABLE, NO_TIMESTAMP_PAIR)
    assert (net.encode_batches, net.prefill_batches) == ([1], [1])
    assert transcript.windows_retried == 1
    assert transcript.tokens == 6 + len(segment.tokens) + 1  # the rejected ones were sampled, too


def test_text_that_repeats_itself_is_tried_hotter() -> None:
    line = Line(f"<0.00>{' thank you' * 20}<9.00>", hotter=FINE)
    (transcript,) = transcribe(saying({(1, 0): line}), [scripted_part(1, 30)])
    assert transcript.segments[0].rules_fired[0] == REPETITIVE
    assert transcript.segments[0].temperature == 0.2


def test_when_every_temperature_fails_the_hottest_is_kept() -> None:
    still_bad = replace(BAD, hotter=Line("<0.00> Worse worse worse.<2.00>", logprob=-3.0))
    (transcript,) = transcribe(saying({(1, 0): still_bad}), [scripted_part(1, 30)])
    (segment,) = transcript.segments
    assert (segment.temperature, segment.attempts) == (1.0, 6)
    assert segment.rules_fired == (IMPROBABLE, TEMPERATURES_EXHAUSTED, NO_TIMESTAMP_PAIR, PROMPT_RESET)


def test_hot_text_does_not_prompt_the_next_window() -> None:
    options = DecodeOptions.exact(temperatures=(0.0, 0.6), language="en")
    net = saying({(1, 0): BAD}, WORD)
    (transcript,) = transcribe(net, [scripted_part(1, 90)], options)
    start = net.tokenizer.sot_sequence("en", "transcribe")
    assert [prompt for _, prompt in net.prompts] == [
        start,
        start,
        (net.tokenizer.sot_prev, *tokens_of(net.tokenizer, WORD), *start),
    ]
    assert PROMPT_RESET in transcript.segments[0].rules_fired


def test_each_window_and_each_attempt_draws_from_a_stream_of_its_own() -> None:
    """At the fork of `BAD`, one of five hundred words is drawn; what is heard is the same each time."""

    def drawn(*temperatures: float) -> list[int]:
        options = DecodeOptions.exact(temperatures=temperatures, previous_text=False)
        (transcript,) = transcribe(saying({}, BAD), [scripted_part(1, 60)], options)
        assert {segment.attempts for segment in transcript.segments} == {len(temperatures)}
        return [segment.tokens[1] for segment in transcript.segments]

    assert len({*drawn(1.0), *drawn(0.0, 1.0)}) == 4
    assert drawn(1.0) == drawn(1.0)


def test_each_window_starts_at_the_first_temperature_again() -> None:
    (transcript,) = transcribe(saying({(1, 0): BAD}, WORD), [scripted_part(1, 60)])
    assert [(segment.temperature, segment.attempts) for segment in transcript.segments] == [(0.2, 2), (0.0, 1)]
    assert transcript.segments[1].rules_fired == (NO_TIMESTAMP_PAIR,)


def test_the_average_counts_the_end_and_only_this_attempt() -> None:
    net = saying({(1, 0): Line("<0.00> One two three.<2.00>", logprob=-0.5), (1, 3000): BAD})
    (transcript,) = transcribe(net, [scripted_part(1, 60)])
    first, second = transcript.segments
    assert first.avg_logprob == pytest.approx(4 * -0.5 / 7, abs=1e-5)  # four words, two timestamps and the end
    assert -0.4 < second.avg_logprob < -0.2  # one word in five hundred, then certainty


# --- silence ------------------------------------------------------------------------------------------------------


def test_a_window_without_speech_is_skipped_unless_its_text_is_confident() -> None:
    said = {(1, 0): WORD, (1, 3000): Line("<0.00> Thank you.<2.00>", logprob=-2.0), (1, 6000): "<0.00> Yes.<2.00>"}
    net = saying(said)
    net.no_speech = {(1, 3000): 0.8, (1, 6000): 0.7}
    (transcript,) = transcribe(net, [scripted_part(1, 90)], DecodeOptions.exact(language="en"))
    assert [segment.text for segment in transcript.segments] == [" Word.", " Yes."]
    assert [segment.no_speech_prob for segment in transcript.segments] == [pytest.approx(0.01), pytest.approx(0.7)]
    assert transcript.segments[1].rules_fired[0] == CONFIDENT_DESPITE_NO_SPEECH
    assert (transcript.windows, transcript.windows_skipped, transcript.windows_retried) == (3, 1, 0)
    assert net.prompts[1][1] == net.prompts[2][1]  # the skipped window left the prompt as it was


def test_no_speech_is_read_at_sot_behind_any_prompt() -> None:
    net = saying({}, WORD)
    net.no_speech = {(1, 3000): 0.3, (2, 3000): 0.4}
    transcripts = transcribe(
        net, [scripted_part(1, 60), scripted_part(2, 60)], DecodeOptions.exact(initial_prompt="Listen")
    )
    assert [transcript.segments[1].no_speech_prob for transcript in transcripts] == [
        pytest.approx(0.3),
        pytest.approx(0.4),
    ]


# --- limits -------------------------------------------------------------------------------------------------------

ENDLESS = "<0.00>" + " and so on" * 200
ANYTHING_GOES: dict[str, Any] = {"compression_ratio_threshold": None, "language": "en"}


@pytest.mark.parametrize(
    ("initial_prompt", "prompt_length", "limit"),
    [(None, 3, 224), (" a" * 220, 224, 224), (" a" * 221, 225, 224), (" a" * 222, 226, 223), (" a" * 400, 227, 222)],
)
def test_a_window_ends_when_the_context_is_full(initial_prompt: str | None, prompt_length: int, limit: int) -> None:
    """224 tokens, or what a prompt leaves of 448 positions and the token that needs none."""
    net = saying({(1, 0): ENDLESS})
    options = DecodeOptions.exact(initial_prompt=initial_prompt, **ANYTHING_GOES)
    (transcript,) = transcribe(net, [scripted_part(1, 30)], options)
    (segment,) = transcript.segments
    assert len(net.prompts[0][1]) == prompt_length
    assert len(segment.tokens) == transcript.tokens == limit
    assert TOKEN_LIMIT in segment.rules_fired
    assert segment.avg_logprob == pytest.approx((limit - 1) * -0.1 / (limit + 1), abs=1e-4)


@pytest.mark.parametrize(("words", "limited"), [(222, False), (223, True)])
def test_a_window_that_ends_by_itself_was_not_cut_off(words: int, limited: bool) -> None:
    net = saying({(1, 0): "<0.00>" + " a" * words})
    (transcript,) = transcribe(net, [scripted_part(1, 30)], DecodeOptions.exact(**ANYTHING_GOES))
    assert len(transcript.segments[0].tokens) == words + 1
    assert (TOKEN_LIMIT in transcript.segments[0].rules_fired) is limited
    assert transcript.tokens == 224


def test_the_first_timestamp_obeys_its_limit() -> None:
    late = saying({(1, 0): "<3.00> Late.<5.00>"})
    (transcript,) = transcribe(late, [scripted_part(1, 30)], DecodeOptions.exact(temperatures=(0.0,)))
    assert transcript.segments[0].tokens[0] <= late.tokenizer.timestamp(1.0)
    (free,) = transcribe(late, [scripted_part(1, 30)], DecodeOptions.exact(max_initial_timestamp=None))
    assert free.segments[0].tokens[0] == late.tokenizer.timestamp(3.0)


def test_probabilities_are_those_of_what_was_sampled() -> None:
    """A line of certain words: the sum over all tokens is exactly that of the words that were not."""
    (transcript,) = transcribe(saying({(1, 0): Line(WORD, logprob=0.0)}), [scripted_part(1, 30)])
    assert math.isclose(transcript.segments[0].avg_logprob, 0.0, abs_tol=1e-6)
