"""How full slots are over a whole archive, by the engine's own counters: parts and windows of very mixed lengths."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.cache import Reach
from model.dimensions import FRAMES_PER_SECOND, OFFICIAL, WINDOW_FRAMES
from model.engine import Engine
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript

PARTS, SLOTS = 200, 24
SHORTEST, LONGEST = 2.0, 900.0  # seconds of a part
FEWEST, MOST = 2, 16  # words of a window; real ones have several times as many, and vary by the same factor
RETRIED = 8  # one window in so many repeats itself, and is tried again
WORD, OTHER_WORD = 1000, 2000
DIMS = replace(OFFICIAL["tiny"], n_mels=1)


class CountingNet:
    """Says as many words in a window as its log-mel says, and nothing of the cost of a real net."""

    def __init__(self) -> None:
        self.dims, self.device = DIMS, torch.device("cpu")
        self.tokenizer = Tokenizer.for_dimensions(DIMS)
        self._words = torch.zeros(SLOTS, dtype=torch.long)

    def new_cache(self, slots: int, lanes: int = 1) -> SimpleNamespace:
        def move(source: int, target: int) -> None:
            self._words[target] = self._words[source]

        return SimpleNamespace(lanes=lanes, move=move)

    def encode(self, mel: Tensor) -> Tensor:
        return mel[:, :, :1].expand(-1, DIMS.n_audio_ctx, -1)

    def admit(self, features: Tensor, cache: SimpleNamespace, slots: Tensor) -> None:
        self._words[slots] = features[:, 0, 0].long()

    def decode(self, tokens: Tensor, positions: Tensor, cache: SimpleNamespace, reach: Reach) -> Tensor:
        rows = torch.arange(len(tokens)) if reach.rows is None else reach.rows
        words = self._words[rows][:, None].expand_as(positions)
        return torch.stack([positions, words], dim=-1)  # (B, T, 2)

    def project(self, hidden: Tensor) -> Tensor:
        logits = torch.full((*hidden.shape[:-1], DIMS.n_vocab), -50.0)
        logits[torch.arange(len(hidden)), self._next(hidden.tolist())] = 0.0
        return logits

    def _next(self, hidden: Sequence[tuple[int, int]]) -> list[int]:
        begin, prompt = self.tokenizer.timestamp_begin, len(self.tokenizer.sot_sequence("en", "transcribe"))
        next_tokens = []
        for position, words in hidden:
            said = position + 1 - prompt
            spoken = WORD if words % RETRIED == 0 else WORD + 7 * said  # the same word again is what is tried again
            after = [self.tokenizer.eot if said > words + 1 else spoken, begin + 1400]
            next_tokens.append(begin if said <= 0 else after[said == words + 1])
        return next_tokens


def _part(number: int, seconds: float, random: np.random.Generator) -> Part:
    """Log-mel (1, frames) that says in every frame how many words its window has."""
    frames = round(seconds * FRAMES_PER_SECOND)
    words = random.integers(FEWEST, MOST + 1, -(-frames // WINDOW_FRAMES))
    mel = np.repeat(words, WINDOW_FRAMES).astype(np.float32)[None]
    return Part(str(number), mel, frames)


@pytest.mark.timeout(300)
def test_slots_stay_full_over_parts_of_seconds_to_a_quarter_hour() -> None:
    """With a quarter more parts at hand than slots, as the pipeline hands them over; with all of them it is 98 %."""
    open_at_once = SLOTS * 5 // 4
    random = np.random.default_rng(0)
    lengths = random.uniform(SHORTEST, LONGEST, PARTS)
    waiting = [_part(number, seconds, random) for number, seconds in enumerate(lengths)]
    options = DecodeOptions.exact(language="en", temperatures=(0.0, 0.2), previous_text=False)
    net = CountingNet()
    engine = Engine(net, net.tokenizer, options, SLOTS)
    done: list[Future[Transcript]] = []
    pending: list[Future[Transcript]] = []
    while waiting or pending:
        pending += [engine.submit(waiting.pop()) for _ in range(min(len(waiting), open_at_once - len(pending)))]
        engine.turn()
        done += [future for future in pending if future.done()]
        pending = [future for future in pending if not future.done()]
    assert all(future.result(timeout=0).segments for future in done) and len(done) == PARTS
    counters = engine.counters
    print(f"{counters.windows} windows, {counters.attempts} attempts, {counters.occupancy(SLOTS):.1%} full")
    assert counters.windows > 10 * PARTS
    assert counters.attempts > counters.windows, "some were tried again"
    assert counters.occupancy(SLOTS) >= 0.9
