"""Words out of tokens, marks to their words, and what their times do to segments and to the seek."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import OFFICIAL, WINDOW_FRAMES
from model.segments import Piece, cut_window
from model.tokenizer import Tokenizer
from model.transcript import Word
from model.words import (
    MOST_TYPICAL,
    Pace,
    TimedPiece,
    TimedWindow,
    WindowPlace,
    WordTiming,
    merge_punctuation,
    shorten_at_sentences,
    split_words,
    text_tokens,
    time_window,
)
from tests.model.scripted import tokens_of

DIMS = OFFICIAL["tiny"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
START = WindowPlace(seek=0, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=0.0)


def words_of(text: str, language: str | None = "en") -> list[str]:
    return [word for word, _ in split_words(TOKENIZER.encode(text), TOKENIZER, language)]


def timed(*words: tuple[str, float, float], probability: float = 0.9) -> list[WordTiming]:
    return [WordTiming(word, tuple(TOKENIZER.encode(word)), start, end, probability) for word, start, end in words]


def spans(timings: list[WordTiming]) -> list[tuple[str, float, float]]:
    return [(timing.word, timing.start, timing.end) for timing in timings]


def fit(text: str, *words: tuple[str, float, float], place: WindowPlace = START) -> TimedWindow:
    """The window that says `text` with timestamps in it, its words timed from the start of the window."""
    tokens = tokens_of(TOKENIZER, text)
    cut = cut_window(tokens, TOKENIZER.timestamp_begin, place.frames, DIMS)
    return time_window(tokens, cut, timed(*words), place, TOKENIZER)


def only(window: TimedWindow) -> TimedPiece:
    (piece,) = window.pieces
    return piece


# --- splitting ----------------------------------------------------------------------------------------------------


def test_words_begin_at_spaces_and_at_marks() -> None:
    assert words_of(" It's well-known, isn't it?") == [" It's", " well", "-known", ",", " isn't", " it", "?"]


def test_several_tokens_make_one_word() -> None:
    split = split_words(TOKENIZER.encode(" incomprehensibilities"), TOKENIZER, "en")
    assert [word for word, _ in split] == [" incomprehensibilities"]
    assert len(split[0][1]) > 1


def test_without_spaces_every_character_stands_alone() -> None:
    assert words_of("你好,世界。", "zh") == ["你好", ",", "世界", "。"]  # or every token of several
    assert words_of("鬱蒼", "zh") == ["鬱", "蒼"]
    assert words_of("你好,世界。鬱蒼", "en") == ["你好", ",世界。鬱蒼"]
    assert words_of(" two words", None) == [" two", " words"]  # a model of one language


def test_bytes_of_a_character_stay_together() -> None:
    tokens = TOKENIZER.encode("鬱🦉")
    split = split_words(tokens, TOKENIZER, "ja")
    assert [word for word, _ in split] == ["鬱", "🦉"]
    assert len(tokens) > len(split)


def test_bytes_that_form_no_character_cost_no_word() -> None:
    """The reference fails on such an end, and loses what follows such a middle."""
    broken = TOKENIZER.encode("🦉")[:-1]
    after = TOKENIZER.encode(" owl of the night")
    split = split_words([*broken, *after, *broken], TOKENIZER, "en")
    assert [word.strip("\ufffd") for word, _ in split] == ["", " owl", " of", " the", " night"]
    assert [token for _, tokens in split for token in tokens] == [*broken, *after, *broken]


def test_a_broken_character_behind_a_space_is_a_word_of_its_own() -> None:
    broken = TOKENIZER.encode(" 🦉")[:1]
    split = split_words([*broken, *TOKENIZER.encode(" owl")], TOKENIZER, "en")
    assert [word for word, _ in split] == [" \ufffd", " owl"]


@given(st.lists(st.integers(0, TOKENIZER.eot - 1), max_size=30), st.sampled_from(["en", "zh"]))
def test_no_token_is_lost_or_moved(tokens: list[int], language: str) -> None:
    split = split_words(tokens, TOKENIZER, language)
    assert [token for _, group in split for token in group] == tokens
    assert all(group for _, group in split)


@given(st.text(max_size=40))
def test_words_of_sound_text_add_up_to_it(text: str) -> None:
    assert "".join(words_of(text, "ja")) == "".join(words_of(text, "en")) == text


def test_no_text_has_no_words() -> None:
    assert split_words([], TOKENIZER, "en") == []


def test_text_tokens_leave_timestamps_out() -> None:
    pieces = [Piece(0, 1, tokens_of(TOKENIZER, "<0.00> one<1.00>")), Piece(1, 2, tokens_of(TOKENIZER, "<1.00> two"))]
    assert TOKENIZER.decode(text_tokens(pieces, TOKENIZER.eot)) == " one two"


# --- punctuation --------------------------------------------------------------------------------------------------


def test_marks_join_their_words_and_leave_the_times_alone() -> None:
    merged = merge_punctuation(
        timed((' "', 0, 1), ("Yes", 1, 2), (",", 2, 3), ('"', 3, 4), (" she", 4, 5), (".", 5, 6))
    )
    assert spans(merged) == [(' "Yes,"', 1, 2), (" she.", 4, 5)]
    assert TOKENIZER.decode(merged[0].tokens) == ' "Yes,"'


@pytest.mark.parametrize(
    ("words", "merged"),
    [
        ([" (", "maybe", ")"], [" (maybe)"]),
        ([" -", " -", "one"], [" - -one"]),  # one opening mark behind the other
        ([" one", "..."], [" one", "..."]),  # no run of closing marks
        ([" one", "?!"], [" one", "?!"]),
        (["(", "one"], ["(", "one"]),  # without a space it opens nothing
        ([" one", " ("], [" one", " ("]),  # nothing follows
        ([".", " one"], [".", " one"]),  # nothing before
        ([], []),
    ],
)
def test_what_is_merged(words: list[str], merged: list[str]) -> None:
    assert [timing.word for timing in merge_punctuation(timed(*((word, 0, 1) for word in words)))] == merged


# --- durations ----------------------------------------------------------------------------------------------------


def test_the_pace_is_the_median_of_what_takes_time() -> None:
    assert Pace.of(timed((" a", 0, 0.2), (" b", 1, 1), (" c", 1, 1.3), (" d", 2, 2.5))).typical == pytest.approx(0.3)
    assert Pace.of(timed((" a", 0, 5))).typical == MOST_TYPICAL
    assert Pace.of(timed((" a", 1, 1))).typical == Pace.of([]).typical == 0


def test_a_pause_between_sentences_belongs_to_neither() -> None:
    timings = timed((" One", 0, 0.5), (".", 0.5, 3), (" Two", 3, 6), ("!", 6, 6.5), (" Three", 6.5, 9))
    shortened = spans(shorten_at_sentences(timings, Pace(0.5)))
    assert shortened == [(" One", 0, 0.5), (".", 0.5, 1.5), (" Two", 5, 6), ("!", 6, 6.5), (" Three", 8, 9)]


def test_a_long_word_within_a_sentence_stays() -> None:
    timings = timed((" One", 0, 5), (" two", 5, 9), (",", 9, 12), (" three", 12, 15))
    assert shorten_at_sentences(timings, Pace(0.5)) == timings


def test_without_a_pace_nothing_is_shortened() -> None:
    timings = timed((" One", 1, 1), (".", 1, 1))
    assert shorten_at_sentences(timings, Pace.of(timings)) == timings


# --- segments -----------------------------------------------------------------------------------------------------


def test_a_segment_takes_the_times_of_its_words() -> None:
    window = fit("<0.00> one two<2.00>", (" one", 0.2, 0.5), (" two", 0.7, 1.1))
    piece = only(window)
    assert (piece.start, piece.end) == (0.2, 1.1)
    assert piece.words == (Word(" one", 0.2, 0.5, 0.9), Word(" two", 0.7, 1.1, 0.9))


def test_times_count_from_the_start_of_the_part_and_are_rounded() -> None:
    place = WindowPlace(seek=1234, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=12.0)
    piece = only(fit("<0.00> one<2.00>", (" one", 0.2, 0.5), place=place))
    assert (piece.words[0].start, piece.words[0].end) == (12.54, 12.84)


def test_each_segment_gets_its_own_words() -> None:
    text = "<0.00> one two.<1.00><1.00> three<2.00><2.00>"
    window = fit(text, (" one", 0, 0.3), (" two", 0.3, 0.6), (".", 0.6, 0.7), (" three", 1.1, 1.4))
    assert [[word.word for word in piece.words] for piece in window.pieces] == [[" one", " two."], [" three"]]


def test_a_mark_that_opens_the_next_segment_takes_its_word_along() -> None:
    """As in the reference: words are counted out by their tokens, wherever the marks that joined them were."""
    text = '<0.00> one "<1.00><1.00>two<2.00><2.00>'
    window = fit(text, (" one", 0, 0.3), (' "', 0.3, 0.6), ("two", 1.1, 1.4))
    assert [[word.word for word in piece.words] for piece in window.pieces] == [[" one", ' "two'], []]


def test_without_words_a_segment_keeps_its_times() -> None:
    piece = only(fit("<0.50> one<2.00>"))
    assert (piece.start, piece.end, piece.words) == (0.0, 2.0, ())


def test_a_word_far_before_its_segment_is_cut_at_it() -> None:
    """Half a second of slack: within it the word is believed, beyond it the timestamp."""
    text, rest = "<0.00> a<5.00><5.00> one two<6.00><6.00>", ((" two", 5.4, 5.8),)
    before = ((" a", 0.0, 4.3),)
    believed = fit(text, *before, (" one", 4.6, 5.4), *rest).pieces[1]
    assert (believed.start, believed.words[0].start) == (4.6, 4.6)
    cut = fit(text, *before, (" one", 4.4, 5.4), *rest).pieces[1]
    assert (cut.start, cut.words[0].start) == (5.0, pytest.approx(5.4 - 0.7))  # the median, 0.7 at most, is kept


def test_a_word_far_behind_its_segment_is_cut_at_it() -> None:
    text = "<0.00> one two<2.00><2.00>"
    cut = only(fit(text, (" one", 1.0, 1.4), (" two", 1.4, 2.6)))
    assert (cut.end, cut.words[-1].end) == (2.0, pytest.approx(1.4 + 0.7))
    believed = only(fit(text, (" one", 1.0, 1.4), (" two", 1.4, 2.4)))
    assert (believed.end, believed.words[-1].end) == (2.4, 2.4)


def test_a_pause_is_taken_from_the_first_word_behind_it() -> None:
    words = [(" one", 0.0, 4.0), (" two", 4.0, 4.4), (" three", 4.4, 4.8), (" four", 4.8, 5.2)]
    piece = only(fit("<0.00> one two three four<6.00>", *words))
    assert piece.words[0].start == piece.start == pytest.approx(4.0 - 2 * 0.4)


@pytest.mark.parametrize(("start", "end", "fitted"), [(0.6, 1.5, 0.6), (0.7, 1.7, 0.9), (1.0, 1.7, 1.0)])
def test_a_pause_is_four_words_long_and_only_long_words_took_it(start: float, end: float, fitted: float) -> None:
    rest = [(f" {word}", end + 0.4 * n, end + 0.4 * (n + 1)) for n, word in enumerate(("two", "three", "four"))]
    piece = only(fit("<0.60> one two three four<9.00>", (" one", start, end), *rest))
    assert piece.words[0].start == pytest.approx(fitted)
    assert (piece.words[0].end, piece.words[1].start) == (end, end)


def test_two_words_that_are_long_together_took_a_pause() -> None:
    rest = [(f" {word}", 4.7 + 0.4 * n, 4.7 + 0.4 * (n + 1)) for n, word in enumerate(("three", "four", "five"))]
    piece = only(fit("<3.00> one two three four five<9.00>", (" one", 3.0, 3.7), (" two", 3.7, 4.7), *rest))
    assert [(word.start, word.end) for word in piece.words[:2]] == [
        (pytest.approx(3.1), pytest.approx(3.9)),
        (pytest.approx(3.9), 4.7),
    ]


def test_the_pause_before_a_second_segment_counts_from_the_first() -> None:
    text = "<0.00> one two<1.00><1.00> three four<9.00>"
    words = [(" one", 0.0, 0.4), (" two", 0.4, 0.8), (" three", 0.8, 2.0), (" four", 2.0, 2.4)]
    place = WindowPlace(seek=0, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=0.0)
    assert fit(text, *words, place=place).pieces[1].words[0].start == 0.8  # 1.2 s behind: less than four words
    later = [(" three", 0.8, 3.0), (" four", 3.0, 3.4)]
    assert fit(text, *words[:2], *later, place=place).pieces[1].words[0].start == pytest.approx(2.2)


def test_where_speech_went_on_there_is_no_pause_to_take() -> None:
    words = [(" one", 0.0, 1.0), (" two", 1.0, 1.4), (" three", 1.4, 1.8), (" four", 1.8, 2.2)]
    place = WindowPlace(seek=300, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=2.6)
    piece = only(fit("<0.00> one two three four<6.00>", *words, place=place))
    assert piece.words[0].start == 3.0


def test_a_pause_that_both_first_words_took_is_taken_from_both() -> None:
    words = [(" one", 0.0, 4.0), (" two", 4.0, 8.0), (" three", 8.0, 8.4), (" four", 8.4, 8.8), (" five", 8.8, 9.2)]
    place = WindowPlace(seek=1000, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=0.0)
    piece = only(fit("<0.00> one two three four five<10.00>", *words, place=place))
    first, second = piece.words[:2]
    assert first.end == second.start == pytest.approx(18.0 - 0.8)
    assert first.start == piece.start == pytest.approx(18.0 - 1.6)


# --- the seek -----------------------------------------------------------------------------------------------------


def test_the_seek_goes_to_the_end_of_the_last_word() -> None:
    place = WindowPlace(seek=1000, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=9.0)
    window = fit("<0.00> one<2.00><2.00> two", (" one", 0.2, 1.7), place=place)
    assert (window.seek, window.last_speech) == (1170, 11.7)  # where the timestamps alone say 1200


def test_a_window_that_says_that_nothing_follows_is_left_as_a_whole() -> None:
    window = fit("<0.00> one<2.00><2.00> two<4.00>", (" one", 0.2, 1.7), (" two", 2.2, 3.1))
    assert window.is_finished
    assert (window.seek, window.last_speech) == (WINDOW_FRAMES, 3.1)


def test_without_words_the_seek_goes_to_the_end_of_the_last_segment() -> None:
    window = fit("<0.00> one<2.00><2.00> two")
    assert (window.seek, window.last_speech) == (200, 2.0)


def test_words_without_time_leave_the_seek_to_the_timestamps() -> None:
    window = fit("<0.00> one<2.00><2.00> two", (" one", 0.0, 0.0))
    assert (window.seek, window.last_speech) == (200, 0.0)


def test_a_window_without_segments_leaves_the_last_speech_where_it_was() -> None:
    place = WindowPlace(seek=3000, frames=WINDOW_FRAMES, content_frames=100_000, last_speech=7.0)
    assert TimedWindow(place, (), seek=6000, is_finished=True).last_speech == 7.0
