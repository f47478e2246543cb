"""Our engine, with every attempt it judged remembered: what a transcript does not tell, a comparison must see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from model.checkpoint import Checkpoint
from model.engine import Counters, Engine
from model.features import log_mel
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Transcript
from model.whisper import Whisper


@dataclass
class OurWindow:
    """One window as the engine decoded it: where, from which prompt, and one attempt for each temperature tried."""

    seek: int  # log-mel frames
    prompt: tuple[int, ...]
    tries: list[Attempt] = field(default_factory=list)


@dataclass
class OurRun:
    """What became of one part, and the windows on the way there."""

    transcript: Transcript
    windows: list[OurWindow]


class RecordingEngine(Engine):
    """The engine itself; only remembering is added."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.windows: defaultdict[str, list[OurWindow]] = defaultdict(list)

    def _attempt(self, slot):  # type: ignore[no-untyped-def]
        attempt, progress = super()._attempt(slot), slot.work.progress
        windows = self.windows[progress.part.part_id]
        if slot.attempt == 0:
            windows.append(OurWindow(progress.seek, tuple(progress.prompt())))
        windows[-1].tries.append(attempt)
        return attempt


@dataclass
class Ours:
    """Our net on the weights of a checkpoint."""

    net: Whisper
    checkpoint: Checkpoint
    tokenizer: Tokenizer

    def run(
        self, audio: dict[str, np.ndarray], options: DecodeOptions, slots: int = 16, order: Iterable[str] | None = None
    ) -> tuple[dict[str, OurRun], Counters]:
        """All parts through one engine, submitted in `order`."""
        engine = RecordingEngine(self.net, self.tokenizer, options, slots=slots)
        futures = {name: engine.submit(self.part(name, audio[name])) for name in order or audio}
        engine.drain()
        runs = {name: OurRun(futures[name].result(), engine.windows[name]) for name in audio}
        return runs, engine.counters

    def part(self, name: str, samples: np.ndarray) -> Part:
        mel = log_mel(samples, self.checkpoint.dims.n_mels)
        return Part(name, mel, len(samples) // 160)
