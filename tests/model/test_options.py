"""Options: the defaults of the reference, and one plain sentence for whatever is not allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from model.errors import UsageError
from model.options import DecodeOptions


def test_the_defaults_are_those_of_the_reference() -> None:
    """openai/whisper, `transcribe()` and `DecodingOptions`, v20250625."""
    options = DecodeOptions()
    assert (options.language, options.task) == (None, "transcribe")
    assert options.temperatures == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (options.compression_ratio_threshold, options.avg_logprob_threshold) == (2.4, -1.0)
    assert (options.no_speech_threshold, options.max_initial_timestamp) == (0.6, 1.0)
    assert (options.previous_text, options.initial_prompt) == (True, None)
    assert (options.suppress_tokens, options.suppress_blank) == ((-1,), True)
    assert (options.language_window, options.seed) == ("reference", 0)


@pytest.mark.parametrize("given", ["fr", "FR", "French", " french "])
def test_a_language_is_kept_as_its_code(given: str) -> None:
    assert DecodeOptions(language=given).language == "fr"
    assert DecodeOptions(language=given) == DecodeOptions(language="fr")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "summarise"}, ["task", "'summarise'", "transcribe, translate"]),
        ({"language": "klingon"}, ["'klingon'", "language"]),
        ({"language_window": "none"}, ["language_window", "'none'", "reference, shared"]),
        ({"temperatures": ()}, ["temperatures", "at least one"]),
        ({"temperatures": (0.0, -0.2)}, ["temperatures", "-0.2", "none below 0"]),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        DecodeOptions(**changes)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("changes", [{"task": "translate"}, {"temperatures": (0.0,)}, {"language_window": "shared"}])
def test_what_is_allowed_is_kept(changes: dict[str, Any]) -> None:
    (name, value), *_ = changes.items()
    assert getattr(DecodeOptions(**changes), name) == value


def test_options_do_not_change_under_way() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeOptions().seed = 1  # type: ignore[misc]


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="temperature"):
        DecodeOptions(temperature=0.0)  # type: ignore[call-arg]
