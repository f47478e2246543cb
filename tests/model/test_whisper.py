"""The net on random weights: the cached path equals the plain one, however rows, lanes and prompts are arranged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from model.cache import DecoderCache, Reach
from model.dimensions import OFFICIAL, Dimensions
from model.whisper import Whisper, from_state, sinusoids
from tests.model.plain import Plain, random_state

# Eight mels, 12 audio positions, width 16, two heads, two layers each, 40 tokens, text context 16.
DIMS = Dimensions(8, 12, 16, 2, 2, 40, 16, 16, 2, 2)
PLAIN = Plain(DIMS, random_state(DIMS))


@cache
def net() -> Whisper:
    return from_state(DIMS, random_state(DIMS))


def features(rows: int, seed: int = 1, frames: int = 24) -> Tensor:
    return net().encode(torch.randn(rows, 8, frames, generator=torch.Generator().manual_seed(seed)))


def tokens(rows: int, count: int, seed: int = 2) -> Tensor:
    return torch.randint(40, (rows, count), generator=torch.Generator().manual_seed(seed))


def places(rows: int, first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).expand(rows, count)


def memory_of(heard: Tensor, slots: int | None = None, lanes: int = 1) -> DecoderCache:
    """A cache whose first slots hold these features (B, A, D)."""
    memory = net().new_cache(slots or len(heard), lanes)
    net().admit(heard, memory, torch.arange(len(heard)))
    return memory


def decode(
    memory: DecoderCache, said: Tensor, at: Tensor, rows: list[int] | None = None, ragged: bool = False
) -> Tensor:
    """Logits (B, T, V) of one pass into `rows`, or into all lanes of the first slots."""
    reach = Reach(None if rows is None else torch.tensor(rows), int(at.max()) + 1, ragged)
    return net().project(net().decode(said, at, memory, reach))


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# --- the decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 3], [3, 1, 0], None])
def test_the_decoder_computes_what_it_says(rows: list[int] | None) -> None:
    heard, said, memory = features(3), tokens(3, 9), net().new_cache(4)
    net().admit(heard, memory, torch.tensor(rows or [0, 1, 2]))
    assert_close(decode(memory, said, places(3, 0, 9), rows), PLAIN.logits(heard, said))


def test_token_by_token_equals_all_at_once() -> None:
    heard, said = features(3), tokens(3, 9)
    memory = memory_of(heard)
    one_by_one = torch.cat([decode(memory, said[:, i : i + 1], places(3, i, 1)) for i in range(9)], 1)
    assert_close(one_by_one, decode(memory_of(heard), said, places(3, 0, 9), [0, 1, 2]))
    assert_close(one_by_one, PLAIN.logits(heard, said))


def test_a_prompt_can_be_followed_by_single_tokens() -> None:
    heard, said = features(2), tokens(2, 9)
    memory = memory_of(heard)
    decode(memory, said[:, :6], places(2, 0, 6), [0, 1])
    last = torch.cat([decode(memory, said[:, i : i + 1], places(2, i, 1)) for i in (6, 7, 8)], 1)
    assert_close(last, PLAIN.logits(heard, said)[:, 6:])


def test_padding_behind_a_short_prompt_changes_nothing() -> None:
    """Two prompts of 3 and 7 tokens in one prefill, then two steps with the rows at different positions."""
    heard, said = features(2), tokens(2, 9)
    memory = memory_of(heard)
    padded = said[:, :7].clone()
    padded[0, 3:] = 39
    prefill = decode(memory, padded, places(2, 0, 7), [0, 1])
    expected = PLAIN.logits(heard, said)
    assert_close(prefill[0, 2], expected[0, 2])
    assert_close(prefill[1, 6], expected[1, 6])
    for step in range(2):
        at = torch.tensor([[3 + step], [7 + step]])
        stepped = decode(memory, said.gather(1, at), at)
        assert_close(stepped[0, 0], expected[0, 3 + step])
        assert_close(stepped[1, 0], expected[1, 7 + step])


def test_a_slot_that_is_used_again_remembers_nothing() -> None:
    memory = net().new_cache(1)
    for seed in (5, 6):
        heard, said = features(1, seed), tokens(1, 8 if seed == 5 else 4, seed)
        net().admit(heard, memory, torch.tensor([0]))
        assert_close(decode(memory, said, places(1, 0, said.shape[1]), [0]), PLAIN.logits(heard, said))


def test_a_moved_slot_goes_on_where_it_was() -> None:
    heard, said = features(3), tokens(3, 7)
    memory = memory_of(heard)
    decode(memory, said[:, :6], places(3, 0, 6), [0, 1, 2])
    memory.move(2, 0)
    moved = decode(memory, said[[2, 1], 6:], places(2, 6, 1))
    assert_close(moved[:, 0], PLAIN.logits(heard, said)[[2, 1], 6])


def test_the_text_depends_on_what_is_heard() -> None:
    said = tokens(1, 4)
    one, other = (decode(memory_of(features(1, seed)), said, places(1, 0, 4)) for seed in (1, 2))
    assert (one - other).abs().max() > 0.1


# --- lanes --------------------------------------------------------------------------------------------------------


def test_lanes_of_a_slot_say_different_things_about_what_they_hear() -> None:
    """Two slots of three lanes: one prompt each, which the other lanes take over, then a text in every lane."""
    heard, prompts, said = features(2), tokens(2, 4), tokens(6, 3, seed=7)
    memory = memory_of(heard, slots=3, lanes=3)
    decode(memory, prompts, places(2, 0, 4), [0, 3])
    memory.follow([1, 2, 4, 5], [0, 0, 3, 3], 4)
    steps = torch.cat([decode(memory, said[:, i : i + 1], places(6, 4 + i, 1)) for i in range(3)], 1)
    whole = torch.cat([prompts.repeat_interleave(3, 0), said], 1)
    assert_close(steps, PLAIN.logits(heard.repeat_interleave(3, 0), whole)[:, 4:])


def test_lanes_stand_at_positions_of_their_slot() -> None:
    heard, said = features(2), tokens(4, 9)
    memory = memory_of(heard, lanes=2)
    for row in range(4):
        decode(memory, said[row : row + 1, :8], places(1, 0, 8), [row])
    at = torch.tensor([[3], [3], [8], [8]])
    expected = PLAIN.logits(heard.repeat_interleave(2, 0), said)
    assert_close(decode(memory, said.gather(1, at), at), expected.gather(1, at[:, :, None].expand(-1, 1, 40)))


def test_a_lane_goes_on_from_the_history_it_follows() -> None:
    """As in beam search: lanes 0 and 1 change places, and 2 takes what 0 had."""
    heard, said, last = features(1), tokens(3, 5), tokens(3, 1, seed=8)
    memory = memory_of(heard, lanes=3)
    for row in range(3):
        decode(memory, said[row : row + 1], places(1, 0, 5), [row])
    memory.follow([0, 1, 2], [1, 0, 0], 5)
    whole = torch.cat([said[[1, 0, 0]], last], 1)
    assert_close(decode(memory, last, places(3, 5, 1)), PLAIN.logits(heard.expand(3, -1, -1), whole)[:, 5:])


# --- windows of different lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_ragged_slot_hears_what_it_would_hear_alone(lanes: int) -> None:
    """Slots of 12, 5 and 9 positions, in which a whole window was heard before."""
    own = [features(1, seed, frames) for seed, frames in ((3, 24), (4, 10), (5, 18))]
    memory = memory_of(features(3), lanes=lanes)
    for slot, heard in enumerate(own):
        net().admit(heard, memory, torch.tensor([slot]))
    said = tokens(3, 6).repeat_interleave(lanes, 0)
    prompt = decode(memory, said[:, :5], places(3 * lanes, 0, 5), ragged=True)
    step = decode(memory, said[:, 5:], places(3 * lanes, 5, 1), ragged=True)
    for slot, heard in enumerate(own):
        for row in range(slot * lanes, (slot + 1) * lanes):
            expected = PLAIN.logits(heard, said[row : row + 1])[0]
            assert_close(torch.cat([prompt[row], step[row]]), expected)


def test_ragged_rows_of_a_prefill_are_those_of_their_slots() -> None:
    own = [features(1, seed, frames) for seed, frames in ((3, 24), (4, 10), (5, 18))]
    memory = net().new_cache(3, lanes=2)
    for slot, heard in enumerate(own):
        net().admit(heard, memory, torch.tensor([slot]))
    said = tokens(2, 5)
    prefill = decode(memory, said, places(2, 0, 5), [4, 2], ragged=True)
    assert_close(prefill[0], PLAIN.logits(own[2], said[:1])[0])
    assert_close(prefill[1], PLAIN.logits(own[1], said[1:])[0])


def test_a_mask_over_whole_windows_hides_nothing() -> None:
    heard, said = features(2), tokens(2, 5)
    masked = decode(memory_of(heard), said, places(2, 0, 5), ragged=True)
    assert_close(masked, decode(memory_of(heard), said, places(2, 0, 5)))


def test_a_whole_window_is_whole_again_where_a_short_one_was() -> None:
    memory = memory_of(features(1, 4, frames=10))
    heard, said = features(1), tokens(1, 5)
    net().admit(heard, memory, torch.tensor([0]))
    assert_close(decode(memory, said, places(1, 0, 5), ragged=True), PLAIN.logits(heard, said))


# --- the encoder --------------------------------------------------------------------------------------------------


def random_mel(rows: int, frames: int = 24) -> Tensor:
    return torch.randn(rows, 8, frames, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("frames", [24, 10, 2])
def test_the_encoder_computes_what_it_says(frames: int) -> None:
    mel = random_mel(3, frames)
    assert_close(net().encode(mel), PLAIN.features(mel))


def test_windows_are_encoded_independently() -> None:
    mel = random_mel(3)
    together = net().encode(mel)
    assert together.shape == (3, 12, 16)
    for window, encoded in zip(mel, together, strict=True):
        torch.testing.assert_close(net().encode(window[None])[0], encoded, atol=1e-5, rtol=1e-4)


def test_every_encoder_position_hears_the_whole_window() -> None:
    quiet, loud = torch.zeros(1, 8, 24), torch.zeros(1, 8, 24)
    loud[..., -1] = 5.0
    assert ((net().encode(quiet) - net().encode(loud)).abs().amax(-1) > 1e-3).all()


def test_positions_are_sines_then_cosines() -> None:
    table = sinusoids(1500, 384)
    assert (table.shape, table.dtype) == ((1500, 384), torch.float32)
    assert table[0].tolist() == [0.0] * 192 + [1.0] * 192
    for position, channel, timescale in [(1, 0, 1.0), (7, 0, 1.0), (1499, 191, 10_000.0), (700, 191, 10_000.0)]:
        angle = torch.tensor(position / timescale, dtype=torch.float64)
        assert table[position, channel].item() == pytest.approx(angle.sin().item(), abs=1e-4)
        assert table[position, 192 + channel].item() == pytest.approx(angle.cos().item(), abs=1e-4)


# --- sizes and precision ------------------------------------------------------------------------------------------

# Parameters of the published checkpoints, in millions (openai/whisper, model card; turbo: its release notes).
SIZES = {"tiny": 37.2, "base": 71.8, "small": 240.6, "medium": 762.3, "large-v1": 1541.4, "large-v2": 1541.4}
SIZES |= {"large-v3": 1541.6, "large-v3-turbo": 807.0}


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        full = Whisper(OFFICIAL[name])
    assert round(sum(weight.numel() for weight in full.parameters()) / 1e6, 1) == SIZES[name]


def test_the_weights_are_named_as_in_the_published_checkpoints() -> None:
    names = set(net().state_dict())
    attention = {"query.weight", "query.bias", "key.weight", "value.weight", "value.bias", "out.weight", "out.bias"}
    assert {
        name.removeprefix("decoder.blocks.1.cross_attn.") for name in names if ".1.cross_attn." in name
    } == attention
    assert {name for name in names if "blocks" not in name} == {
        *(f"encoder.{name}" for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")),
        *(f"encoder.{name}" for name in ("positional_embedding", "ln_post.weight", "ln_post.bias")),
        *(f"decoder.{name}" for name in ("token_embedding.weight", "positional_embedding", "ln.weight", "ln.bias")),
    }
    assert {"encoder.blocks.0.mlp.0.weight", "encoder.blocks.1.mlp_ln.bias", "decoder.blocks.0.mlp.2.bias"} < names


@pytest.mark.parametrize("name", ["large-v3", "large-v3-turbo"])
def test_the_largest_shapes_encode_and_decode(name: str) -> None:
    """128 mels, width 1280, 20 heads and 51,866 tokens, one layer deep."""
    dims = replace(OFFICIAL[name], n_audio_layer=1, n_text_layer=1)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in Whisper(dims).state_dict().items()}
    one = from_state(dims, {key: torch.full(shape, 0.01) for key, shape in shapes.items()})
    memory = one.new_cache(1)
    heard = one.encode(torch.randn(1, 128, 3000))
    one.admit(heard, memory, torch.tensor([0]))
    logits = one.project(one.decode(torch.tensor([[50258, 50259]]), places(1, 0, 2), memory, Reach(None, 2)))
    assert (heard.shape, logits.shape) == ((1, 1500, 1280), (1, 2, 51866))
    assert logits.isfinite().all()


def test_half_precision_runs_and_stays_close() -> None:
    half = from_state(DIMS, random_state(DIMS), torch.bfloat16)
    memory = half.new_cache(2)
    mel = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(1))
    heard = half.encode(mel)
    half.admit(heard, memory, torch.arange(2))
    said = tokens(2, 5)
    logits = half.project(half.decode(said, places(2, 0, 5), memory, Reach(None, 5)))
    assert (heard.dtype, memory.cross_k.dtype, logits.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact = PLAIN.logits(features(2), said)
    assert (logits - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_weights_are_adopted_not_copied_and_ready_to_infer() -> None:
    state = random_state(DIMS)
    one = from_state(DIMS, state)
    assert one.decoder.token_embedding.weight.data_ptr() == state["decoder.token_embedding.weight"].data_ptr()
    assert not one.training
    assert not any(weight.requires_grad for weight in one.parameters())
    assert (one.dtype, one.device) == (torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", ["decoder.ln.bias", "encoder.positional_embedding"])
def test_a_missing_weight_is_noticed(name: str) -> None:
    state = random_state(DIMS)
    del state[name]
    with pytest.raises(RuntimeError, match=name):
        from_state(DIMS, state)
