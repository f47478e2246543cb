"""The table of languages, and the look-up of what people type."""

from __future__ import annotations

import pytest

from model.errors import UsageError
from model.languages import ALIASES, LANGUAGES, UNSPACED, language_code


def test_there_are_a_hundred_and_cantonese_came_last() -> None:
    codes = list(LANGUAGES)
    assert len(codes) == 100
    assert (codes[0], codes[1], codes[98], codes[99]) == ("en", "zh", "su", "yue")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("French", "fr"),
        (" haitian  creole ", "ht"),
        ("Mandarin", "zh"),
        ("burmese", "my"),
        ("jv", "jw"),
        ("yue", "yue"),
    ],
)
def test_codes_names_and_aliases_are_found_in_any_case(given: str, code: str) -> None:
    assert language_code(given) == code


def test_every_code_and_every_name_finds_itself() -> None:
    for code, name in LANGUAGES.items():
        assert language_code(code) == language_code(name) == language_code(name.upper()) == code


def test_no_alias_hides_a_code_or_a_name() -> None:
    names = {name.lower() for name in LANGUAGES.values()}
    assert not set(ALIASES) & (set(LANGUAGES) | names)
    assert set(ALIASES.values()) | UNSPACED <= set(LANGUAGES)


def test_a_misspelt_language_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"'Frensh' is not one of Whisper's 100 \(closest: French, fr\)"):
        language_code("Frensh")


@pytest.mark.parametrize("nonsense", ["", "xx", "klingon!", "12"])
def test_what_resembles_nothing_is_told_what_is_allowed(nonsense: str) -> None:
    with pytest.raises(UsageError, match="ISO 639 code such as en, fr or ja"):
        language_code(nonsense)


@pytest.mark.parity
def test_the_order_is_that_of_openai_whisper() -> None:
    reference = pytest.importorskip("whisper.tokenizer")
    assert {code: name.lower() for code, name in LANGUAGES.items()} == reference.LANGUAGES
    assert list(LANGUAGES) == list(reference.LANGUAGES)
    for name, code in reference.TO_LANGUAGE_CODE.items():
        assert language_code(name) == code
