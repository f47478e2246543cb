"""The stages of the engine on one device, each timed alone, and all of them together in an engine that runs.

It knows nets, slots and clocks; what is measured on what, and where the figures go, is `gpu_bench.py`'s affair.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.gpu_limits import Limits, admit_flops, encoder_flops, seconds, step_bytes
from infra.gpu_scripted import TOKENS_PER_WINDOW, ScriptedWhisper
from model import whisper
from model.attention import attend
from model.cache import DecoderCache, Reach
from model.dimensions import FRAMES_PER_SECOND, WINDOW_FRAMES, WINDOW_SECONDS, Dimensions
from model.engine import Counters, Engine
from model.graphs import PlainSteps, Steps, steps_for
from model.options import DecodeOptions
from model.sampling import Sampler
from model.tokenizer import Tokenizer
from model.transcript import Part
from model.whisper import Whisper, sinusoids

ENCODE_BATCHES = (1, 4, 16, 32)
ADMITTED = 8  # windows at once
PROMPTS = (3, 128)  # tokens: the first window of a part, and one with text before it
TEXT = 128  # positions behind a slot, on average: half a prompt and half a window
WINDOWS_PER_PART = tuple(range(2, 11))  # five minutes at most, of different lengths: they never all end together
MEMORY_SHARE = 0.75  # of what is free, for the slots

Row = dict[str, object]


@dataclass(frozen=True)
class Bench:
    """A net on a device, and what the device can do."""

    name: str
    net: Whisper
    limits: Limits

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def precision(self) -> str:
        return str(self.net.dtype).removeprefix("torch.")

    def is_of(self, row: Row) -> bool:
        """Whether a row was measured with this net."""
        return (row.get("model"), row.get("precision")) == (self.name, self.precision)

    def row(self, stage: str, took: float, **facts: object) -> Row:
        return {"model": self.name, "precision": self.precision, "stage": stage, "ms": took * 1e3, **facts}


def random_net(dims: Dimensions, dtype: torch.dtype, device: torch.device, scale: float = 0.02) -> Whisper:
    """A net of random weights, made where it is used: nothing is copied, and nothing overflows."""
    with torch.device("meta"):
        net = Whisper(dims).to(dtype)
    net = net.to_empty(device=device).requires_grad_(False).eval()
    for name, weights in net.named_parameters():
        weights.normal_(0, scale)
        if weights.dim() == 1 and name.endswith("weight"):  # of norms
            weights.add_(1)
    net.encoder.positional_embedding.copy_(sinusoids(dims.n_audio_ctx, dims.n_audio_state))
    return net


# --- attention ----------------------------------------------------------------------------------------------------

Attend = Callable[..., Tensor]


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Torch's own kernel throughout, masks included."""
    return F.scaled_dot_product_attention(q.to(k.dtype), k, v, None if hidden is None else ~hidden).to(q.dtype)


def by_sdpa_unmasked(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Torch's own kernel for what is heard, the product's for what was said."""
    return F.scaled_dot_product_attention(q, k, v) if hidden is None else attend(q, k, v, hidden)


AS_IT_IS = "as it is"
ATTENTION: dict[str, Attend] = {AS_IT_IS: attend, "sdpa for audio": by_sdpa_unmasked, "sdpa": by_sdpa}


@contextmanager
def attention(kind: str) -> Iterator[None]:
    """Let the net attend by one of `ATTENTION`."""
    whisper.attend = ATTENTION[kind]  # type: ignore[attr-defined]  # where the net looks it up
    try:
        yield
    finally:
        whisper.attend = attend  # type: ignore[attr-defined]


# --- one by one ---------------------------------------------------------------------------------------------------


def encode(bench: Bench, batches: tuple[int, ...] = ENCODE_BATCHES) -> Iterator[Row]:
    dims = bench.net.dims
    for batch in batches:
        mel = torch.randn(batch, dims.n_mels, WINDOW_FRAMES, device=bench.device, dtype=bench.net.dtype)
        took = seconds(partial(bench.net.encode, mel), bench.device) / batch
        yield bench.row("encode, a window", took, batch=batch, share=encoder_flops(dims) / took / bench.limits.flops)


def admit(bench: Bench, memory: DecoderCache) -> Iterator[Row]:
    """Keys and values of what is heard, then prompts: what a window costs before its first token."""
    dims, count = bench.net.dims, min(ADMITTED, len(memory.audio))
    heard = torch.randn(count, dims.n_audio_ctx, dims.n_audio_state, device=bench.device, dtype=bench.net.dtype)
    slots = torch.arange(count, device=bench.device)
    took = seconds(lambda: bench.net.admit(heard, memory, slots), bench.device) / count
    yield bench.row("admit, a window", took, batch=count, share=admit_flops(dims) / took / bench.limits.flops)
    for length in PROMPTS:
        tokens = torch.ones(count, length, dtype=torch.int64, device=bench.device)
        positions = torch.arange(length, device=bench.device).expand_as(tokens)
        reach = Reach(slots, length)
        took = seconds(partial(bench.net.decode, tokens, positions, memory, reach), bench.device) / count
        yield bench.row("prompt, a window", took, batch=count, tokens=length)


def step(bench: Bench, memory: DecoderCache) -> Iterator[Row]:
    """A token in every slot: with each kind of attention, as it comes and, on a GPU, from a graph."""
    slots, dims = len(memory.audio), bench.net.dims
    tokens = torch.ones(slots, 1, dtype=torch.int64, device=bench.device)
    at = torch.full_like(tokens, TEXT - 1)
    asked = step_bytes(dims, bench.net.dtype, slots, TEXT)
    kinds: dict[str, Steps] = {"plain": PlainSteps(bench.net, memory)}
    for kind in ATTENTION:
        if bench.device.type == "cuda":
            kinds["graph"] = steps_for(bench.net, memory, slots)  # recorded anew, with this attention
        with attention(kind):
            for how, steps in kinds.items():
                took = seconds(partial(steps, tokens, at, Reach(None, TEXT)), bench.device)
                facts = {"slots": slots, "how": f"{how}, {kind}", "share": asked / took / bench.limits.bytes}
                yield bench.row("step", took, **facts)


def choose(bench: Bench, slots: int) -> Iterator[Row]:
    """Rules and choice, the reading of the tokens included."""
    tokenizer = Tokenizer.for_dimensions(bench.net.dims)
    sampler = Sampler(tokenizer, DecodeOptions(), bench.net.dims, slots, bench.device)
    for slot in range(slots):
        sampler.start(slot, 0.0, [])
    yield bench.row("rules", seconds(lambda: sampler.choose(slots), bench.device), slots=slots)


# --- all together -------------------------------------------------------------------------------------------------


def run(bench: Bench, slots: int, audio_seconds: float, how: str, kind: str = AS_IT_IS) -> Row:
    """The whole engine over so much audio, its text scripted; without language identification and second attempts."""
    scripted = ScriptedWhisper(bench.net, Tokenizer.for_dimensions(bench.net.dims))
    options = DecodeOptions(language="en", temperatures=(0.0,))
    with attention(kind):
        engine = Engine(scripted, Tokenizer.for_dimensions(bench.net.dims), options, slots)
        if how == "plain":
            engine.steps = PlainSteps(scripted, engine._cache)
        if how == "graph":  # recorded before the clock starts
            _drain(engine, _parts(bench.net.dims, min(2 * WINDOW_SECONDS * slots, audio_seconds)))
        engine.counters = Counters()
        parts = _parts(bench.net.dims, audio_seconds)
        took = _drain(engine, parts)
    counted = engine.counters
    heard = sum(part.content_frames for part in parts) / FRAMES_PER_SECOND
    return bench.row(
        "engine",
        took,
        slots=slots,
        how=f"{how}, {kind}",
        real_time=heard / took,
        windows=counted.windows,
        tokens_per_window=counted.tokens / counted.windows,
        turns=counted.turns,
        occupancy=counted.occupancy(slots),
    )


def _drain(engine: Engine, parts: list[Part]) -> float:
    started = time.perf_counter()
    futures = [engine.submit(part) for part in parts]
    engine.drain()
    if any(future.result(timeout=0).windows_retried for future in futures):
        raise RuntimeError("A scripted window was tried again: the script breaks a rule.")
    return time.perf_counter() - started


def _parts(dims: Dimensions, audio_seconds: float) -> list[Part]:
    """Parts of a few windows each that share one log-mel, and come to so much audio."""
    mel = np.random.default_rng(0).standard_normal((dims.n_mels, max(WINDOWS_PER_PART) * WINDOW_FRAMES), np.float32)
    left = max(1, round(audio_seconds / WINDOW_SECONDS))
    parts: list[Part] = []
    while left:
        windows = min(left, WINDOWS_PER_PART[len(parts) % len(WINDOWS_PER_PART)])
        parts.append(Part(str(len(parts)), mel, windows * WINDOW_FRAMES))
        left -= windows
    return parts


def room_for(slots: int, bench: Bench) -> bool:
    """Whether the caches of so many slots fit into the memory that is free."""
    if bench.device.type != "cuda":
        return True
    gc.collect()  # engines that are done with, and their graphs
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(bench.device)
    return slots * DecoderCache.slot_bytes(bench.net.dims, bench.net.dtype, bench.device) < free * MEMORY_SHARE


def window_bound(bench: Bench, slots: int) -> float:
    """Seconds that a window takes at the device's limits, were nothing lost: encoded, and read token by token."""
    dims = bench.net.dims
    encoded = (encoder_flops(dims) + admit_flops(dims)) / bench.limits.flops
    read = TOKENS_PER_WINDOW * step_bytes(dims, bench.net.dtype, slots, TEXT) / bench.limits.bytes / slots
    return encoded + read
