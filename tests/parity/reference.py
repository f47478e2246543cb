"""openai-whisper on the same weights, with every call it makes remembered.

At temperature 0 a call is a pure function of its window, prompt and language, so its result is kept: the same first
windows come back under every option of `transcribe()`, and the reference need not decode them again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask

from model.checkpoint import Checkpoint


@dataclass
class ReferenceWindow:
    """One window as the reference decoded it: what it saw, and one result for each temperature it tried."""

    mel: Tensor  # (n_mels, 3000)
    options: DecodingOptions  # of the first try
    prompt: tuple[int, ...]
    tries: list[DecodingResult] = field(default_factory=list)


@dataclass
class ReferenceRun:
    """What `transcribe()` returned, and the windows on the way there."""

    language: str
    language_probability: float | None
    segments: list[dict[str, Any]]  # those with text and duration; the others leave no trace in ours
    windows: list[ReferenceWindow]


class Reference(whisper.Whisper):
    """The reference's own net and functions; only remembering is added."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(whisper.ModelDimensions(**asdict(checkpoint.dims)))
        self.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()})
        self.requires_grad_(False).eval()
        self._windows: list[ReferenceWindow] = []
        self._language_probability: float | None = None
        self._decoded: dict[tuple[Any, ...], DecodingResult] = {}
        self._heard: dict[str, Any] = {}

    def run(self, audio: np.ndarray, **options: Any) -> ReferenceRun:
        """`transcribe()` of (n,) float32 samples, with its own defaults but for `options`."""
        self._windows, self._language_probability = [], None
        result = whisper.transcribe(self, audio, fp16=False, **options)
        kept = [s for s in result["segments"] if s["text"].strip() and s["start"] != s["end"]]
        return ReferenceRun(result["language"], self._language_probability, kept, self._windows)

    def decode(self, mel: Tensor, options: DecodingOptions) -> DecodingResult:
        if not self._windows or self._windows[-1].mel is not mel:  # one object while the temperature rises
            prompt = DecodingTask(self, options).initial_tokens
            self._windows.append(ReferenceWindow(mel, options, tuple(prompt)))
        window = self._windows[-1]
        window.tries.append(self._decode(window, options))
        return window.tries[-1]

    def _decode(self, window: ReferenceWindow, options: DecodingOptions) -> DecodingResult:
        if options.temperature > 0:
            return super().decode(window.mel, options)
        key = (_digest(window.mel), window.prompt)
        if key not in self._decoded:
            self._decoded[key] = super().decode(window.mel, options)
        return self._decoded[key]

    def detect_language(self, mel: Tensor, tokenizer: Any = None) -> Any:
        key = _digest(mel)
        if key not in self._heard:
            self._heard[key] = super().detect_language(mel, tokenizer)
        self._language_probability = max(self._heard[key][1].values())
        return self._heard[key]

    def top_two_gap(self, window: ReferenceWindow, prefix: tuple[int, ...]) -> float:
        """By how much the reference prefers its next token after `prefix` to its second choice, under all rules."""
        task = DecodingTask(self, window.options)
        tokens = torch.tensor([[*window.prompt, *prefix]])
        logits = self.logits(tokens, self.encoder(window.mel[None]))[:, -1]
        for rule in task.logit_filters:
            rule.apply(logits, tokens)
        best, second = logits[0].topk(2).values.tolist()
        return best - second


def _digest(mel: Tensor) -> str:
    return hashlib.sha256(mel.contiguous().numpy().tobytes()).hexdigest()
