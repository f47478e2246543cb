"""How a part is decoded: the options that decide the output, and nothing that only decides its speed.

Every field is hashed into the generation (`pipeline.config`), so two tables with one generation were made by the
same rules. Defaults are those of openai/whisper's `transcribe()`; the sources of the numbers are in `rules.py` and
`fallback.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.errors import UsageError
from model.languages import language_code

TASKS = ("transcribe", "translate")
LANGUAGE_WINDOWS = ("reference", "shared")


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
    initial_prompt: str | None = None
    suppress_tokens: tuple[int, ...] = (-1,)  # -1 stands for the non-speech symbols
    suppress_blank: bool = True
    max_initial_timestamp: float | None = 1.0  # seconds
    # A part shorter than a window: the reference identifies the language on the audio followed by silence, but
    # decodes the audio followed by zeros. "reference" encodes both; "shared" saves the second pass and is not exact.
    language_window: str = "reference"
    seed: int = 0  # of the random streams that temperatures above 0 draw from

    def __post_init__(self) -> None:
        if self.language is not None:
            object.__setattr__(self, "language", language_code(self.language))
        _one_of("task", self.task, TASKS)
        _one_of("language_window", self.language_window, LANGUAGE_WINDOWS)
        if not self.temperatures or any(not 0 <= t < math.inf for t in self.temperatures):
            raise UsageError(f"temperatures is {list(self.temperatures)}: give at least one number, none below 0.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}: choose one of {', '.join(allowed)}.")
