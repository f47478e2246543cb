"""Judging a decoded window: accept it, try again hotter, or take it for silence (Radford et al. 2022, section 4.5).

Pure functions of an attempt and its thresholds. Each rule has a name, and the names that fired are kept in the column
`rules_fired` of every segment.
"""

from __future__ import annotations

import zlib

from model.options import DecodeOptions
from model.transcript import Attempt

REPETITIVE = "repetitive"  # compression ratio above its threshold: the text repeats itself
IMPROBABLE = "improbable"  # average log-probability below its threshold
CONFIDENT_DESPITE_NO_SPEECH = "confident_despite_no_speech"  # no-speech token likely, yet the text is probable
TEMPERATURES_EXHAUSTED = "temperatures_exhausted"  # the hottest attempt failed too, and was kept

PROMPT_RESET_TEMPERATURE = 0.5  # text sampled hotter than this is not shown to the next window


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of `text` over their zlib-compressed size; above 2.4 it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def failures(attempt: Attempt, options: DecodeOptions) -> tuple[str, ...]:
    """Names of the rules by which `attempt` fails; empty when it is accepted."""
    improbable = _is_improbable(attempt, options)
    if improbable and _is_probably_silent(attempt, options):
        return ()
    limit = options.compression_ratio_threshold
    repetitive = limit is not None and attempt.compression_ratio > limit
    return ((REPETITIVE,) if repetitive else ()) + ((IMPROBABLE,) if improbable else ())


def is_silence(attempt: Attempt, options: DecodeOptions) -> bool:
    """Whether the accepted window is skipped: probably no speech, and no confident text to say otherwise."""
    return _is_probably_silent(attempt, options) and not _is_confident(attempt, options)


def doubts(attempt: Attempt, options: DecodeOptions) -> tuple[str, ...]:
    """Names of the rules that fired on an accepted attempt, not taken for silence, without rejecting it."""
    fired = []
    if _is_probably_silent(attempt, options):
        fired.append(CONFIDENT_DESPITE_NO_SPEECH)
    if failures(attempt, options):
        fired.append(TEMPERATURES_EXHAUSTED)
    return tuple(fired)


def resets_prompt(attempt: Attempt) -> bool:
    """Whether the text of this attempt is too wild to prompt the next window with."""
    return attempt.temperature > PROMPT_RESET_TEMPERATURE


def _is_improbable(attempt: Attempt, options: DecodeOptions) -> bool:
    limit = options.avg_logprob_threshold
    return limit is not None and attempt.avg_logprob < limit


def _is_confident(attempt: Attempt, options: DecodeOptions) -> bool:
    limit = options.avg_logprob_threshold
    return limit is not None and attempt.avg_logprob > limit


def _is_probably_silent(attempt: Attempt, options: DecodeOptions) -> bool:
    limit = options.no_speech_threshold
    return limit is not None and attempt.no_speech_prob > limit
