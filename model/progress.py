"""One part on its way through the windows: the seek, the prompt and the segments so far (the sequential algorithm).

It decides what the next window is and what an accepted attempt does to the part. It knows nothing of slots, batches,
tensors or the net, so every rule of the sequence can be tested with hand-written tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model import fallback
from model.dimensions import HOP_LENGTH, SAMPLE_RATE, WINDOW_FRAMES, Dimensions
from model.options import DecodeOptions
from model.segments import Piece, cut_window
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Segment, Transcript

PROMPT_RESET = "prompt_reset"  # the text up to here is not shown to the next window
TOKEN_LIMIT = "token_limit"  # the window filled its token budget before it ended


@dataclass
class PartProgress:
    """State of one part between windows. `language` must be set before the first `prompt()`."""

    part: Part
    options: DecodeOptions
    tokenizer: Tokenizer
    dims: Dimensions
    seek: int = 0  # log-mel frames
    context: list[int] = field(default_factory=list)  # all text so far, as tokens
    context_start: int = 0  # what lies before is not shown to the model any more
    transcript: Transcript = field(init=False)

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.part.part_id, self.options.language)
        if not self.dims.is_multilingual:
            self.transcript.language = "en"
        if self.options.initial_prompt is not None:
            self.context = self.tokenizer.encode(" " + self.options.initial_prompt.strip())

    @property
    def remaining_frames(self) -> int:
        return self.part.content_frames - self.seek

    @property
    def window_frames(self) -> int:
        """Frames of audio in the next window: 3000, or what is left."""
        return min(WINDOW_FRAMES, self.remaining_frames)

    def prompt(self) -> list[int]:
        """Tokens the decoder starts from: `[prev] + last 223 of the text before + [sot, language, task]`."""
        start = list(self.tokenizer.sot_sequence(self.transcript.language, self.options.task))
        shown = self.context[self.context_start :][-(self.dims.n_text_ctx // 2 - 1) :]
        return [self.tokenizer.sot_prev, *shown, *start] if shown else start

    def accept(self, attempt: Attempt, attempts: int, rules_fired: tuple[str, ...]) -> None:
        """Take the window's final attempt: emit its segments or skip it as silence, and advance the seek.

        rules_fired: names of the rules that rejected the attempts before this one.
        """
        self.transcript.windows += 1
        self.transcript.windows_retried += attempts > 1
        if fallback.is_silence(attempt, self.options):
            self.transcript.windows_skipped += 1
            self.seek += self.window_frames
            return
        cut = cut_window(attempt.tokens, self.tokenizer.timestamp_begin, self.window_frames, self.dims)
        fired = [*rules_fired, *fallback.doubts(attempt, self.options)]
        fired += [cut.rule] if cut.rule else []
        fired += [TOKEN_LIMIT] if attempt.reached_limit else []
        resets = fallback.resets_prompt(attempt)
        fired += [PROMPT_RESET] if resets else []
        for piece in cut.pieces:
            self._emit(piece, attempt, attempts, tuple(dict.fromkeys(fired)))
        if resets or not self.options.previous_text:
            self.context_start = len(self.context)
        self.seek += cut.advance

    def _emit(self, piece: Piece, attempt: Attempt, attempts: int, rules_fired: tuple[str, ...]) -> None:
        """Keep a segment and its tokens as context; one without duration or text leaves no trace."""
        text = self.tokenizer.decode([token for token in piece.tokens if token < self.tokenizer.eot])
        offset = self.seek * HOP_LENGTH / SAMPLE_RATE
        start, end = offset + piece.start, offset + piece.end
        if start == end or not text.strip():
            return
        self.context.extend(piece.tokens)
        segment = Segment(
            start=start,
            end=end,
            text=text,
            tokens=piece.tokens,
            temperature=attempt.temperature,
            avg_logprob=attempt.avg_logprob,
            compression_ratio=attempt.compression_ratio,
            no_speech_prob=attempt.no_speech_prob,
            attempts=attempts,
            rules_fired=rules_fired,
        )
        self.transcript.segments.append(segment)
