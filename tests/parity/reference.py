"""openai-whisper on the same weights, with every window it decodes recorded in the project's words.

At temperature 0 a result depends on the window, the prompt and the options of decoding alone, so it is kept: the same
first windows come back under every option of `transcribe()`, and need not be decoded again. No window is encoded twice.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from whisper.tokenizer import get_tokenizer

from model.checkpoint import Checkpoint
from model.transcript import Attempt, Segment
from tests.parity.comparison import Window


@dataclass
class ReferenceRun:
    """What `transcribe()` returned for one part, and the windows on the way there."""

    language: str | None = None
    language_probability: float | None = None
    segments: list[Segment] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)


class Reference(whisper.Whisper):
    """The reference's own net and functions; only remembering is added."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(whisper.ModelDimensions(**asdict(checkpoint.dims)))
        self.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()})
        self.requires_grad_(False).eval()
        self.encoder = _RememberingEncoder(self.encoder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the vocabulary's file is left to the garbage collector
            get_tokenizer(self.is_multilingual, num_languages=self.num_languages)  # read once, then kept
        self._run = ReferenceRun()
        self._window: Tensor | None = None
        self._decoded: dict[tuple[Any, ...], DecodingResult] = {}
        self._heard: dict[str, Any] = {}

    def run(self, audio: NDArray[np.float32], **options: Any) -> ReferenceRun:
        """`transcribe()` of (n,) samples, with its own defaults but for `options`."""
        self._run, self._window = ReferenceRun(), None
        result = whisper.transcribe(self, audio, fp16=False, **options)
        self._run.language = result["language"]
        # What the reference clears of its text, and keeps as an empty segment, leaves no trace in ours.
        kept = [s for s in result["segments"] if s["text"].strip() and s["start"] != s["end"]]
        self._run.segments = [_segment(segment) for segment in kept]
        return self._run

    def decode(self, mel: Tensor, options: DecodingOptions) -> DecodingResult:
        if mel is not self._window:  # one object while the temperature rises
            self._window = mel
            prompt = tuple(DecodingTask(self, options).initial_tokens)
            self._run.windows.append(Window(mel.numpy(), prompt))
        window = self._run.windows[-1]
        result = self._decode(mel, window.prompt, options)
        window.tries.append(_attempt(result))
        return result

    def _decode(self, mel: Tensor, prompt: tuple[int, ...], options: DecodingOptions) -> DecodingResult:
        if options.temperature > 0:
            return super().decode(mel, options)
        key = (_digest(mel), prompt, replace(options, prompt=None))
        if key not in self._decoded:
            self._decoded[key] = super().decode(mel, options)
        return self._decoded[key]

    def detect_language(self, mel: Tensor, tokenizer: Any = None) -> Any:
        key = _digest(mel)
        if key not in self._heard:
            self._heard[key] = super().detect_language(mel, tokenizer)
        self._run.language_probability = max(self._heard[key][1].values())
        return self._heard[key]

    def top_two_gap(self, window: Window, prefix: Sequence[int]) -> float:
        """By how much the next token after `prefix` is preferred to the second choice, under all rules."""
        tokens = torch.tensor([[*window.prompt, *prefix]])
        logits = self.logits(tokens, self.encoder(torch.from_numpy(window.mel)[None]))[:, -1]
        for rule in DecodingTask(self, DecodingOptions(language="en", fp16=False)).logit_filters:
            rule.sample_begin = len(window.prompt)  # unused by those that treat all positions alike
            rule.apply(logits, tokens)
        best, second = logits[0].topk(2).values.tolist()
        return best - second


class _RememberingEncoder(nn.Module):
    """The reference's encoder, for single windows (1, n_mels, 3000); it would encode again for every temperature."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = encoder
        self._encoded: dict[str, Tensor] = {}

    def forward(self, mel: Tensor) -> Tensor:
        key = _digest(mel)
        if key not in self._encoded:
            self._encoded[key] = self._encoder(mel)
        return self._encoded[key]


def _digest(mel: Tensor) -> str:
    return hashlib.sha256(mel.contiguous().numpy().tobytes()).hexdigest()


def _attempt(result: DecodingResult) -> Attempt:
    return Attempt(
        tokens=tuple(result.tokens),
        text=result.text,
        temperature=result.temperature,
        avg_logprob=result.avg_logprob,
        no_speech_prob=result.no_speech_prob,
        compression_ratio=result.compression_ratio,
    )


def _segment(segment: dict[str, Any]) -> Segment:
    return Segment(
        start=segment["start"],
        end=segment["end"],
        text=segment["text"],
        tokens=tuple(segment["tokens"]),
        temperature=segment["temperature"],
        avg_logprob=segment["avg_logprob"],
        compression_ratio=segment["compression_ratio"],
        no_speech_prob=segment["no_speech_prob"],
        attempts=0,  # the reference does not say
        rules_fired=(),
    )
