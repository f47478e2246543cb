"""The decoder's memory: keys and values of every slot, allocated once, passed as an argument.

Nothing is hooked into the net: what a slot has seen can be looked at, moved and tested. The cache knows tensors
and rows; it does not know tokens, windows or parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.dimensions import Dimensions


@dataclass(frozen=True)
class DecoderCache:
    """Keys and values of S slots in L layers of H heads.

    self_k, self_v: (L, S, H, n_text_ctx, head_dim), filled token by token.
    cross_k, cross_v: (L, S, H, n_audio_ctx, head_dim), computed once per window.
    """

    self_k: Tensor
    self_v: Tensor
    cross_k: Tensor
    cross_v: Tensor

    @classmethod
    def allocate(cls, dims: Dimensions, slots: int, dtype: torch.dtype, device: torch.device) -> DecoderCache:
        head_dim = dims.n_text_state // dims.n_text_head

        def empty(positions: int) -> Tensor:
            shape = (dims.n_text_layer, slots, dims.n_text_head, positions, head_dim)
            return torch.zeros(shape, dtype=dtype, device=device)

        text, audio = dims.n_text_ctx, dims.n_audio_ctx
        return cls(empty(text), empty(text), empty(audio), empty(audio))

    @staticmethod
    def slot_bytes(dims: Dimensions, dtype: torch.dtype) -> int:
        """What one slot takes: keys and values, for text and audio, in every layer."""
        return 2 * dims.n_text_layer * dims.n_text_state * (dims.n_text_ctx + dims.n_audio_ctx) * dtype.itemsize

    def layers(self, rows: Tensor, positions: Tensor) -> list[LayerCache]:
        """What each layer needs in one forward pass; see `LayerCache`. Looks at the indices once, not once a layer."""
        used = int(positions.max()) + 1
        is_prefix = bool((rows == torch.arange(len(rows), device=rows.device)).all())
        return [LayerCache(self, index, rows, positions, used, is_prefix) for index in range(len(self.self_k))]

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`, so that the occupied slots stay a dense prefix."""
        for tensor in (self.self_k, self.self_v, self.cross_k, self.cross_v):
            tensor[:, target] = tensor[:, source]


@dataclass(frozen=True)
class LayerCache:
    """One layer's view in one forward pass over `rows` (B,) at text `positions` (B, T).

    Rows that are the dense prefix 0..B-1 (every decoding step) are read as a view; any others (a prefill) are copied.
    """

    cache: DecoderCache
    index: int
    rows: Tensor
    positions: Tensor
    used: int  # text positions filled, once this pass has appended its own
    is_prefix: bool

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store self-attention k, v (B, H, T, head_dim); return all up to the last position: (B, H, used, head_dim)."""
        rows = self.rows[:, None]  # (B, 1), broadcast against positions (B, T)
        self.cache.self_k[self.index][rows, :, self.positions] = k.transpose(1, 2)
        self.cache.self_v[self.index][rows, :, self.positions] = v.transpose(1, 2)
        k, v = self._read(self.cache.self_k), self._read(self.cache.self_v)
        return k[:, :, : self.used], v[:, :, : self.used]

    def cross(self) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, each (B, H, n_audio_ctx, head_dim)."""
        return self._read(self.cache.cross_k), self._read(self.cache.cross_v)

    def _read(self, tensor: Tensor) -> Tensor:
        layer = tensor[self.index]
        return layer[: len(self.rows)] if self.is_prefix else layer[self.rows]
