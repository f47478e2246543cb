"""Loops are seen early, whatever stands between the repeats, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.dimensions import OFFICIAL
from model.fallback import REPETITIVE, compression_ratio, failures
from model.loops import CHECK_EVERY, LEAST_REPEATS, LEAST_TOKENS, is_looping, loop_period
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Attempt

TOKENIZER = Tokenizer.for_dimensions(OFFICIAL["base"])
OPTIONS = DecodeOptions()
THRESHOLD = OPTIONS.compression_ratio_threshold
MOST = 224  # tokens of one attempt

SPEECH = (
    " And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country. My"
    " fellow citizens of the world, ask not what America will do for you, but what together we can do for the freedom"
    " of man. Finally, whether you are citizens of America or citizens of the world, ask of us the same high standards"
    " of strength and sacrifice which we ask of you."
)
MORE = (
    " Four score and seven years ago our fathers brought forth, upon this continent, a new nation, conceived in"
    " liberty, and dedicated to the proposition that all men are created equal."
)


def ended_at(tokens: list[int], threshold: float | None = THRESHOLD) -> int | None:
    """After how many tokens an attempt that would sample `tokens` is seen to loop."""
    return next((n for n in range(1, len(tokens) + 1) if is_looping(tokens[:n], TOKENIZER, threshold)), None)


def looped(text: str, before: str = "") -> list[int]:
    """As many tokens as an attempt may have: `before`, then `text` over and over."""
    return (TOKENIZER.encode(before) + TOKENIZER.encode(text) * MOST)[:MOST]


# --- loops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        " Thank you.",
        " ha",
        " 1, 2, 3,",
        " Продолжение следует...",
        "ご視聴ありがとうございました",
        " हाँ",
        " 🙏",  # four tokens for one character, which an attempt may leave in the middle
        " I am not a good one. But I am not.",
    ],
)
def test_a_loop_is_seen_as_soon_as_it_is_long_enough(text: str) -> None:
    assert ended_at(looped(text)) == LEAST_TOKENS


def test_a_long_round_has_to_come_back() -> None:
    sentence = SPEECH[:128]
    period = len(TOKENIZER.encode(sentence))
    ended = ended_at(looped(sentence))
    assert 2 * period < LEAST_TOKENS < LEAST_REPEATS * period <= ended < LEAST_REPEATS * period + CHECK_EVERY


def test_timestamps_between_the_repeats_hide_nothing() -> None:
    """<|0.00|> Thank you.<|2.00|><|2.00|> Thank you.<|4.00|> and so on: no two rounds have the same tokens."""
    said, time = TOKENIZER.encode(" Thank you."), TOKENIZER.timestamp
    tokens = [token for n in range(40) for token in (time(n / 2), *said, time(n / 2 + 0.5))]
    assert loop_period(tokens) is None
    ended = ended_at(tokens)
    assert ended is not None and sum(token < TOKENIZER.timestamp_begin for token in tokens[:ended]) <= LEAST_TOKENS + 8


def test_a_loop_behind_some_speech_waits_until_it_outweighs_it() -> None:
    assert LEAST_TOKENS < ended_at(looped(" Thank you very much for watching.", before=SPEECH[:100])) < MOST


def test_it_is_looked_for_at_every_eighth_token() -> None:
    tokens = looped(" Thank you.")
    seen = [n for n in range(MOST + 1) if is_looping(tokens[:n], TOKENIZER, THRESHOLD)]
    assert seen == list(range(LEAST_TOKENS, MOST + 1, CHECK_EVERY))


@pytest.mark.parametrize(
    ("text", "period"),
    [([5] * 64, 1), ([5, 6] * 32, 2), ([5, 5, 6] * 22, 3), ([9] * 100 + [5, 6, 5, 7] * 16, 4), ([*range(30)] * 3, 30)],
)
def test_the_period_is_the_shortest_that_explains_the_end(text: list[int], period: int) -> None:
    assert loop_period(text) == period


@pytest.mark.parametrize("text", [[], [5], [5] * 63, [5] * 64 + [6], [*range(30)] * 2, [5, 6] * 31 + [5, 7]])
def test_what_does_not_come_back_often_enough_has_no_period(text: list[int]) -> None:
    assert loop_period(text) is None


# --- no loops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        " No, no, no, no!",
        " Ha ha ha ha ha ha ha ha ha ha ha ha.",
        " One two three four five six seven eight nine ten." * 2,
        " 0800 0800 0800 77 77 77 77",
        " Hello? Hello? Hello? Hello? Hello? Hello? Hello? Hello? Hello? Hello?" + SPEECH,
        " Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a dream."
        * 2,
        SPEECH,
    ],
)
def test_people_may_repeat_themselves(text: str) -> None:
    assert ended_at(TOKENIZER.encode(text)) is None


def test_text_that_would_pass_is_never_ended_however_often_it_repeats_itself() -> None:
    tokens = TOKENIZER.encode(SPEECH + MORE + " a" * LEAST_TOKENS)
    assert loop_period(tokens) == 1
    assert compression_ratio(TOKENIZER.decode(tokens).strip()) < THRESHOLD and ended_at(tokens) is None


def test_the_threshold_is_the_one_that_is_set() -> None:
    tokens = looped(" Thank you.")
    assert ended_at(tokens, threshold=None) is None
    assert ended_at(tokens, threshold=50.0) is None
    assert LEAST_TOKENS < ended_at(tokens, threshold=12.0) < MOST


# --- soundness ----------------------------------------------------------------------------------------------------

words = st.text(max_size=150).map(TOKENIZER.encode)
bytes_of_characters = st.lists(st.integers(0, TOKENIZER.eot - 1), max_size=60)  # any token: some hold half a character
timestamps = st.integers(TOKENIZER.timestamp_begin, TOKENIZER.timestamp_begin + 1500)


@settings(deadline=None)
@given(
    words | bytes_of_characters,
    st.text(min_size=1, max_size=100).map(TOKENIZER.encode) | bytes_of_characters,
    st.data(),
)
def test_a_loop_that_is_ended_would_have_failed_wherever_else_it_ended(
    before: list[int], unit: list[int], data: st.DataObject
) -> None:
    """As long as it goes on as it did: at the token limit, or at an end of text on the way there."""
    often = data.draw(st.sampled_from([0, 3, 20]), label="tokens between timestamps")
    assume(TOKENIZER.decode(unit * 3).strip("\ufffd").strip())  # blanks at the end are no text
    tokens = (before + unit * MOST)[:MOST]
    if often:
        tokens = [t for n, token in enumerate(tokens) for t in ([50364 + n, token] if n % often == 0 else [token])][
            :MOST
        ]
    ended = ended_at(tokens)
    if ended is None:
        return
    for length in range(ended, MOST + 1):
        text = TOKENIZER.decode(tokens[:length]).strip()
        attempt = Attempt(tuple(tokens[:length]), text, 0.0, -0.1, 0.0, compression_ratio(text))
        assert REPETITIVE in failures(attempt, OPTIONS)
