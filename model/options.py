"""How a part is decoded: the options that decide the output, and nothing that only decides its speed.

Every field is hashed into the generation (`pipeline.config`), so two tables with one generation were made by the
same rules. The thresholds are those of openai/whisper's `transcribe()`, their sources in `rules.py` and `fallback.py`;
where a default leaves the reference, `DecodeOptions.exact` goes back to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from model.beam import candidates_wanted
from model.dimensions import WINDOW_SECONDS
from model.errors import UsageError
from model.languages import language_code

TASKS = ("transcribe", "translate")
LANGUAGE_WINDOWS = ("reference", "shared")

# Where we can do other than openai/whisper, by default or on request, and the value by which we do the same.
EXACT: dict[str, Any] = {
    "hotwords": None,
    "language_windows": 1,
    "language_per_window": False,
    "language_window": "reference",
    "context_margin": None,
    "stop_loops": False,
}


@dataclass(frozen=True)
class DecodeOptions:
    """Options of one decoding, valid for every part of a run.

    Raises: `UsageError` when a value is not allowed; the sentence names the value and what is.
    """

    language: str | None = None  # a code of `languages.py`; None finds it on the first window of each part
    task: str = "transcribe"
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    avg_logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    previous_text: bool = True  # prompt each window with the text before it
    initial_prompt: str | None = None  # stands before the first window of a part
    hotwords: str | None = None  # stand before every window: names and terms that are likely
    beam_size: int = 1  # candidates kept at temperature 0; 1 is greedy
    patience: float = 1.0  # beam search ends when beam_size × patience candidates have
    length_penalty: float | None = None  # alpha of Wu et al. 2016, equation 14; None divides by the length
    best_of: int = 1  # candidates sampled above temperature 0, of which the likeliest is kept
    suppress_tokens: tuple[int, ...] = (-1,)  # -1 stands for the non-speech symbols
    suppress_blank: bool = True
    max_initial_timestamp: float | None = 1.0  # seconds
    language_windows: int = 1  # windows of speech that vote on the language of a part
    language_per_window: bool = False  # for recordings that switch: each window finds its own
    # A part shorter than a window: the reference identifies the language on the audio followed by silence, but
    # decodes the audio followed by zeros. "reference" encodes both; "shared" saves the second pass and is not exact.
    language_window: str = "shared"
    # Seconds the encoder reads behind the end of the audio, once the language is known; None: always all 30. Windows
    # with less audio than `context_from` (seconds) are read whole: short clips come out worse for it.
    context_margin: float | None = 2.0
    context_from: float = 10.0
    stop_loops: bool = True  # end an attempt that repeats itself as soon as it does, instead of after 224 tokens
    word_timestamps: bool = False
    hallucination_silence: float | None = None  # seconds of silence around text that make it suspect; needs word times
    seed: int = 0  # of the random streams that temperatures above 0 draw from

    def __post_init__(self) -> None:
        if self.language is not None:
            object.__setattr__(self, "language", language_code(self.language))
        _one_of("task", self.task, TASKS)
        _one_of("language_window", self.language_window, LANGUAGE_WINDOWS)
        if not self.temperatures or any(not 0 <= t < math.inf for t in self.temperatures):
            raise UsageError(f"temperatures is {list(self.temperatures)}: give at least one number, none below 0.")
        for name in ("beam_size", "best_of", "language_windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give at least 1.")
        self._check_prompt_and_window()
        self._check_candidates()
        self._check_language()

    @classmethod
    def exact(cls, **options: Any) -> DecodeOptions:
        """Options by which a part comes out token for token as openai/whisper would have it, in float32.

        Raises: `UsageError` when one of `options` leads away from that.
        """
        exact = cls(**EXACT | options)
        for name, value in EXACT.items():
            require_exact(name, getattr(exact, name), value)
        return exact

    def _check_prompt_and_window(self) -> None:
        if self.hotwords is not None and not self.hotwords.strip():
            raise UsageError("hotwords is blank: give names and terms, or leave it out.")
        margin, silence = self.context_margin, self.hallucination_silence
        if margin is not None and not 0 <= margin <= WINDOW_SECONDS:
            raise UsageError(f"context_margin is {margin:g}: give 0 to {WINDOW_SECONDS} seconds, or leave it out.")
        if not 0 <= self.context_from <= WINDOW_SECONDS:
            raise UsageError(f"context_from is {self.context_from:g}: give 0 to {WINDOW_SECONDS} seconds.")
        if silence is not None and not 0 < silence < math.inf:
            raise UsageError(f"hallucination_silence is {silence:g}: give seconds above 0, or leave it out.")
        if silence is not None and not self.word_timestamps:
            raise UsageError("hallucination_silence is measured between words: set word_timestamps, or leave it out.")

    def _check_candidates(self) -> None:
        if self.beam_size > 1 and 0 not in self.temperatures:
            raise UsageError(f"beam_size is {self.beam_size}, but no temperature is 0: add 0, or leave it out.")
        if self.best_of > 1 and not any(self.temperatures):
            raise UsageError(f"best_of is {self.best_of}, but no temperature is above 0: add one, or leave it out.")
        if not 0 < self.patience < math.inf:
            raise UsageError(f"patience is {self.patience:g}: give a number above 0.")
        if self.patience != 1 and self.beam_size == 1:
            raise UsageError(f"patience is {self.patience:g}, but there is no beam: give a beam_size above 1.")
        candidates_wanted(self.beam_size, self.patience)
        penalty = self.length_penalty
        if penalty is not None and not 0 <= penalty <= 1:
            raise UsageError(f"length_penalty is {penalty:g}: give 0 to 1, or leave it out to divide by the length.")
        if penalty is not None and self.beam_size == self.best_of == 1:
            raise UsageError(
                f"length_penalty is {penalty:g}, but there is one candidate: give beam_size or best_of above 1."
            )

    def _check_language(self) -> None:
        asked = [f"language_windows = {self.language_windows}"] if self.language_windows > 1 else []
        asked += ["language_per_window"] if self.language_per_window else []
        asked += [f"language = {self.language!r}"] if self.language is not None else []
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} say different things about the language: leave all but one out.")


def require_exact(name: str, value: object, exact: object) -> None:
    """Refuse an option whose `value` is not the one by which we do as openai/whisper does."""
    if value != exact:
        raise UsageError(
            f"{name} is {value!r}, with which the output is not openai/whisper's: leave it out, or leave out exact."
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}: choose one of {', '.join(allowed)}.")
