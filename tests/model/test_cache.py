"""The decoder's memory: what is written where, what is read back, and what moving a slot takes along."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from model.cache import DecoderCache
from model.dimensions import OFFICIAL, Dimensions

# Two layers of two heads of four; text up to six, audio of three.
DIMS = Dimensions(8, 3, 8, 2, 1, 40, 6, 8, 2, 2)
CPU = torch.device("cpu")


def cache(slots: int = 3) -> DecoderCache:
    return DecoderCache.allocate(DIMS, slots, torch.float32, CPU)


def filled(slots: int = 3) -> DecoderCache:
    """A cache in which every number is another."""
    full = cache(slots)
    for index, tensor in enumerate(everything(full)):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) + 10_000 * index)
    return full


def everything(of: DecoderCache) -> list[torch.Tensor]:
    return [getattr(of, field.name) for field in fields(of)]


def test_it_has_room_for_every_slot_layer_and_head() -> None:
    made = DecoderCache.allocate(DIMS, 5, torch.bfloat16, CPU)
    assert made.self_k.shape == made.self_v.shape == (2, 5, 2, 6, 4)
    assert made.cross_k.shape == made.cross_v.shape == (2, 5, 2, 3, 4)
    assert {tensor.dtype for tensor in everything(made)} == {torch.bfloat16}


def test_a_slot_of_turbo_takes_40_megabytes() -> None:
    made = DecoderCache.allocate(OFFICIAL["large-v3-turbo"], 1, torch.float16, torch.device("meta"))
    assert sum(tensor.nbytes for tensor in everything(made)) == 2 * 4 * 1280 * (448 + 1500) * 2


def test_tokens_are_written_to_their_rows_and_positions_only() -> None:
    memory = cache()
    rows, positions = torch.tensor([2, 0]), torch.tensor([[1, 2], [4, 5]])
    k, v = torch.rand(2, 2, 2, 4), torch.rand(2, 2, 2, 4)  # (B, H, T, head_dim)
    memory.layers(rows, positions)[1].append(k, v)
    expected_k, expected_v = torch.zeros(2, 3, 2, 6, 4), torch.zeros(2, 3, 2, 6, 4)
    for batch, row in enumerate((2, 0)):
        for token in range(2):
            position = int(positions[batch, token])
            expected_k[1, row, :, position] = k[batch, :, token]
            expected_v[1, row, :, position] = v[batch, :, token]
    assert torch.equal(memory.self_k, expected_k)
    assert torch.equal(memory.self_v, expected_v)


def test_reading_goes_up_to_the_last_position_of_any_row() -> None:
    memory = filled()
    rows, positions = torch.tensor([2, 0]), torch.tensor([[1], [3]])
    k, v = memory.layers(rows, positions)[0].append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4))
    assert torch.equal(k, memory.self_k[0, [2, 0], :, :4])
    assert torch.equal(v, memory.self_v[0, [2, 0], :, :4])
    assert not k[0, :, 1].any() and not k[1, :, 3].any()


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 1, 2], [1], [1, 0], [2, 0], [0, 2]])
def test_any_rows_are_read_and_a_dense_prefix_is_not_copied(rows: list[int]) -> None:
    memory = filled()
    k, v = memory.layers(torch.tensor(rows), torch.zeros(len(rows), 1, dtype=torch.long))[1].cross()
    assert torch.equal(k, memory.cross_k[1, rows])
    assert torch.equal(v, memory.cross_v[1, rows])
    shares_memory = k.untyped_storage().data_ptr() == memory.cross_k.untyped_storage().data_ptr()
    assert shares_memory == (rows == list(range(len(rows))))


def test_a_slot_moves_with_all_it_has_seen() -> None:
    memory, before = filled(), filled()
    memory.move(2, 0)
    for now, then in zip(everything(memory), everything(before), strict=True):
        assert torch.equal(now[:, 0], then[:, 2])
        assert torch.equal(now[:, 1:], then[:, 1:])


def test_slot_bytes_are_what_a_slot_is_given() -> None:
    memory = DecoderCache.allocate(DIMS, 3, torch.bfloat16, torch.device("cpu"))
    given = sum(tensor.nbytes for tensor in (memory.self_k, memory.self_v, memory.cross_k, memory.cross_v))
    assert given == 3 * DecoderCache.slot_bytes(DIMS, torch.bfloat16)
