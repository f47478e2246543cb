"""Word error rates: what counts as the same, how errors add up, and languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.bench.recordings import Recording
from jobs.bench.score import score


def _said(text: str, spoken: str | None = "en", language: str | None = None) -> Recording:
    return Recording("a", Path("a.wav"), 2.0, text, spoken, language)


def test_errors_are_counted_over_all_words() -> None:
    said = [_said("red green blue white"), _said("warm cold")]
    heard = ["red grain white", "warm cold wet"]  # a substitution, a deletion, an insertion
    scored = score(said, heard, ["en", "en"])
    assert (scored.errors, scored.words) == (3, 6)
    assert scored.word_error_rate == 0.5


@pytest.mark.parametrize(
    ("said", "heard", "spoken"),
    [
        ("Please press twenty-one, thank you!", "please press 21 thank you", "en"),
        ("The colour isn't grey.", "the color is not gray", "en"),
        ("Contrasena incorrecta", "Contraseña incorrecta.", "es"),
        ("Bonjour, monde", "bonjour monde", None),
    ],
)
def test_spelling_is_no_error(said: str, heard: str, spoken: str | None) -> None:
    assert score([_said(said, spoken)], [heard], [spoken]).errors == 0


def test_what_has_no_spaces_is_scored_by_character() -> None:
    scored = score([_said("你好世界", "zh")], ["你好世间"], ["zh"])
    assert (scored.errors, scored.words) == (1, 4)


def test_nothing_heard_is_all_wrong() -> None:
    scored = score([_said("warm cold")], [""], [None])
    assert scored.word_error_rate == 1.0 and scored.languages == 0.0


def test_nothing_said_cannot_be_wrong() -> None:
    scored = score([_said("?!")], ["hallucinated"], ["en"])
    assert (scored.errors, scored.words, scored.word_error_rate) == (0, 0, 0.0)


def test_languages_count_where_they_were_to_be_found() -> None:
    said = [_said("a b", "en"), _said("a b", "fr"), _said("a b", None)]
    assert score(said, ["a b"] * 3, ["en", "es", "es"]).languages == 0.5
    assert score([_said("a b", "en", language="en")], ["a b"], ["en"]).languages is None
