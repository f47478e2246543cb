"""The decoder's memory: what is written where, what is read back, and what moving a slot or following a lane takes."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from model.cache import DecoderCache, LayerCache, Reach
from model.dimensions import OFFICIAL, Dimensions

# Two layers of two heads of four; text up to six, audio of three.
DIMS = Dimensions(8, 3, 8, 2, 1, 40, 6, 8, 2, 2)
CPU = torch.device("cpu")
TEXT, AUDIO = ("self_k", "self_v"), ("cross_k", "cross_v")  # a row for each lane, and one for each slot


def cache(slots: int = 3, lanes: int = 1) -> DecoderCache:
    return DecoderCache.allocate(DIMS, slots, torch.float32, CPU, lanes)


def filled(slots: int = 3, lanes: int = 1) -> DecoderCache:
    """A cache in which every number is another, and every slot holds another length of audio."""
    full = cache(slots, lanes)
    for index, tensor in enumerate(keys_values(full)):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) + 10_000 * index)
    full.audio.copy_(torch.arange(slots) + 1)
    return full


def keys_values(of: DecoderCache) -> list[Tensor]:
    return [getattr(of, name) for name in (*TEXT, *AUDIO)]


def layer(
    memory: DecoderCache, index: int, positions: Tensor, rows: list[int] | None, ragged: bool = False
) -> LayerCache:
    reach = Reach(None if rows is None else torch.tensor(rows), int(positions.max()) + 1, ragged)
    return memory.layers(positions, reach)[index]


def at(*positions: int) -> Tensor:
    """One position for each row."""
    return torch.tensor([[position] for position in positions])


# --- room ---------------------------------------------------------------------------------------------------------


def test_it_has_room_for_every_slot_layer_and_head() -> None:
    made = DecoderCache.allocate(DIMS, 5, torch.bfloat16, CPU)
    assert made.self_k.shape == made.self_v.shape == (2, 5, 2, 6, 4)
    assert made.cross_k.shape == made.cross_v.shape == (2, 5, 2, 3, 4)
    assert made.cross_k.dtype == made.cross_v.dtype == torch.bfloat16
    assert made.lanes == 1
    assert made.audio.tolist() == [3] * 5
    assert {field.name for field in fields(made)} == {*TEXT, *AUDIO, "audio"}


def test_lanes_have_texts_of_their_own_and_share_what_is_heard() -> None:
    made = DecoderCache.allocate(DIMS, 5, torch.float32, CPU, lanes=3)
    assert made.self_k.shape == made.self_v.shape == (2, 15, 2, 6, 4)
    assert made.cross_k.shape == made.cross_v.shape == (2, 5, 2, 3, 4)
    assert made.lanes == 3
    assert made.audio.tolist() == [3] * 5


def test_a_slot_of_turbo_takes_40_megabytes() -> None:
    made = DecoderCache.allocate(OFFICIAL["large-v3-turbo"], 1, torch.float16, torch.device("meta"))
    assert sum(tensor.nbytes for tensor in keys_values(made)) == 2 * 4 * 1280 * (448 + 1500) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_text_is_kept_in_float32_where_that_is_read_in_place(dtype: torch.dtype, device: str) -> None:
    made = DecoderCache.allocate(DIMS, 2, dtype, torch.device(device))
    assert made.self_k.dtype == made.self_v.dtype == (torch.float32 if device == "cpu" else dtype)
    assert made.cross_k.dtype == made.cross_v.dtype == dtype


@pytest.mark.parametrize("lanes", [1, 5])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_slot_bytes_are_what_a_slot_is_given(lanes: int, device: str) -> None:
    made = DecoderCache.allocate(DIMS, 3, torch.bfloat16, torch.device(device), lanes)
    given = sum(tensor.nbytes for tensor in keys_values(made))
    assert given == 3 * DecoderCache.slot_bytes(DIMS, torch.bfloat16, torch.device(device), lanes)


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "written"), [([2, 0], (2, 0)), (None, (0, 1))])
def test_tokens_are_written_to_their_rows_and_positions_only(rows: list[int] | None, written: tuple[int, ...]) -> None:
    memory = cache()
    positions = torch.tensor([[1, 2], [4, 5]])
    k, v = torch.rand(2, 2, 2, 4), torch.rand(2, 2, 2, 4)  # (B, H, T, head_dim)
    layer(memory, 1, positions, rows).append(k, v)
    expected_k, expected_v = torch.zeros(2, 3, 2, 6, 4), torch.zeros(2, 3, 2, 6, 4)
    for batch, row in enumerate(written):
        for token in range(2):
            position = int(positions[batch, token])
            expected_k[1, row, :, position] = k[batch, :, token]
            expected_v[1, row, :, position] = v[batch, :, token]
    assert torch.equal(memory.self_k, expected_k)
    assert torch.equal(memory.self_v, expected_v)
    assert not memory.cross_k.any() and not memory.cross_v.any()


@pytest.mark.parametrize(("rows", "read"), [([2, 0], [2, 0]), (None, [0, 1])])
def test_reading_goes_up_to_the_last_position_of_any_row(rows: list[int] | None, read: list[int]) -> None:
    memory = filled()
    k, v = layer(memory, 0, at(1, 3), rows).append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4))
    assert torch.equal(k, memory.self_k[0, read, :, :4])
    assert torch.equal(v, memory.self_v[0, read, :, :4])
    assert not k[0, :, 1].any() and not k[1, :, 3].any()


def test_a_pass_over_all_lanes_copies_nothing() -> None:
    memory = filled(slots=3, lanes=2)
    read = layer(memory, 1, at(0, 0, 0, 0), None)
    for tensor, kept in zip(
        (*read.append(*torch.zeros(2, 4, 2, 1, 4)), *read.cross()), keys_values(memory), strict=True
    ):
        assert tensor.untyped_storage().data_ptr() == kept.untyped_storage().data_ptr()


# --- audio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 1, 2], [1], [1, 0], [2, 0], [0, 2]])
def test_any_rows_are_read(rows: list[int]) -> None:
    memory = filled()
    k, v = layer(memory, 1, at(*rows), rows).cross()
    assert torch.equal(k, memory.cross_k[1, rows])
    assert torch.equal(v, memory.cross_v[1, rows])


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_step_reads_each_of_the_first_slots_once(slots: int) -> None:
    memory = filled(slots=3, lanes=2)
    k, v = layer(memory, 1, at(*[0] * (2 * slots)), None).cross()
    assert torch.equal(k, memory.cross_k[1, :slots])
    assert torch.equal(v, memory.cross_v[1, :slots])


def test_slots_side_by_side_are_read_in_place() -> None:
    """A prefill into the second and third slot, two lanes each."""
    memory = filled(slots=3, lanes=2)
    reach = Reach(torch.tensor([2, 4]), 1, slots=slice(1, 3))
    k, v = memory.layers(at(0, 0), reach)[1].cross()
    assert torch.equal(k, memory.cross_k[1, 1:]) and torch.equal(v, memory.cross_v[1, 1:])
    assert k.untyped_storage().data_ptr() == memory.cross_k.untyped_storage().data_ptr()


def test_a_prefill_reads_the_slot_of_each_lane() -> None:
    memory = filled(slots=3, lanes=2)
    k, v = layer(memory, 0, at(0, 0), [4, 0]).cross()
    assert torch.equal(k, memory.cross_k[0, [2, 0]])
    assert torch.equal(v, memory.cross_v[0, [2, 0]])


def test_what_is_heard_goes_into_its_slots_and_layer_only() -> None:
    memory, before = filled(lanes=2), filled(lanes=2)
    k, v = torch.rand(2, 2, 3, 4), torch.rand(2, 2, 3, 4)
    memory.admit(1, torch.tensor([2, 0]), k, v)
    assert torch.equal(memory.cross_k[1, [2, 0]], k)
    assert torch.equal(memory.cross_v[1, [2, 0]], v)
    assert torch.equal(memory.cross_k[1, 1], before.cross_k[1, 1])
    assert torch.equal(memory.cross_v[0], before.cross_v[0])
    assert torch.equal(memory.self_k, before.self_k)
    assert memory.audio.tolist() == [3, 2, 3]


def test_less_audio_than_a_window_is_kept_with_its_length() -> None:
    memory = cache()
    k, v = torch.rand(1, 2, 2, 4), torch.rand(1, 2, 2, 4)
    memory.admit(0, torch.tensor([1]), k, v)
    assert memory.audio.tolist() == [3, 2, 3]
    assert torch.equal(memory.cross_k[0, 1, :, :2], k[0])
    assert torch.equal(memory.cross_v[0, 1, :, :2], v[0])
    assert not memory.cross_k[0, 1, :, 2].any()


@pytest.mark.parametrize(
    ("rows", "hidden"),
    [
        (None, [[0, 1, 1], [0, 0, 1], [0, 0, 0]]),  # slots that hold one, two and three positions
        ([4, 0], [[0, 0, 0], [0, 1, 1]]),
        ([2], [[0, 0, 1]]),
    ],
)
def test_places_without_audio_are_hidden(rows: list[int] | None, hidden: list[list[int]]) -> None:
    memory = filled(slots=3, lanes=2)
    view = layer(memory, 0, at(*[0] * (6 if rows is None else len(rows))), rows, ragged=True)
    assert view.unheard is not None
    assert view.unheard.shape == (len(hidden), 1, 1, 3)
    assert view.unheard[:, 0, 0].int().tolist() == hidden


def test_a_step_hides_places_of_its_own_slots_only() -> None:
    view = layer(filled(slots=3, lanes=2), 1, at(0, 0), None, ragged=True)
    assert view.unheard is not None
    assert view.unheard[:, 0, 0].int().tolist() == [[0, 1, 1]]


def test_where_all_is_whole_there_is_no_mask() -> None:
    assert layer(filled(), 0, at(0, 0, 0), None).unheard is None


# --- moving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_slot_moves_with_all_it_has_seen(lanes: int) -> None:
    memory, before = filled(lanes=lanes), filled(lanes=lanes)
    memory.move(2, 0)
    for name, width in (*((name, lanes) for name in TEXT), *((name, 1) for name in AUDIO)):
        now, then = getattr(memory, name), getattr(before, name)
        assert torch.equal(now[:, :width], then[:, 2 * width :])
        assert torch.equal(now[:, width:], then[:, width:])
    assert memory.audio.tolist() == [3, 2, 3]


def test_lanes_follow_others_as_far_as_the_text_goes() -> None:
    """Rows 1 and 2 change places, 4 takes the first; what is heard stays."""
    memory, before = filled(slots=3, lanes=2), filled(slots=3, lanes=2)
    memory.follow([1, 2, 4], [2, 1, 0], 4)
    for name in TEXT:
        now, then = getattr(memory, name), getattr(before, name)
        assert torch.equal(now[:, :, :, :4], then[:, [0, 2, 1, 3, 0, 5], :, :4])
        assert torch.equal(now[:, :, :, 4:], then[:, :, :, 4:])
    for name in (*AUDIO, "audio"):
        assert torch.equal(getattr(memory, name), getattr(before, name))
