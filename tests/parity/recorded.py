"""Our engine, with every attempt that it judges recorded: a comparison must see what a transcript does not tell."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.dimensions import HOP_LENGTH, WINDOW_FRAMES
from model.engine import Engine
from model.features import log_mel
from model.options import DecodeOptions
from model.reading import Slot
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Segment
from model.whisper import Whisper
from tests.parity.comparison import Window


@dataclass
class OurRun:
    """What became of one part, and the windows on the way there."""

    language: str | None
    language_probability: float | None
    segments: list[Segment]
    windows: list[Window]


class RecordingEngine(Engine):
    """The engine itself; only remembering is added."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.recorded: defaultdict[str, list[Window]] = defaultdict(list)

    def _verdict(self, slot: Slot) -> tuple[Attempt, tuple[str, ...]]:
        attempt, failed = super()._verdict(slot)
        progress = slot.progress
        windows = self.recorded[progress.part.part_id]
        if slot.attempt == 0:
            heard = progress.mel[:, progress.seek : progress.seek + progress.window_frames]
            mel = np.pad(heard, ((0, 0), (0, WINDOW_FRAMES - heard.shape[1])))
            windows.append(Window(mel, tuple(progress.prompt()), seek=progress.seek))
        windows[-1].tries.append(attempt)
        return attempt, failed


class RememberingNet:
    """A net that encodes no window twice, however many runs hear it; all else is the net's own."""

    def __init__(self, net: Whisper) -> None:
        self._net = net
        self._encoded: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def encode(self, mel: Tensor) -> Tensor:
        keys = [hashlib.sha256(window.numpy().tobytes()).hexdigest() for window in mel]
        new = [index for index, key in enumerate(keys) if key not in self._encoded]
        if new:
            self._encoded |= zip((keys[index] for index in new), self._net.encode(mel[new]), strict=True)
        return torch.stack([self._encoded[key] for key in keys])


@dataclass
class Ours:
    """Our side of every comparison: a net, its tokenizer, and parts through one engine."""

    net: Any  # Whisper, or one that remembers
    tokenizer: Tokenizer

    def run(
        self,
        audio: Mapping[str, NDArray[np.float32]],
        options: DecodeOptions,
        slots: int = 16,
        order: Iterable[str] | None = None,
    ) -> dict[str, OurRun]:
        """Transcribe all of `audio`, submitted in `order`."""
        engine = RecordingEngine(self.net, self.tokenizer, options, slots=slots)
        futures = {name: engine.submit(self._part(name, audio[name])) for name in order or audio}
        engine.drain()
        runs = {}
        for name in audio:
            done = futures[name].result()
            windows = engine.recorded[name]
            runs[name] = OurRun(done.language, done.language_probability, done.segments, windows)
        return runs

    def _part(self, name: str, samples: NDArray[np.float32]) -> Part:
        return Part(name, log_mel(samples, self.net.dims.n_mels), len(samples) // HOP_LENGTH)
