"""Numbers to a device and back: nothing is changed on the way, and nothing is copied where there is no way to go."""

from __future__ import annotations

import math

import pytest
import torch

from model.transfer import read, send, staging, to_device

CPU = torch.device("cpu")


def test_numbers_become_a_tensor() -> None:
    assert torch.equal(to_device([3, 1], CPU), torch.tensor([3, 1]))
    assert torch.equal(to_device([[3], [1]], CPU), torch.tensor([[3], [1]]))
    assert to_device([0.2], CPU).dtype == torch.float32


def test_what_is_staged_is_sent() -> None:
    room = staging(2, 3, device=CPU)
    assert (room.shape, room.dtype) == ((2, 3), torch.float32)
    room.numpy()[:] = 7
    assert send(room, CPU) is room
    assert send(room, torch.device("meta")).shape == (2, 3)


def test_ids_and_log_probabilities_are_read_exactly() -> None:
    tokens, logprobs = torch.tensor([51_865, 0, 2**31]), torch.tensor([-1 / 3, -math.inf, -1e-30])
    assert read(tokens, logprobs) == [tokens.tolist(), logprobs.tolist()]


def test_rows_of_any_shape_are_read() -> None:
    tokens = torch.arange(12).view(2, 3, 2)
    assert read(tokens, tokens / 8) == [tokens.tolist(), (tokens / 8).tolist()]


def test_a_device_is_read_once() -> None:
    """A tensor without data can be computed with, but not read: the first attempt fails, and there is no other."""
    with pytest.raises(NotImplementedError, match="no data"):
        read(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))
