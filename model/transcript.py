"""What goes into the engine and what comes out: plain values, no tensors but the log-mel, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """One part to transcribe: log-mel (n_mels, at least 3000) of which `content_frames` are audio.

    speech: spans of log-mel frames [start, end) in which somebody speaks, in order: only these are read. None where
    nobody has looked: all is read.
    """

    part_id: str
    mel: NDArray[np.float32]
    content_frames: int
    speech: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Attempt:
    """One decoding of one window at one temperature, and the evidence to judge it by."""

    tokens: tuple[int, ...]  # without the end-of-text token
    text: str  # stripped
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    reached_limit: bool = False  # stopped by the token limit, not by the end of the text


@dataclass(frozen=True)
class Word:
    """A word with the space before it and the punctuation around it; start and end in seconds from the part's start."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """Start and end in seconds from the start of the part, the text, and every doubt about it."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    attempts: int
    rules_fired: tuple[str, ...]
    language: str | None = None
    language_probability: float | None = None  # None where the language was given, not found
    words: tuple[Word, ...] | None = None  # None where word times were not asked for


@dataclass
class Transcript:
    """All that came out of one part. The counts tell how hard it was."""

    part_id: str
    language: str | None = None
    language_probability: float | None = None  # None where the language was given, not found
    segments: list[Segment] = field(default_factory=list)
    windows: int = 0
    windows_retried: int = 0
    windows_skipped: int = 0
    tokens: int = 0  # sampled, rejected attempts included
