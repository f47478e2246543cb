"""Small tensors on their way between the host and a device, without either waiting for the other.

A copy to a GPU is asynchronous only from page-locked memory. Torch's allocator of such memory keeps it until the copies
that read it are done, so a tensor may be dropped as soon as it was sent (PyTorch, "CUDA semantics", pinned memory).
On a CPU nothing is locked and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers, or rows of numbers, as a tensor on `device`."""
    return send(torch.tensor(values, pin_memory=_locks(device)), device)


def staging(*shape: int, device: torch.device) -> Tensor:
    """Room on the host for float32 values that `send` will take to `device`."""
    return torch.empty(shape, pin_memory=_locks(device))


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, behind all that its current stream has to do before."""
    return values.to(device, non_blocking=True)


def read(*rows: Tensor) -> list[list[Any]]:
    """Tensors of one shape as nested lists of floats, waiting for the device once.

    In float64, which holds token ids and float32 values exactly.
    """
    return torch.stack([row.double() for row in rows]).tolist()


def _locks(device: torch.device) -> bool:
    return device.type == "cuda"
