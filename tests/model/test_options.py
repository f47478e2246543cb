"""Options: whose defaults they are, one plain sentence for whatever is not allowed, and what exact stands for."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from model.errors import UsageError
from model.options import EXACT, DecodeOptions

BEAM: dict[str, Any] = {"beam_size": 5}
WORDS: dict[str, Any] = {"word_timestamps": True}


def test_the_rules_are_those_of_the_reference() -> None:
    """openai/whisper, `transcribe()` and `DecodingOptions`, v20250625."""
    options = DecodeOptions()
    assert (options.language, options.task) == (None, "transcribe")
    assert options.temperatures == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (options.compression_ratio_threshold, options.avg_logprob_threshold) == (2.4, -1.0)
    assert (options.no_speech_threshold, options.max_initial_timestamp) == (0.6, 1.0)
    assert (options.previous_text, options.initial_prompt) == (True, None)
    assert (options.suppress_tokens, options.suppress_blank) == ((-1,), True)
    assert (options.beam_size, options.best_of, options.patience, options.length_penalty) == (1, 1, 1.0, None)
    assert (options.word_timestamps, options.hallucination_silence, options.seed) == (False, None, 0)


def test_what_we_do_otherwise_by_default_is_little() -> None:
    ours = {name: getattr(DecodeOptions(), name) for name in EXACT}
    assert {name for name, value in ours.items() if value != EXACT[name]} == {
        "language_window",
        "stop_loops",
        "context_margin",
    }


@pytest.mark.parametrize("given", ["fr", "FR", "French", " french "])
def test_a_language_is_kept_as_its_code(given: str) -> None:
    assert DecodeOptions(language=given).language == "fr"
    assert DecodeOptions(language=given) == DecodeOptions(language="fr")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "summarise"}, "task is 'summarise': choose one of transcribe, translate."),
        ({"language": "klingon"}, "The language 'klingon' is not one of .*"),
        ({"language_window": "none"}, "language_window is 'none': choose one of reference, shared."),
        ({"temperatures": ()}, "temperatures is .*: give at least one number, none below 0."),
        ({"temperatures": (0.0, -0.2)}, "temperatures is .*-0.2.*: give at least one number, none below 0."),
        ({"temperatures": (float("nan"),)}, "temperatures is .*nan.*: give at least one number, none below 0."),
        # candidates
        ({"beam_size": 0}, "beam_size is 0: give at least 1."),
        ({"best_of": 0}, "best_of is 0: give at least 1."),
        (BEAM | {"temperatures": (0.2,)}, "beam_size is 5, but no temperature is 0: add 0, or leave it out."),
        ({"best_of": 5, "temperatures": (0.0,)}, "best_of is 5, but no temperature is above 0: add one, or .*"),
        ({"patience": 2.0}, "patience is 2, but there is no beam: give a beam_size above 1."),
        (BEAM | {"patience": 0.0}, "patience is 0: give a number above 0."),
        (BEAM | {"patience": float("nan")}, "patience is nan: give a number above 0."),
        (BEAM | {"patience": float("inf")}, "patience is inf: give a number above 0."),
        (BEAM | {"patience": 0.05}, "beam_size 5 × patience 0.05 is 0 candidates: raise one of them to make it 1."),
        ({"length_penalty": 0.6}, "length_penalty is 0.6, but there is one candidate: give beam_size or best_of .*"),
        (BEAM | {"length_penalty": 1.1}, "length_penalty is 1.1: give 0 to 1, or leave it out to .*"),
        (BEAM | {"length_penalty": -0.1}, "length_penalty is -0.1: give 0 to 1, or leave it out to .*"),
        # language
        ({"language_windows": 0}, "language_windows is 0: give at least 1."),
        (
            {"language": "German", "language_per_window": True},
            "language_per_window and language = 'de' say different things about the language: leave all but one out.",
        ),
        ({"language": "de", "language_windows": 3}, "language_windows = 3 and language = 'de' say different .*"),
        ({"language_per_window": True, "language_windows": 3}, "language_windows = 3 and language_per_window say .*"),
        # prompt and window
        ({"hotwords": " \n"}, "hotwords is blank: give names and terms, or leave it out."),
        ({"context_margin": -1.0}, "context_margin is -1: give 0 to 30 seconds, or leave it out."),
        ({"context_from": -1.0}, "context_from is -1: give 0 to 30 seconds."),
        ({"context_margin": 30.5}, "context_margin is 30.5: give 0 to 30 seconds, or leave it out."),
        # words
        (WORDS | {"hallucination_silence": 0.0}, "hallucination_silence is 0: give seconds above 0, or .*"),
        ({"hallucination_silence": 2.0}, "hallucination_silence is measured between words: set word_timestamps, or .*"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        DecodeOptions(**changes)
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)
    assert str(caught.value).endswith(".") and not re.search(r"\. [A-Z]", str(caught.value))


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "translate"},
        {"temperatures": (0.0,)},
        {"language_window": "shared"},
        BEAM | {"patience": 2.0, "length_penalty": 0.0},
        BEAM | {"best_of": 5},  # each at its temperatures
        {"best_of": 2, "length_penalty": 1.0},
        {"patience": 1.0},
        {"language_windows": 5},
        {"language_per_window": True},
        {"language": "de", "language_windows": 1},
        {"hotwords": "Ada, Grace", "initial_prompt": ""},
        {"context_margin": 0.0},
        {"context_from": 0.0},
        {"context_margin": 30.0},
        WORDS | {"hallucination_silence": 0.5},
    ],
)
def test_what_is_allowed_is_kept(changes: dict[str, Any]) -> None:
    options = DecodeOptions(**changes)
    assert {name: getattr(options, name) for name in changes} == changes


def test_options_do_not_change_under_way() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeOptions().seed = 1  # type: ignore[misc]


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="temperature"):
        DecodeOptions(temperature=0.0)  # type: ignore[call-arg]


# --- exact --------------------------------------------------------------------------------------------------------


def test_exact_does_nothing_that_the_reference_does_not() -> None:
    exact = DecodeOptions.exact()
    assert (exact.language_window, exact.stop_loops, exact.context_margin) == ("reference", False, None)
    assert (exact.hotwords, exact.language_windows, exact.language_per_window) == (None, 1, False)


def test_exact_leaves_the_references_own_options_alone() -> None:
    own: dict[str, Any] = {"language": "fr", "beam_size": 5, "best_of": 5, "word_timestamps": True, "seed": 3}
    exact = DecodeOptions.exact(**own)
    assert {name: getattr(exact, name) for name in own} == own
    assert dataclasses.replace(DecodeOptions(**own), **EXACT) == exact


AWAY = {
    "hotwords": "Ada",
    "language_windows": 3,
    "language_per_window": True,
    "language_window": "shared",
    "context_margin": 2.0,
    "stop_loops": True,
}


@pytest.mark.parametrize(("name", "value"), AWAY.items())
def test_exact_and_what_leads_away_from_it_is_a_contradiction(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        DecodeOptions.exact(**{name: value})
    assert str(caught.value) == (
        f"{name} is {value!r}, with which the output is not openai/whisper's: leave it out, or leave out exact."
    )
    assert DecodeOptions.exact(**{name: EXACT[name]}) == DecodeOptions.exact()


def test_each_option_of_ours_is_tried_above() -> None:
    assert set(AWAY) == set(EXACT)
