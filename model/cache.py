"""The decoder's memory: keys and values of every slot, allocated once, passed as an argument.

A slot holds what was heard, once; its lanes are the texts that are being tried for it, one for greedy decoding and
more for beam search. Nothing is hooked into the net: what a slot has seen can be looked at, moved and tested. The cache
knows tensors, slots and lanes; it does not know tokens, windows or parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.dimensions import Dimensions


@dataclass(frozen=True)
class Reach:
    """Which lanes a pass feeds and how far it looks back: all known on the host, so that no pass waits for the device.

    rows: (B,) lanes, one for each of B slots (a prefill); None: all lanes of the first slots (a decoding step).
    text: positions of text that any row has seen, this pass included.
    ragged: whether some slot holds less audio than a whole window.
    slots: the slots of `rows`, where they lie side by side and can be read in place.
    """

    rows: Tensor | None
    text: int
    ragged: bool = False
    slots: slice | None = None


@dataclass(frozen=True)
class DecoderCache:
    """Keys and values of S slots of W lanes each, in L layers of H heads. Lane w of slot s is row s·W + w.

    self_k, self_v: (L, S·W, H, n_text_ctx, head_dim), filled token by token.
    cross_k, cross_v: (L, S, H, n_audio_ctx, head_dim), computed once per window.
    audio: (S,) positions of audio that each slot holds.
    """

    self_k: Tensor
    self_v: Tensor
    cross_k: Tensor
    cross_v: Tensor
    audio: Tensor

    @classmethod
    def allocate(
        cls, dims: Dimensions, slots: int, dtype: torch.dtype, device: torch.device, lanes: int = 1
    ) -> DecoderCache:
        head_dim = dims.n_text_state // dims.n_text_head

        def empty(rows: int, positions: int, dtype: torch.dtype) -> Tensor:
            shape = (dims.n_text_layer, rows, dims.n_text_head, positions, head_dim)
            return torch.zeros(shape, dtype=dtype, device=device)

        text = slots * lanes, dims.n_text_ctx, text_dtype(dtype, device)
        audio = slots, dims.n_audio_ctx, dtype
        heard = torch.full((slots,), dims.n_audio_ctx, device=device)
        return cls(empty(*text), empty(*text), empty(*audio), empty(*audio), heard)

    @staticmethod
    def slot_bytes(dims: Dimensions, dtype: torch.dtype, device: torch.device, lanes: int = 1) -> int:
        """What one slot takes: keys and values, for audio and for the text of every lane, in every layer."""
        text = dims.n_text_ctx * lanes * text_dtype(dtype, device).itemsize
        audio = dims.n_audio_ctx * dtype.itemsize
        return 2 * dims.n_text_layer * dims.n_text_state * (text + audio)

    @property
    def lanes(self) -> int:
        return self.self_k.shape[1] // self.cross_k.shape[1]

    def admit(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep the cross-attention k, v (B, H, A, head_dim) of `slots` (B,)."""
        heard = k.shape[2]
        self.cross_k[layer, slots, :, :heard] = k
        self.cross_v[layer, slots, :, :heard] = v
        self.audio[slots] = heard

    def layers(self, positions: Tensor, reach: Reach) -> list[LayerCache]:
        """What each layer needs in one pass over text `positions` (B, T); see `LayerCache`."""
        everything = torch.arange(len(positions), device=positions.device)
        rows = everything if reach.rows is None else reach.rows
        unheard = None
        if reach.ragged:
            heard = self.audio[: len(rows) // self.lanes] if reach.rows is None else self.audio[rows // self.lanes]
            places = torch.arange(self.cross_k.shape[3], device=positions.device)
            unheard = (places >= heard[:, None])[:, None, None]  # (slots, 1, 1, n_audio_ctx)
        return [LayerCache(self, index, rows, positions, reach, unheard) for index in range(len(self.self_k))]

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`, so that the occupied slots stay a dense prefix."""
        width = self.lanes
        for tensor in (self.self_k, self.self_v):
            tensor[:, target * width : (target + 1) * width] = tensor[:, source * width : (source + 1) * width]
        for tensor in (self.cross_k, self.cross_v):
            tensor[:, target] = tensor[:, source]
        self.audio[target] = self.audio[source]

    def follow(self, rows: Sequence[int], parents: Sequence[int], text: int) -> None:
        """Let `rows` go on from the first `text` positions of `parents`, row by row; others stay."""
        for tensor in (self.self_k, self.self_v):
            tensor[:, rows, :, :text] = tensor[:, parents, :, :text]


@dataclass(frozen=True)
class LayerCache:
    """One layer's view in one pass over `rows` (B,) at text `positions` (B, T).

    The dense prefix (every decoding step) is read as a view; other rows (a prefill) are copied.
    """

    cache: DecoderCache
    index: int
    rows: Tensor
    positions: Tensor
    reach: Reach
    unheard: Tensor | None  # (slots, 1, 1, n_audio_ctx): places behind a slot's own audio; None where all are full

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store self-attention k, v (B, H, T, head_dim); return all of these rows so far: (B, H, text, head_dim)."""
        rows = self.rows[:, None]  # (B, 1), broadcast against positions (B, T)
        self.cache.self_k[self.index][rows, :, self.positions] = k.transpose(1, 2).to(self.cache.self_k.dtype)
        self.cache.self_v[self.index][rows, :, self.positions] = v.transpose(1, 2).to(self.cache.self_v.dtype)
        text = self.reach.text
        own = slice(len(self.rows)) if self.reach.rows is None else self.rows
        return self.cache.self_k[self.index, own, :, :text], self.cache.self_v[self.index, own, :, :text]

    def cross(self) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, one for each slot: (slots, H, n_audio_ctx, head_dim).

        Always whole: a matrix product in bfloat16 would copy a slice of them first.
        """
        width = self.cache.lanes
        own: slice | Tensor | None = self.reach.slots
        if own is None:
            own = slice(len(self.rows) // width) if self.reach.rows is None else self.rows // width
        return self.cache.cross_k[self.index, own], self.cache.cross_v[self.index, own]


def text_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what the text of a net of `dtype` is kept: on a CPU always float32, whose products read a slice in place."""
    return torch.float32 if device.type == "cpu" else dtype
