"""Whether a device computes what the CPU does, and graphs what plain steps do, before anything is timed on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from infra.gpu_stages import Row, random_net
from model.cache import Reach
from model.checkpoint import Checkpoint
from model.dimensions import OFFICIAL, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_SECONDS, Dimensions
from model.engine import Engine
from model.features import log_mel
from model.graphs import CapturedSteps, PlainSteps, Run, steps_for
from model.options import DecodeOptions
from model.precision import load_net
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import Whisper

WINDOWS = 3
FED = 24  # tokens of the comparison of logits
# A random net ends no window before half of its text context: one of 96 takes two buckets, and not long.
RANDOM = replace(OFFICIAL["tiny"], n_text_ctx=96, n_audio_state=64, n_audio_head=2, n_audio_layer=2)
RANDOM = replace(RANDOM, n_text_state=64, n_text_head=2, n_text_layer=2)
RANDOM_SCALE = 0.3  # of its weights: large enough that no two tokens are nearly as likely
GREEDY = DecodeOptions(language="en", temperatures=(0.0,), previous_text=False)


@dataclass(frozen=True)
class Weights:
    """Real weights, or random ones where there are none."""

    name: str
    dims: Dimensions
    state: dict[str, Tensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint | None, name: str) -> Weights:
        if checkpoint is not None:
            return cls(name, checkpoint.dims, checkpoint.state)
        net = random_net(RANDOM, torch.float32, torch.device("cpu"), RANDOM_SCALE)
        return cls("random", RANDOM, dict(net.state_dict()))


def checks(weights: Weights, device: torch.device) -> Iterator[Row]:
    """Largest differences to the CPU in float32; windows read alike by both, and in both kinds of steps."""
    own, other = (load_net(weights.dims, weights.state, "float32", at) for at in (torch.device("cpu"), device))
    mel = sounds(weights.dims)
    difference = [
        (one - two.cpu()).abs().max().item() for one, two in zip(_fed(own, mel), _fed(other, mel), strict=True)
    ]
    yield {"check": "float32, features", "weights": weights.name, "largest_difference": difference[0]}
    yield {"check": "float32, logits", "weights": weights.name, "largest_difference": difference[1]}
    expected, plain, buckets = _read(own, mel, False), _read(other, mel, False), _read(other, mel, True)
    yield {"check": "float32, windows read as on the CPU", "weights": weights.name, **_alike(plain, expected)}
    yield {"check": "float32, windows read alike in buckets", "weights": weights.name, **_alike(buckets, plain)}
    if device.type == "cuda":
        half = load_net(weights.dims, weights.state, "float16", device)
        alike = _alike(_read(half, mel, True), _read(half, mel, False))
        yield {"check": "float16, windows read alike in buckets", "weights": weights.name, **alike}


def sounds(dims: Dimensions) -> np.ndarray:
    """Log-mel (WINDOWS, n_mels, 3000) of something with a voice's pitch, harmonics and rhythm, all of it different."""
    random, time = np.random.default_rng(0), np.arange(WINDOW_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    windows = []
    for window in range(WINDOWS):
        pitch = 2 * np.pi * (110 + 40 * window) * time + 3 * np.sin(2 * np.pi * 0.7 * time)
        voice = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 12))
        rhythm = np.clip(np.sin(2 * np.pi * (1.5 + 0.4 * window) * time), 0, 1)
        sound = 0.1 * voice * rhythm + 0.003 * random.standard_normal(len(time))
        windows.append(log_mel(sound.astype(np.float32), dims.n_mels)[:, :WINDOW_FRAMES])
    return np.stack(windows)


def _fed(net: Whisper, mel: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (B, A, D), and logits (B, T, V) of the same random tokens over them."""
    heard = net.encode(torch.from_numpy(mel))
    tokens = torch.randint(1000, 20_000, (WINDOWS, FED), generator=torch.Generator().manual_seed(0)).to(net.device)
    memory, slots = net.new_cache(WINDOWS), torch.arange(WINDOWS, device=net.device)
    net.admit(heard, memory, slots)
    positions = torch.arange(FED, device=net.device).expand_as(tokens)
    return heard, net.project(net.decode(tokens, positions, memory, Reach(slots, FED)))


def _read(net: Whisper, mel: np.ndarray, in_buckets: bool) -> list[Transcript]:
    """What is read in each window, greedily."""
    engine = Engine(net, Tokenizer.for_dimensions(net.dims), GREEDY, slots=WINDOWS + 1)
    engine.steps = _in_buckets(engine, net) if in_buckets else PlainSteps(net, engine._cache)
    futures = [engine.submit(Part(str(index), window, WINDOW_FRAMES)) for index, window in enumerate(mel)]
    engine.drain()
    return [future.result(timeout=0) for future in futures]


def _in_buckets(engine: Engine, net: Whisper) -> CapturedSteps:
    steps = steps_for(net, engine._cache, engine.slots)
    return steps if isinstance(steps, CapturedSteps) else CapturedSteps(net, engine._cache, engine.slots, _repeat)


def _repeat(step: Run) -> Run:
    """What stands for a graph where there is no GPU."""
    return step


def _alike(ones: Sequence[Transcript], others: Sequence[Transcript]) -> Row:
    same = sum(_said(one) == _said(other) for one, other in zip(ones, others, strict=True))
    return {"alike": same, "of": len(ones), "tokens": sum(one.tokens for one in ones)}


def _said(transcript: Transcript) -> tuple[int, list[tuple[int, ...]]]:
    return transcript.tokens, [segment.tokens for segment in transcript.segments]
