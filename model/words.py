"""Words of a window and when they were said: splitting, punctuation, and the segments and seek that follow from them.

Pure functions of tokens and seconds, as openai/whisper's `timing.py` and `transcribe.py` (v20250625) have them; that
includes their order, since one sees the times that the one before it changed. They know no tensors and no part.

One window, from acceptance to segments. In the engine, while the window's slot still holds what was heard:

    cut = cut_window(attempt.tokens, ...)                                  # model.segments
    text = SpokenText(start_sequence, text_tokens(cut.pieces, eot), window_frames, language)
    timings = aligner.align(cache, reach, [text, ...])                     # model.alignment; all that ended this turn

then in the part's progress, instead of emitting `cut.pieces` and advancing by `cut.advance`:

    place = WindowPlace(seek, window_frames, content_frames, last_speech)
    timed = time_window(attempt.tokens, cut, timings, place, tokenizer)
    if options.hallucination_silence is not None:
        timed = skip_silence(timed, options.hallucination_silence)         # model.hallucination
    seek, last_speech = timed.seek, timed.last_speech
    rules_fired += timed.rules
    if timed.skipped: no segment, no new context and no prompt reset: the rest of the window is heard again
    else: emit timed.pieces, leaving out those without duration or text; then reset the prompt where that is due
"""

from __future__ import annotations

import codecs
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from model.dimensions import FRAMES_PER_SECOND, WINDOW_FRAMES
from model.languages import UNSPACED
from model.segments import Piece, WindowCut
from model.tokenizer import Tokenizer
from model.transcript import Word

Split = list[tuple[str, tuple[int, ...]]]  # each word, and the tokens it is written with

NO_CHARACTER = "\ufffd"  # what bytes that form no character decode to

# Of each string, any run of characters counts, as in openai/whisper: "?" and ".。", but not "...".
OPENING_MARKS = "\"'“¿([{-"  # belong to the word behind them, where a space stands in front
CLOSING_MARKS = "\"'.。,，!！?？:：”)]}、"  # belong to the word before them
SENTENCE_ENDS = ".。!！?？"

# Sources of all: openai/whisper, timing.py, `add_word_timestamps`.
MOST_TYPICAL = 0.7  # seconds: the median duration of a window's words counts for no more
TOO_LONG = 2  # typical durations: what is longer swallowed a pause
PAUSE = 4  # typical durations between the last speech and the end of a word: there was a pause before it
SEGMENT_SLACK = 0.5  # seconds by which a word may lie outside its segment before the segment is believed


@dataclass(frozen=True)
class WordTiming:
    """A word, its tokens and its probability; start and end in seconds from the start of the window."""

    word: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class WindowPlace:
    """Where a window lies in its part: all in log-mel frames, but for the end of the last speech, in seconds."""

    seek: int
    frames: int  # of audio in the window, at most 3000
    content_frames: int  # of audio in the part
    last_speech: float  # where the last word before the window ended; 0 at the start of a part

    @property
    def offset(self) -> float:
        """Seconds from the start of the part to that of the window."""
        return self.seek / FRAMES_PER_SECOND

    @property
    def window_end(self) -> float:
        """Seconds from the start of the part to the end of a whole window, audio or not."""
        return (self.seek + WINDOW_FRAMES) / FRAMES_PER_SECOND


@dataclass(frozen=True)
class TimedPiece:
    """A segment and its words, all in seconds from the start of the part."""

    start: float
    end: float
    tokens: tuple[int, ...]  # timestamps included
    words: tuple[Word, ...]


@dataclass(frozen=True)
class TimedWindow:
    """A window's segments with their words, and the seek that follows."""

    place: WindowPlace
    pieces: tuple[TimedPiece, ...]
    seek: int  # log-mel frames from the start of the part
    is_finished: bool  # nothing is said behind the last segment: a single timestamp ends the window
    rules: tuple[str, ...] = ()  # names of the rules of `model.hallucination` that fired
    skipped: bool = False  # nothing of it counts; what follows the silence at its start is heard again

    @property
    def speech_end(self) -> float | None:
        """Where its last word ends; without words, where its last segment does; without segments, None."""
        ends = [word.end for piece in self.pieces for word in piece.words]
        return ends[-1] if ends else self.pieces[-1].end if self.pieces else None

    @property
    def last_speech(self) -> float:
        """Where the last word so far ends, which is `WindowPlace.last_speech` of the next window."""
        return self.place.last_speech if self.speech_end is None else self.speech_end


def text_tokens(pieces: Sequence[Piece], eot: int) -> tuple[int, ...]:
    """The tokens of all segments of a window without timestamps: what is aligned."""
    return tuple(token for piece in pieces for token in piece.tokens if token < eot)


# Splitting


def split_words(tokens: Sequence[int], tokenizer: Tokenizer, language: str | None) -> Split:
    """Words of a text with their tokens: from each space or mark on, or in `UNSPACED` as few tokens as form characters.

    language: a code of `model.languages`; None where the model knows one only.
    """
    characters = _split_characters(tokens, tokenizer)
    return characters if language in UNSPACED else _join_spaced(characters)


def _split_characters(tokens: Sequence[int], tokenizer: Tokenizer) -> Split:
    """Group tokens until they form whole characters; U+FFFD is one only where the whole text has it as well.

    Bytes that never form one make a group of their own; the reference loses what follows, or fails (on the end of
    the text: SYSTRAN/faster-whisper, pull request 111).
    """
    text = tokenizer.decode(tokens)
    split: Split = []
    start = 0
    for end in range(1, len(tokens) + 1):
        group = tuple(tokens[start:end])
        decoded = tokenizer.decode(group)
        broken = decoded.find(NO_CHARACTER)
        if broken >= 0 and end < len(tokens):
            place = len(tokenizer.decode(tokens[:start])) + broken
            if not text[place:].startswith(NO_CHARACTER) and _may_go_on(tokenizer.encoding.decode_bytes(group)):
                continue
        split.append((decoded, group))
        start = end
    return split


def _may_go_on(data: bytes) -> bool:
    """Whether more bytes could still make `data` valid."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _join_spaced(characters: Split) -> Split:
    words: Split = []
    for text, tokens in characters:
        begins_word = text.startswith(" ") or text.strip() in string.punctuation
        if begins_word or not words:
            words.append((text, tokens))
        else:
            word, so_far = words[-1]
            words[-1] = (word + text, so_far + tokens)
    return words


def merge_punctuation(timings: Sequence[WordTiming]) -> list[WordTiming]:
    """Join marks to the words they belong to, which keep their times and probability."""
    backwards: list[WordTiming] = []
    for timing in reversed(timings):
        if backwards and timing.word.startswith(" ") and timing.word.strip() in OPENING_MARKS:
            word = backwards[-1]
            backwards[-1] = replace(word, word=timing.word + word.word, tokens=timing.tokens + word.tokens)
        else:
            backwards.append(timing)
    merged: list[WordTiming] = []
    for timing in reversed(backwards):
        if merged and not merged[-1].word.endswith(" ") and timing.word in CLOSING_MARKS:
            word = merged[-1]
            merged[-1] = replace(word, word=word.word + timing.word, tokens=word.tokens + timing.tokens)
        else:
            merged.append(timing)
    return merged


# Durations


@dataclass(frozen=True)
class Pace:
    """How long the words of a window take, in seconds; no word was heard where `typical` is 0."""

    typical: float

    @classmethod
    def of(cls, timings: Sequence[WordTiming]) -> Pace:
        durations = [timing.duration for timing in timings if timing.duration]
        return cls(min(MOST_TYPICAL, median(durations)) if durations else 0.0)

    @property
    def longest(self) -> float:
        return self.typical * TOO_LONG


def shorten_at_sentences(timings: Sequence[WordTiming], pace: Pace) -> list[WordTiming]:
    """Take the pause between sentences from both: a mark that takes too long ends early, a word behind one starts late.

    The first word of the window has none before it, and stays.
    """
    shortened = list(timings[:1])
    for before, timing in pairwise(timings):
        if pace.typical and timing.duration > pace.longest:
            if timing.word in SENTENCE_ENDS:
                timing = replace(timing, end=timing.start + pace.longest)
            elif before.word in SENTENCE_ENDS:
                timing = replace(timing, start=timing.end - pace.longest)
        shortened.append(timing)
    return shortened


# Segments


def time_window(
    tokens: Sequence[int], cut: WindowCut, timings: Sequence[WordTiming], place: WindowPlace, tokenizer: Tokenizer
) -> TimedWindow:
    """Give the segments of a window their words, fit both to each other, and move the seek to the end of the words.

    tokens: all that were sampled in the window, from which `cut` was made. timings: of `text_tokens(cut.pieces)`.
    """
    pace = Pace.of(timings)
    words = merge_punctuation(shorten_at_sentences(timings, pace))
    shares = _share_out(words, [len(text_tokens([piece], tokenizer.eot)) for piece in cut.pieces])
    pieces: list[TimedPiece] = []
    last_speech = place.last_speech
    for piece, share in zip(cut.pieces, shares, strict=True):
        timed = _time_piece(piece, share, place.offset, last_speech, pace)
        last_speech = timed.end if timed.words else last_speech
        pieces.append(timed)
    is_finished = [token >= tokenizer.timestamp_begin for token in tokens[-2:]] == [False, True]
    window = TimedWindow(place, tuple(pieces), place.seek + cut.advance, is_finished)
    end = window.speech_end
    if not is_finished and end is not None and end > place.offset:
        return replace(window, seek=round(end * FRAMES_PER_SECOND))
    return window


def _share_out(words: Sequence[WordTiming], counts: Sequence[int]) -> list[list[WordTiming]]:
    """The words of each segment: as many as it takes to use up its count of tokens."""
    shares: list[list[WordTiming]] = []
    rest = iter(words)
    for count in counts:
        share: list[WordTiming] = []
        while count > 0 and (word := next(rest, None)) is not None:
            share.append(word)
            count -= len(word.tokens)
        shares.append(share)
    return shares


def _time_piece(
    piece: Piece, timings: Sequence[WordTiming], offset: float, last_speech: float, pace: Pace
) -> TimedPiece:
    start, end = offset + piece.start, offset + piece.end
    words = [
        Word(timing.word, round(offset + timing.start, 2), round(offset + timing.end, 2), timing.probability)
        for timing in timings
    ]
    if words:
        _shorten_after_pause(words, last_speech, pace)
        start, end = _fit(start, end, words, pace)
    return TimedPiece(start, end, piece.tokens, tuple(words))


def _shorten_after_pause(words: list[Word], last_speech: float, pace: Pace) -> None:
    """Take the pause before a segment from its first word, and from the second if that took part of it."""
    first, second = words[0], words[1] if len(words) > 1 else None
    is_long = first.end - first.start > pace.longest
    are_long = second is not None and second.end - first.start > 2 * pace.longest
    if first.end - last_speech <= PAUSE * pace.typical or not (is_long or are_long):
        return
    if second is not None and second.end - second.start > pace.longest:
        # Half of a time since the start of the part means nothing, but in its first moments the reference goes by it.
        boundary = max(second.end / 2, second.end - pace.longest)
        first, words[1] = replace(first, end=boundary), replace(second, start=boundary)
    words[0] = replace(first, start=max(0.0, first.end - pace.longest))


def _fit(start: float, end: float, words: list[Word], pace: Pace) -> tuple[float, float]:
    """The segment takes its words' times, unless a word at its edge lies far outside: then that word is cut."""
    first = words[0]
    if first.start < start - SEGMENT_SLACK and start < first.end:
        words[0] = replace(first, start=max(0.0, min(first.end - pace.typical, start)))
    else:
        start = first.start
    last = words[-1]
    if last.start < end and end + SEGMENT_SLACK < last.end:
        words[-1] = replace(last, end=max(last.start + pace.typical, end))
    else:
        end = last.end
    return start, end
