"""What makes a segment suspect, and what a suspect in silence leads to."""

from __future__ import annotations

import pytest

from model.dimensions import WINDOW_FRAMES
from model.hallucination import (
    HALLUCINATION_DROPPED,
    LEADING_SILENCE_SKIPPED,
    is_suspect,
    skip_silence,
    word_anomaly,
)
from model.transcript import Word
from model.words import TimedPiece, TimedWindow, WindowPlace

THRESHOLD = 2.0
CONTENT = 20_000  # frames of the part


def piece(*spans: tuple[float, float], probability: float = 0.9, start: float | None = None) -> TimedPiece:
    """A segment with a word for each span."""
    words = tuple(Word(" word", *span, probability) for span in spans)
    return TimedPiece(spans[0][0] if start is None else start, spans[-1][1], (1, 2), words)


def sound(start: float, end: float) -> TimedPiece:
    """Two words of half a second, at its start and at its end."""
    return piece((start, start + 0.5), (end - 0.5, end))


def made_up(start: float, end: float) -> TimedPiece:
    middle = (start + end) / 2
    return piece((start, middle), (middle, end), probability=0.1)


def silent(start: float, end: float) -> TimedPiece:
    """A segment in which no words were found."""
    return TimedPiece(start, end, (1, 2), ())


def window(
    *pieces: TimedPiece,
    seek: int = 6000,
    frames: int = WINDOW_FRAMES,
    content: int = CONTENT,
    last_speech: float = 59.0,
    finished: bool = True,
) -> TimedWindow:
    place = WindowPlace(seek, frames, content, last_speech)
    return TimedWindow(place, pieces, seek + frames, finished)


# --- suspects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "probability", "score"),
    [
        (1.0, 1.5, 0.9, 0.0),
        (1.0, 1.5, 0.15, 0.0),
        (1.0, 1.5, 0.14, 1.0),
        (1.0, 1.0, 0.9, 0.133 * 15),
        (1.0, 1.1, 0.9, 0.033 * 15),
        (1.0, 3.0, 0.9, 0.0),
        (1.0, 4.5, 0.9, 1.5),
        (1.0, 4.5, 0.1, 2.5),
    ],
)
def test_words_that_are_improbable_short_or_long(start: float, end: float, probability: float, score: float) -> None:
    assert word_anomaly(Word(" word", start, end, probability)) == pytest.approx(score)


def words(*kinds: str) -> list[Word]:
    """Good and bad words, and marks."""
    return [Word(kind, 1.0, 1.5, 0.1 if kind in ("bad", ".") else 0.9) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "suspect"),
    [
        ((), False),
        (("good", "good"), False),
        (("bad",), True),  # as many as there are words
        (("bad", "good"), False),
        (("bad", "bad", "bad", "good", "good"), True),  # three
        (("bad", "bad", "good", "good", "good"), False),
        (("bad", ".", "good", ".", ".", "."), False),  # marks do not count
        ((".", "."), True),  # but nothing else is said
        (("good",) * 8 + ("bad",) * 3, False),  # behind the first eight
        (("good",) * 5 + ("bad",) * 3, True),
    ],
)
def test_segments_are_judged_by_their_first_words(kinds: tuple[str, ...], suspect: bool) -> None:
    assert is_suspect(words(*kinds)) is suspect


@pytest.mark.parametrize(("short_of_one", "suspect"), [(0.005, True), (0.015, False)])
def test_a_hair_less_than_one_for_each_word_is_enough(short_of_one: float, suspect: bool) -> None:
    duration = 0.133 - (1 - short_of_one) / 15
    assert is_suspect([Word(" word", 0.0, duration, 0.9)]) is suspect


# --- the silence before a suspect ---------------------------------------------------------------------------------


def test_silence_before_a_suspect_at_the_start_is_skipped_and_the_rest_heard_again() -> None:
    result = skip_silence(window(made_up(63, 64), sound(70, 72)), THRESHOLD)
    assert result.skipped and result.pieces == ()
    assert (result.seek, result.rules) == (6300, (LEADING_SILENCE_SKIPPED,))
    assert result.last_speech == 59.0


@pytest.mark.parametrize("first", [sound(63, 64), made_up(61.5, 62.5), made_up(62, 62.5)])
def test_no_silence_or_no_suspect_nothing_skipped(first: TimedPiece) -> None:
    result = skip_silence(window(first, sound(62.5, 72), last_speech=61), THRESHOLD)
    assert not result.skipped and len(result.pieces) == 2


def test_the_first_segment_with_words_decides() -> None:
    assert skip_silence(window(silent(60, 61), made_up(63, 64)), THRESHOLD).skipped


def test_the_seek_moves_however_short_the_silence() -> None:
    assert skip_silence(window(made_up(60.004, 61)), 0.001).seek == 6001


# --- suspects between silences ------------------------------------------------------------------------------------


def test_a_suspect_between_silences_is_dropped_with_all_behind_it() -> None:
    result = skip_silence(window(sound(60, 65), made_up(70, 71), sound(75, 80)), THRESHOLD)
    assert result.pieces == (sound(60, 65),)
    assert (result.seek, result.rules, result.skipped) == (7000, (HALLUCINATION_DROPPED,), False)
    assert result.last_speech == 65


@pytest.mark.parametrize(
    ("suspect", "behind"),
    [
        (made_up(66, 67), sound(75, 80)),  # speech shortly before
        (made_up(67, 68), sound(75, 80)),
        (made_up(70, 73), sound(75, 80)),
        (made_up(70, 74), sound(75, 80)),  # speech shortly behind
        (sound(70, 71), sound(75, 80)),  # no suspect
    ],
)
def test_a_suspect_beside_speech_stays(suspect: TimedPiece, behind: TimedPiece) -> None:
    before = window(sound(60, 65), suspect, behind)
    assert skip_silence(before, THRESHOLD) == before


def test_another_suspect_behind_counts_as_silence() -> None:
    result = skip_silence(window(sound(60, 65), made_up(70, 74), made_up(75, 80)), THRESHOLD)
    assert result.pieces == (sound(60, 65),)


def test_the_end_of_the_window_counts_as_silence() -> None:
    last = made_up(80, 88.5)
    assert skip_silence(window(sound(60, 65), last), THRESHOLD).pieces == (sound(60, 65),)
    # 2.5 s before the end of a whole window, and as much before the end of the audio: enough silence only below that
    late, threshold = made_up(80, 87.5), 2.6
    assert len(skip_silence(window(sound(60, 65), late), threshold).pieces) == 2
    assert len(skip_silence(window(sound(60, 65), late), THRESHOLD).pieces) == 1
    assert len(skip_silence(window(sound(60, 65), made_up(80, 88.0)), threshold).pieces) == 2  # two seconds


def test_the_start_of_the_window_counts_as_silence() -> None:
    result = skip_silence(window(made_up(61, 62), sound(66, 70), last_speech=60.5), THRESHOLD)
    assert (result.pieces, result.seek) == ((), 6100)
    assert result.last_speech == 60.5


def test_the_start_of_the_part_counts_as_silence() -> None:
    """Where the threshold is longer than the edge, so that nothing else would."""
    start = window(made_up(2.5, 3), sound(9, 12), seek=0, last_speech=0)
    assert skip_silence(start, 3.0).rules == (HALLUCINATION_DROPPED,)


def test_at_the_very_edge_a_suspect_stays() -> None:
    for edge in (
        window(made_up(62, 63), sound(70, 72), last_speech=61),
        window(made_up(3, 3.5), sound(9, 12), seek=0, last_speech=0),
    ):
        assert skip_silence(edge, THRESHOLD if edge.place.seek else 3.0) == edge


def test_the_seek_moves_by_a_second_at_least() -> None:
    assert skip_silence(window(made_up(60.2, 61), sound(66, 70)), THRESHOLD).seek == 6100


def test_where_almost_nothing_follows_a_suspect_nothing_is_heard_again() -> None:
    """Two seconds of the part do."""
    late = window(sound(60, 65), made_up(80, 88.5), content=9050)
    assert skip_silence(late, 2.5).seek == 9050
    assert skip_silence(late, 2.0).seek == 8000


def test_segments_without_words_are_passed_over() -> None:
    result = skip_silence(window(sound(60, 65), silent(66, 69), made_up(70, 71), silent(72, 73)), THRESHOLD)
    assert result.pieces == (sound(60, 65), silent(66, 69))


# --- the rest of a window -----------------------------------------------------------------------------------------


def test_the_rest_of_an_unfinished_window_is_heard_again_where_it_is_long() -> None:
    long, short = window(sound(60, 80), finished=False), window(sound(60, 88.5), finished=False)
    assert skip_silence(long, THRESHOLD).seek == 8000
    assert skip_silence(short, THRESHOLD).seek == 9000
    assert skip_silence(window(sound(60, 88), finished=False), THRESHOLD).seek == 9000
    assert skip_silence(window(sound(60, 80)), THRESHOLD).seek == 9000  # nothing follows, says the window


def test_the_rest_counts_to_the_end_of_a_whole_window_but_the_seek_to_that_of_the_audio() -> None:
    short = window(sound(60, 68.5), frames=1000, content=7000, finished=False)
    assert skip_silence(short, 25.0).seek == 7000
    assert skip_silence(short, THRESHOLD).seek == 6850


def test_a_window_without_segments_or_words_stays_as_it_is() -> None:
    for empty in (window(), window(silent(60, 60), finished=False)):
        assert skip_silence(empty, THRESHOLD) == empty
