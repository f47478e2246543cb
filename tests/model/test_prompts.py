"""What stands before `sot`: which tokens, in which order, and what gives way when the room is full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import OFFICIAL
from model.errors import UsageError
from model.prompts import hotword_tokens, prompt_room, prompt_tokens
from model.tokenizer import Tokenizer

DIMS = OFFICIAL["base"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
START = TOKENIZER.sot_sequence("en", "transcribe")
ROOM = 223  # openai/whisper: n_ctx // 2 - 1


def prompt(hotwords: tuple[int, ...] = (), text_before: tuple[int, ...] = ()) -> list[int]:
    return prompt_tokens(hotwords, text_before, START, TOKENIZER, DIMS)


def test_half_the_context_less_one_symbol_is_for_the_prompt() -> None:
    assert {prompt_room(dims) for dims in OFFICIAL.values()} == {ROOM}


def test_with_nothing_before_it_a_transcript_starts_without_prev() -> None:
    assert prompt() == list(START)


def test_hotwords_come_first_then_the_text_before_then_the_start() -> None:
    hotwords = hotword_tokens("Kubernetes", TOKENIZER, DIMS)
    assert TOKENIZER.decode(hotwords) == " Kubernetes"
    assert prompt(hotwords) == [TOKENIZER.sot_prev, *hotwords, *START]
    assert prompt(hotwords, (50364, 1, 2)) == [TOKENIZER.sot_prev, *hotwords, 50364, 1, 2, *START]


@pytest.mark.parametrize("given", ["Ada, Grace", "  Ada, Grace\n"])
def test_hotwords_are_read_as_words_in_the_middle_of_speech(given: str) -> None:
    assert hotword_tokens(given, TOKENIZER, DIMS) == tuple(TOKENIZER.encode(" Ada, Grace"))


def test_no_hotwords_take_no_room() -> None:
    assert hotword_tokens(None, TOKENIZER, DIMS) == ()


@given(st.integers(0, ROOM), st.integers(0, 500))
def test_the_newest_text_gets_the_room_that_hotwords_leave(hotwords: int, text: int) -> None:
    """Without hotwords: the reference's `[prev] + last 223 tokens`."""
    said = tuple(range(1000, 1000 + text))
    named = tuple(range(hotwords))
    found = prompt(named, said)
    if not named and not said:
        assert found == list(START)
        return
    assert found[0] == TOKENIZER.sot_prev and found[-3:] == list(START)
    kept = found[1 + len(named) : -3]
    assert found[1 : 1 + len(named)] == list(named)
    assert kept == list(said[text - len(kept) :])
    assert len(kept) == min(text, ROOM - hotwords)


@pytest.mark.parametrize(("words", "fits"), [(ROOM, True), (ROOM + 1, False)])
def test_hotwords_that_do_not_fit_are_refused_not_cut(words: int, fits: bool) -> None:
    text = "so " * words
    if fits:
        assert len(hotword_tokens(text, TOKENIZER, DIMS)) == ROOM
        return
    with pytest.raises(UsageError, match="^hotwords takes 224 tokens: give fewer words, so that .* at most 223.$"):
        hotword_tokens(text, TOKENIZER, DIMS)
