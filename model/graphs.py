"""One decoding step, a token in every lane to logits: run as it comes, or replayed from CUDA graphs.

A step of a large net is some 1,500 kernels, most so short that a GPU is done with one before the host has started the
next. A graph is recorded once and started as a whole, but always with the same shapes, on the same memory. So the
shapes are few, `Bucket`s that a step is rounded up to; each is recorded when it is first needed.

What a bucket holds too much computes, and is dropped: `CapturedSteps` says why it does no harm. The steps know a net
and its cache, not tokens, windows or rules. Source: PyTorch, "CUDA semantics", CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from model.cache import Reach
from model.dimensions import Dimensions

SLOT_SHARES = (4, 2, 1)  # buckets hold a quarter of all slots, a half, or all
TEXT_STEP = 64  # and text in multiples of so many positions

Run = Callable[[], None]
Record = Callable[[Run], Run]
"""Takes a step that reads and writes the same memory each time; returns what repeats it. May run it before."""


class StepNet(Protocol):
    """What a step asks of a net; `model.whisper.Whisper` documents the shapes."""

    dims: Dimensions

    @property
    def device(self) -> torch.device: ...
    def decode(self, tokens: Tensor, positions: Tensor, cache: Any, reach: Reach) -> Tensor: ...
    def project(self, hidden: Tensor) -> Tensor: ...


class Steps(Protocol):
    """Feeds `tokens` (n, 1) at `positions` (n, 1) to all n lanes of the first slots.

    Returns float32 logits (n, V), or those of `rows` (m,) alone: (m, V). They hold until the next step.
    """

    def __call__(self, tokens: Tensor, positions: Tensor, reach: Reach, rows: Tensor | None = None) -> Tensor: ...


def steps_for(net: StepNet, cache: Any, slots: int) -> Steps:
    """The steps of a net over a cache of so many slots: replayed from graphs on a GPU, else run as they come."""
    if net.device.type == "cuda":
        return CapturedSteps(net, cache, slots, GraphRecorder(net.device))
    return PlainSteps(net, cache)


@dataclass(frozen=True)
class PlainSteps:
    """Steps that run as they come, in the shapes that are asked for."""

    net: StepNet
    cache: Any

    def __call__(self, tokens: Tensor, positions: Tensor, reach: Reach, rows: Tensor | None = None) -> Tensor:
        hidden = self.net.decode(tokens, positions, self.cache, reach)[:, 0]  # (n, D)
        return self.net.project(hidden if rows is None else hidden[rows])


@dataclass(frozen=True)
class Bucket:
    """A shape in which steps are recorded: the first `slots`, looking back over `text` positions; see `Reach`."""

    slots: int
    text: int
    ragged: bool

    @classmethod
    def around(cls, slots: int, reach: Reach, all_slots: int, n_text_ctx: int) -> Bucket:
        """The smallest that holds so many slots, of `all_slots`, and the text that they reach."""
        sizes = sorted({-(-all_slots // share) for share in SLOT_SHARES})
        text = -(-reach.text // TEXT_STEP) * TEXT_STEP
        return cls(next(size for size in sizes if size >= slots), min(text, n_text_ctx), reach.ragged)


class CapturedSteps:
    """Steps recorded once for each bucket, and repeated on the same memory from then on.

    What is added to fill a bucket changes nothing that counts. Lanes behind the occupied slots are fed token 0 at
    position 0: nobody reads them before a prompt is written over it. Text behind a lane's own position is hidden from
    it. And a step may run twice, for it writes to the cache what it would write again.
    """

    def __init__(self, net: StepNet, cache: Any, slots: int, record: Record) -> None:
        self._net, self._cache, self._slots, self._record = net, cache, slots, record
        rows = slots * cache.lanes
        self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=net.device)
        self._positions = torch.zeros(rows, 1, dtype=torch.int64, device=net.device)
        self._logits = torch.zeros(rows, net.dims.n_vocab, device=net.device)
        self._recorded: dict[Bucket, Run] = {}

    def __call__(self, tokens: Tensor, positions: Tensor, reach: Reach, rows: Tensor | None = None) -> Tensor:
        count = len(tokens)
        bucket = Bucket.around(count // self._cache.lanes, reach, self._slots, self._net.dims.n_text_ctx)
        for memory, values in ((self._tokens, tokens), (self._positions, positions)):
            memory[:count] = values
            memory[count:] = 0
        if bucket not in self._recorded:
            self._recorded[bucket] = self._record(partial(self._step, bucket))
        self._recorded[bucket]()
        logits = self._logits[:count]
        return logits if rows is None else logits[rows]

    def _step(self, bucket: Bucket) -> None:
        rows = bucket.slots * self._cache.lanes
        reach = Reach(None, bucket.text, bucket.ragged)
        hidden = self._net.decode(self._tokens[:rows], self._positions[:rows], self._cache, reach)  # (rows, 1, D)
        self._logits[:rows] = self._net.project(hidden[:, 0])


class GraphRecorder:
    """Records CUDA graphs on one device. They share their memory, so that only one may run at a time: on one stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Run) -> Run:
        with torch.cuda.device(self._device):
            self._warm_up(step)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile, for instance to load a net.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                step()
        return graph.replay

    def _warm_up(self, step: Run) -> None:
        """Run the step where it will be recorded: libraries set themselves up at first use, which no graph can hold."""
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            step()
        caller.wait_stream(self._stream)
