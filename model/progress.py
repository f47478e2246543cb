"""One part on its way through the windows: the seek, the prompt and the segments so far (the sequential algorithm).

It decides what the next window is and what an accepted attempt does to the part. It knows nothing of slots, batches,
tensors or the net, so every rule of the sequence can be tested with hand-written tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model import fallback
from model.dimensions import FRAMES_PER_SECOND, WINDOW_FRAMES, Dimensions
from model.hallucination import skip_silence
from model.options import DecodeOptions
from model.prompts import hotword_tokens, prompt_tokens
from model.segments import WindowCut, cut_window
from model.timeline import Timeline
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Segment, Transcript, Word
from model.words import TimedPiece, TimedWindow, WindowPlace, WordTiming, text_tokens, time_window

PROMPT_RESET = "prompt_reset"  # the text up to here is not shown to the next window
TOKEN_LIMIT = "token_limit"  # the window filled its token budget before it ended
SHORT_TAIL_SKIPPED = "short_tail_skipped"  # what is left of the part's speech is too short to be heard

# What is not worth a window behind the last timestamp of a part whose end is known to be that of its speech: the margin
# of 0.2 s that the detector leaves there (`pipeline.voice`), and less than a syllable.
TAIL_FRAMES = round(0.5 * FRAMES_PER_SECOND)


@dataclass
class PartProgress:
    """State of one part between windows. `hear_language` comes before the first `prompt()`, where it is unknown.

    Where it is known who speaks when, the silence is cut out first: all frames here count what is left, and only the
    times of segments and words are those of the part again.
    """

    part: Part
    options: DecodeOptions
    tokenizer: Tokenizer
    dims: Dimensions
    seek: int = 0  # log-mel frames
    context: list[int] = field(default_factory=list)  # all text so far, as tokens
    context_start: int = 0  # what lies before is not shown to the model any more
    last_speech: float = 0.0  # seconds: where the last word so far ends
    language: str | None = field(init=False)  # of the next window; None until it is heard
    language_probability: float | None = field(init=False, default=None)  # None where it was given
    transcript: Transcript = field(init=False)
    _heard: Counter[str] = field(default_factory=Counter)  # frames in which each language was heard

    def __post_init__(self) -> None:
        self.language = self.options.language if self.dims.is_multilingual else "en"
        self.transcript = Transcript(self.part.part_id, self.language)
        if self.options.initial_prompt is not None:
            self.context = self.tokenizer.encode(" " + self.options.initial_prompt.strip())
        self._hotwords = hotword_tokens(self.options.hotwords, self.tokenizer, self.dims)
        speech = self.part.speech
        self._timeline = Timeline(((0, self.part.content_frames),) if speech is None else speech)
        self.mel = self.part.mel if speech is None else self._timeline.join(self.part.mel)

    # --- the next window ------------------------------------------------------------------------------------------

    @property
    def content_frames(self) -> int:
        """Log-mel frames of audio in `mel` (n_mels, frames)."""
        return self._timeline.frames

    @property
    def remaining_frames(self) -> int:
        return self.content_frames - self.seek

    @property
    def window_frames(self) -> int:
        """Frames of audio in the next window: 3000, or what is left."""
        return min(WINDOW_FRAMES, self.remaining_frames)

    def hear_language(self, language: str, probability: float) -> None:
        """Take the language of the part, or of the next window where each finds its own."""
        self.language, self.language_probability = language, probability

    def prompt(self) -> list[int]:
        """Tokens the decoder starts from; see `model.prompts`."""
        before = self.context[self.context_start :]
        return prompt_tokens(self._hotwords, before, self.start_symbols(), self.tokenizer, self.dims)

    def start_symbols(self) -> tuple[int, ...]:
        """`[sot, language, task]`."""
        return tuple(self.tokenizer.sot_sequence(self.language, self.options.task))

    # --- the window that was read ---------------------------------------------------------------------------------

    def text_of(self, attempt: Attempt) -> tuple[int, ...]:
        """Tokens of the window's text that words are to be found in; none where it is taken for silence."""
        if fallback.is_silence(attempt, self.options):
            return ()
        return text_tokens(self._cut(attempt).pieces, self.tokenizer.eot)

    def accept(
        self,
        attempt: Attempt,
        attempts: int,
        rules_fired: tuple[str, ...],
        timings: Sequence[WordTiming] | None = None,
    ) -> None:
        """Take the window's final attempt: emit its segments or skip it as silence, and advance the seek.

        rules_fired: names of the rules that rejected the attempts before this one. timings: the words of
        `text_of(attempt)`, where times were asked for.
        """
        self.transcript.windows += 1
        self.transcript.windows_retried += attempts > 1
        self._count_language()
        if fallback.is_silence(attempt, self.options):
            self.transcript.windows_skipped += 1
            self.seek += self.window_frames
            return
        cut = self._cut(attempt)
        window = self._timed(attempt, cut, timings)
        self.last_speech = window.last_speech
        if window.rules and not window.pieces:  # all of it was made up in silence
            self.transcript.windows_skipped += 1
        tail = () if window.skipped or not self._ends_in_tail(window, cut) else (SHORT_TAIL_SKIPPED,)
        if not window.skipped:
            self._keep(window, attempt, attempts, (*rules_fired, *self._fired(attempt, cut), *window.rules, *tail))
        self.seek = self.content_frames if tail else window.seek

    def _cut(self, attempt: Attempt) -> WindowCut:
        return cut_window(attempt.tokens, self.tokenizer.timestamp_begin, self.window_frames, self.dims)

    def _timed(self, attempt: Attempt, cut: WindowCut, timings: Sequence[WordTiming] | None) -> TimedWindow:
        """The segments of the window in seconds of the part, fitted to their words if there are any."""
        place = WindowPlace(self.seek, self.window_frames, self.content_frames, self.last_speech)
        if timings is None:
            offset = place.offset
            pieces = [TimedPiece(offset + piece.start, offset + piece.end, piece.tokens, ()) for piece in cut.pieces]
            return TimedWindow(place, tuple(pieces), self.seek + cut.advance, is_finished=True)
        timed = time_window(attempt.tokens, cut, timings, place, self.tokenizer)
        threshold = self.options.hallucination_silence
        return timed if threshold is None else skip_silence(timed, threshold)

    def _fired(self, attempt: Attempt, cut: WindowCut) -> list[str]:
        fired = list(fallback.doubts(attempt, self.options))
        fired += [cut.rule] if cut.rule else []
        fired += [TOKEN_LIMIT] if attempt.reached_limit else []
        return fired + ([PROMPT_RESET] if fallback.resets_prompt(attempt) else [])

    def _keep(self, window: TimedWindow, attempt: Attempt, attempts: int, fired: tuple[str, ...]) -> None:
        for piece in window.pieces:
            self._emit(piece, attempt, attempts, tuple(dict.fromkeys(fired)))
        if PROMPT_RESET in fired or not self.options.previous_text:
            self.context_start = len(self.context)

    def _emit(self, piece: TimedPiece, attempt: Attempt, attempts: int, rules_fired: tuple[str, ...]) -> None:
        """Keep a segment and its tokens as context; one without duration or text leaves no trace."""
        text = self.tokenizer.decode([token for token in piece.tokens if token < self.tokenizer.eot])
        if piece.start == piece.end or not text.strip():
            return
        self.context.extend(piece.tokens)
        segment = Segment(
            start=self._timeline.start(piece.start),
            end=self._timeline.end(piece.end),
            text=text,
            tokens=piece.tokens,
            temperature=attempt.temperature,
            avg_logprob=attempt.avg_logprob,
            compression_ratio=attempt.compression_ratio,
            no_speech_prob=attempt.no_speech_prob,
            attempts=attempts,
            rules_fired=rules_fired,
            language=self.language,
            language_probability=self.language_probability,
            words=tuple(map(self._placed, piece.words)) if self.options.word_timestamps else None,
        )
        self.transcript.segments.append(segment)

    def _count_language(self) -> None:
        """The language of a part is that in which most of it was heard."""
        if self.language is None:
            return
        self._heard[self.language] += self.window_frames
        most = max(self._heard, key=lambda language: self._heard[language])
        if most == self.language:
            self.transcript.language, self.transcript.language_probability = most, self.language_probability

    def _ends_in_tail(self, window: TimedWindow, cut: WindowCut) -> bool:
        """Whether a timestamp ends the text, and what is left of the speech behind it is not worth a window.

        Text behind the last timestamp is dropped to be heard again, and so it is, however short.
        """
        left = self.content_frames - window.seek
        return self.part.speech is not None and cut.rule is None and 0 < left <= TAIL_FRAMES and window.seek > self.seek

    def _placed(self, word: Word) -> Word:
        return replace(word, start=self._timeline.start(word.start), end=self._timeline.end(word.end))
