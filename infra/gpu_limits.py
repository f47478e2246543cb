"""What a device can do at best, and what the stages of Whisper ask of it: operations and bytes, counted on paper."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model.dimensions import Dimensions
from model.whisper import MLP_RATIO

SQUARES_IN_BLOCK = 4 + 2 * MLP_RATIO  # weights of attention and the feed-forward layer, in units of width²


@dataclass(frozen=True)
class Limits:
    """Operations (a product and a sum are two) and bytes of memory traffic a second."""

    flops: float
    bytes: float


def measure(device: torch.device, dtype: torch.dtype) -> Limits:
    """The rates of one large matrix product on random numbers, and of one large copy, read and written."""
    on_gpu = device.type == "cuda"
    side, floats = (8192, 1 << 30) if on_gpu else (512, 1 << 22)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(floats, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / seconds(lambda: one @ other, device)
    return Limits(flops, 2 * source.nbytes / seconds(lambda: target.copy_(source), device))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Mean time of `run`, after two runs to warm up, over as many as fill a fifth of a second (a fiftieth on a CPU)."""
    wanted = 0.2 if device.type == "cuda" else 0.02
    run()
    once = _timed(run, 1, device)
    return _timed(run, max(1, min(1000, int(wanted / once))), device)


def _timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    _synchronize(device)
    return (time.perf_counter() - started) / times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder_flops(dims: Dimensions) -> float:
    """Operations to encode one window: 2.3e12 for large-v3."""
    width, positions = dims.n_audio_state, dims.n_audio_ctx
    convolutions = 2 * 3 * width * (dims.n_mels * dims.frames_per_position + width) * positions
    block = 2 * SQUARES_IN_BLOCK * width**2 * positions + 4 * positions**2 * width
    return convolutions + dims.n_audio_layer * block


def admit_flops(dims: Dimensions) -> float:
    """Operations to project one window to the keys and values of all decoder layers."""
    return dims.n_text_layer * 2 * 2 * dims.n_text_state**2 * dims.n_audio_ctx


def step_bytes(dims: Dimensions, dtype: torch.dtype, slots: int, text: int) -> float:
    """Bytes that one token in each of so many slots makes the device read, `text` positions behind each.

    All weights of the decoder once (twice the attention, but the keys and values of the audio are there already), and
    the keys and values of every slot.
    """
    width = dims.n_text_state
    weights = dims.n_text_layer * (SQUARES_IN_BLOCK + 2) * width**2 + dims.n_vocab * width
    return dtype.itemsize * (weights + slots * 2 * dims.n_text_layer * width * (dims.n_audio_ctx + text))
