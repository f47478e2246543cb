"""Text that was made up in silence: what gives it away, and what is done about it.

A model trained on subtitles writes "Thanks for watching" where nobody speaks. Its words then fit the audio badly: too
short, too long or improbable; and around them is silence, or more of the kind. Pure functions of words and seconds,
which know no audio. Sources of all numbers: openai/whisper, transcribe.py (v20250625), the option
`hallucination_silence_threshold`, which its pull request 1838 explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from model.dimensions import FRAMES_PER_SECOND
from model.transcript import Word
from model.words import CLOSING_MARKS, OPENING_MARKS, TimedPiece, TimedWindow

# What was done to a window, kept in `rules_fired`.
LEADING_SILENCE_SKIPPED = "leading_silence_skipped"  # it begins with silence and a suspect: heard again from behind it
HALLUCINATION_DROPPED = "hallucination_dropped"  # a suspect in silence, and all behind it, were dropped

IMPROBABLE = 0.15  # a word less probable counts 1
SHORTEST = 0.133  # seconds: a shorter word counts
SHORT_WEIGHT = 15  # for every second that it is shorter
LONGEST = 2.0  # seconds: a longer word counts 1 for every second that it is longer
WORDS_JUDGED = 8  # of a segment, from its start
SUSPECT_SCORE = 3.0  # of these words together
SUSPECT_SLACK = 0.01  # or as much as one for each of them, but for rounding
EDGE = 2.0  # seconds: a segment this close to the start or end of the window counts as beside silence
LEAST_ADVANCE = 1.0  # seconds by which the seek moves when a suspect is dropped

_PUNCTUATION = OPENING_MARKS + CLOSING_MARKS


def word_anomaly(word: Word) -> float:
    """How badly a word fits the audio: 0 for one that is probable and of usual length."""
    duration = word.end - word.start
    improbable = 1.0 if word.probability < IMPROBABLE else 0.0
    return improbable + max(0.0, SHORTEST - duration) * SHORT_WEIGHT + max(0.0, duration - LONGEST)


def is_suspect(words: Sequence[Word]) -> bool:
    """Whether the words of a segment, punctuation aside, look made up; a segment without words does not."""
    judged = [word for word in words if word.word not in _PUNCTUATION][:WORDS_JUDGED]
    score = sum(word_anomaly(word) for word in judged)
    return bool(words) and (score >= SUSPECT_SCORE or score + SUSPECT_SLACK >= len(judged))


def skip_silence(timed: TimedWindow, threshold: float) -> TimedWindow:
    """Drop the segments of a window that look made up in silence, and seek to behind the silence.

    threshold: seconds without words that count as silence.
    """
    timed = _seek_past_rest(timed, threshold)
    worded = [piece for piece in timed.pieces if piece.words]
    if not worded:
        return timed
    gap = worded[0].start - timed.place.offset
    if is_suspect(worded[0].words) and gap > threshold:
        frames = max(1, round(gap * FRAMES_PER_SECOND))  # half a frame must not make it hear the same for ever
        return replace(timed, pieces=(), seek=timed.place.seek + frames, rules=(LEADING_SILENCE_SKIPPED,), skipped=True)
    return _drop_suspects(timed, threshold)


def _seek_past_rest(timed: TimedWindow, threshold: float) -> TimedWindow:
    """Hear the rest of the window again only where it is long enough to be silence; else go to its end."""
    place, end = timed.place, timed.speech_end
    if timed.is_finished or end is None or end <= place.offset:
        return timed
    if place.window_end - end > threshold:
        return replace(timed, seek=round(end * FRAMES_PER_SECOND))
    return replace(timed, seek=place.seek + place.frames)


def _drop_suspects(timed: TimedWindow, threshold: float) -> TimedWindow:
    """Drop everything from the first suspect on that has silence, an edge of the window or a suspect on both sides."""
    place = timed.place
    before = place.last_speech
    for index, piece in enumerate(timed.pieces):
        if not piece.words:
            continue
        following = next((later for later in timed.pieces[index + 1 :] if later.words), None)
        if is_suspect(piece.words) and _is_alone(timed, piece, before, following, threshold):
            seek = round(max(place.offset + LEAST_ADVANCE, piece.start) * FRAMES_PER_SECOND)
            if place.content_frames / FRAMES_PER_SECOND - piece.end < threshold:
                seek = place.content_frames  # nothing worth hearing follows
            return replace(timed, pieces=timed.pieces[:index], seek=seek, rules=(HALLUCINATION_DROPPED,))
        before = piece.end
    return timed


def _is_alone(
    timed: TimedWindow, piece: TimedPiece, before: float, following: TimedPiece | None, threshold: float
) -> bool:
    """Whether a suspect has silence, or what counts as it, on both sides; `before`: where speech ended, in seconds."""
    offset = timed.place.offset
    silence_before = piece.start - before > threshold or piece.start < threshold or piece.start - offset < EDGE
    next_start = following.words[0].start if following else offset + timed.place.frames / FRAMES_PER_SECOND
    silence_behind = (
        next_start - piece.end > threshold
        or (following is not None and is_suspect(following.words))
        or timed.place.window_end - piece.end < EDGE
    )
    return silence_before and silence_behind
