"""Scaled dot-product attention, and which kernel computes it where.

All kernels compute the same (a test holds them to it); they differ in speed by factors, and the figures that decide
stand in `docs/decisions.md`. They know tensors, not caches or nets. In shapes, B is rows, H heads, T queries, K keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """q (B, H, T, head_dim) attends k, v (B, H, K, head_dim); `hidden` (B, 1, T, K) marks what it must not see."""
    if hidden is not None or q.shape[2] == 1:
        return _spelled_out(q, k, v, hidden)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _head_by_head(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _spelled_out(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """For a mask that differs from row to row, or a single query per row: reading k and v is what takes the time."""
    scores = (q * q.shape[-1] ** -0.5).to(k.dtype) @ k.transpose(-1, -2)  # (B, H, T, K)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    attended: Tensor = (
        scores.softmax(-1) @ v
    )  # (B, H, T, head_dim); a softmax computes in float32, whatever it is given
    return attended.to(q.dtype)


def _head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Matrix products large enough for bfloat16 instructions, scores small enough for the cache of a CPU.

    Torch's own kernel for bfloat16 on a CPU is no faster than its float32.
    """
    rows, heads, queries, head_dim = q.shape
    q = q * head_dim**-0.5
    out = q.new_empty(rows, queries, heads, head_dim)
    for row in range(rows):
        for head in range(heads):
            scores = q[row, head] @ k[row, head].T  # (T, K)
            out[row, :, head] = scores.softmax(-1) @ v[row, head]
    return out.transpose(1, 2)  # (B, H, T, head_dim)
