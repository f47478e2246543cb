"""Judging an attempt: every threshold on both sides and exactly at it, and what overrules what."""

from __future__ import annotations

import zlib

import pytest

from model import fallback
from model.fallback import (
    CONFIDENT_DESPITE_NO_SPEECH,
    IMPROBABLE,
    REPETITIVE,
    TEMPERATURES_EXHAUSTED,
    compression_ratio,
    doubts,
    failures,
    is_silence,
    resets_prompt,
)
from model.options import DecodeOptions
from model.transcript import Attempt

DEFAULT = DecodeOptions()  # 2.4, -1.0 and 0.6
A_BIT = 1e-6


def attempt(logprob: float = -0.3, ratio: float = 1.5, no_speech: float = 0.1, temperature: float = 0.0) -> Attempt:
    """An attempt that nothing is wrong with, unless said otherwise."""
    return Attempt((), "", temperature, logprob, no_speech, ratio)


@pytest.mark.parametrize(
    ("tried", "names"),
    [
        (attempt(), ()),
        (attempt(ratio=2.4), ()),
        (attempt(ratio=2.4 + A_BIT), (REPETITIVE,)),
        (attempt(logprob=-1.0), ()),
        (attempt(logprob=-1.0 - A_BIT), (IMPROBABLE,)),
        (attempt(logprob=-1.5, ratio=3.0), (REPETITIVE, IMPROBABLE)),
    ],
)
def test_an_attempt_fails_beyond_a_threshold_not_at_it(tried: Attempt, names: tuple[str, ...]) -> None:
    assert failures(tried, DEFAULT) == names


@pytest.mark.parametrize(
    ("tried", "names"),
    [
        (attempt(logprob=-1.5, no_speech=0.6), (IMPROBABLE,)),
        (attempt(logprob=-1.5, no_speech=0.6 + A_BIT), ()),
        (attempt(logprob=-1.5, no_speech=0.9, ratio=9.0), ()),  # however repetitive
        (attempt(logprob=-1.0, no_speech=0.9, ratio=9.0), (REPETITIVE,)),  # silence must be improbable too
    ],
)
def test_probable_silence_cancels_a_failure(tried: Attempt, names: tuple[str, ...]) -> None:
    assert failures(tried, DEFAULT) == names


@pytest.mark.parametrize(
    ("options", "tried", "names"),
    [
        (DecodeOptions(compression_ratio_threshold=None), attempt(ratio=99.0), ()),
        (DecodeOptions(compression_ratio_threshold=None), attempt(logprob=-9.0, ratio=99.0), (IMPROBABLE,)),
        (DecodeOptions(avg_logprob_threshold=None), attempt(logprob=-9.0), ()),
        (DecodeOptions(avg_logprob_threshold=None), attempt(logprob=-9.0, ratio=3.0, no_speech=0.9), (REPETITIVE,)),
        (DecodeOptions(no_speech_threshold=None), attempt(logprob=-9.0, no_speech=0.99), (IMPROBABLE,)),
        (DecodeOptions(compression_ratio_threshold=0.0), attempt(), (REPETITIVE,)),  # zero is a threshold, not none
        (DecodeOptions(avg_logprob_threshold=0.0), attempt(), (IMPROBABLE,)),
        (DecodeOptions(no_speech_threshold=0.0), attempt(logprob=-2.0), ()),
    ],
)
def test_each_threshold_can_be_moved_or_left_out(
    options: DecodeOptions, tried: Attempt, names: tuple[str, ...]
) -> None:
    assert failures(tried, options) == names


@pytest.mark.parametrize(
    ("tried", "skipped"),
    [
        (attempt(logprob=-1.5, no_speech=0.6), False),
        (attempt(logprob=-1.5, no_speech=0.6 + A_BIT), True),
        (attempt(logprob=-1.0, no_speech=0.9), True),  # not above the threshold, so not confident
        (attempt(logprob=-1.0 + A_BIT, no_speech=0.9), False),
        (attempt(logprob=-1.5, no_speech=0.1), False),
    ],
)
def test_a_window_is_skipped_when_silent_unless_the_text_is_confident(tried: Attempt, skipped: bool) -> None:
    assert is_silence(tried, DEFAULT) is skipped


def test_without_a_probability_threshold_no_text_speaks_against_silence() -> None:
    assert is_silence(attempt(logprob=-0.01, no_speech=0.7), DecodeOptions(avg_logprob_threshold=None))


def test_without_a_no_speech_threshold_nothing_is_skipped() -> None:
    assert not is_silence(attempt(logprob=-9.0, no_speech=1.0), DecodeOptions(no_speech_threshold=None))


@pytest.mark.parametrize(
    ("tried", "names"),
    [
        (attempt(), ()),
        (attempt(no_speech=0.9), (CONFIDENT_DESPITE_NO_SPEECH,)),
        (attempt(no_speech=0.6), ()),
        (attempt(logprob=-1.5), (TEMPERATURES_EXHAUSTED,)),
        (attempt(ratio=3.0), (TEMPERATURES_EXHAUSTED,)),
        (attempt(ratio=3.0, no_speech=0.9), (CONFIDENT_DESPITE_NO_SPEECH, TEMPERATURES_EXHAUSTED)),
    ],
)
def test_the_doubts_about_an_accepted_attempt_are_named(tried: Attempt, names: tuple[str, ...]) -> None:
    assert doubts(tried, DEFAULT) == names


@pytest.mark.parametrize(("temperature", "resets"), [(0.0, False), (0.4, False), (0.5, False), (0.6, True)])
def test_hot_text_does_not_prompt_the_next_window(temperature: float, resets: bool) -> None:
    assert resets_prompt(attempt(temperature=temperature)) is resets


def test_the_compression_ratio_counts_utf8_bytes() -> None:
    assert compression_ratio("") == 0.0
    japanese = "同じ言葉" * 3
    assert compression_ratio(japanese) == 36 / len(zlib.compress(japanese.encode()))


def test_repeated_text_compresses_beyond_the_threshold_and_speech_does_not() -> None:
    speech = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for it."
    assert compression_ratio(speech) < 2.4 < compression_ratio("Thanks for watching! " * 6)


def test_the_names_of_the_rules_are_distinct() -> None:
    names = [value for name, value in vars(fallback).items() if name.isupper() and isinstance(value, str)]
    assert len(names) == len(set(names)) == 4
