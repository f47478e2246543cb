"""The net on random weights: the cached path equals the plain one, however rows and prompts are arranged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.dimensions import OFFICIAL, Dimensions
from model.whisper import Whisper, from_state, sinusoids

# Eight mels, 12 audio positions, width 16, two heads, two layers each, 40 tokens, text context 16.
DIMS = Dimensions(8, 12, 16, 2, 2, 40, 16, 16, 2, 2)


def random_state(dims: Dimensions, seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough that every part of the net matters; norms scale by about one."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Whisper(dims).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    scales = {name: 1.0 if name.endswith(("ln.weight", "ln_post.weight")) else 0.0 for name in shapes}
    return {name: scales[name] + 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@cache
def net() -> Whisper:
    return from_state(DIMS, random_state(DIMS))


def features(rows: int, seed: int = 1) -> Tensor:
    return net().encode(torch.randn(rows, 8, 24, generator=torch.Generator().manual_seed(seed)))


def tokens(rows: int, count: int, seed: int = 2) -> Tensor:
    return torch.randint(40, (rows, count), generator=torch.Generator().manual_seed(seed))


def places(rows: int, first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).expand(rows, count)


def plain_features(mel: Tensor) -> Tensor:
    """Features (B, A, D) of windows: the encoder once more."""
    state = net().state_dict()
    for name, stride in (("encoder.conv1", 1), ("encoder.conv2", 2)):
        mel = F.conv1d(mel, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding=1)
        mel = mel * (1 + torch.erf(mel / 2**0.5)) / 2  # GELU, not approximated
    x = mel.transpose(1, 2) + state["encoder.positional_embedding"]
    for layer in range(DIMS.n_audio_layer):
        name = f"encoder.blocks.{layer}."
        normed = norm(x, state, name + "attn_ln")
        x = feed_forward(x + attend(normed, normed, state, name + "attn", None), state, name)
    return norm(x, state, "encoder.ln_post")


def plain_logits(heard: Tensor, said: Tensor) -> Tensor:
    """Logits (B, T, V) of whole texts: the decoder once more, without cache, rows or positions."""
    state = net().state_dict()
    x = state["decoder.token_embedding.weight"][said] + state["decoder.positional_embedding"][: said.shape[1]]
    future = torch.ones(said.shape[1], said.shape[1], dtype=torch.bool).triu(1)
    for layer in range(DIMS.n_text_layer):
        name = f"decoder.blocks.{layer}."
        normed = norm(x, state, name + "attn_ln")
        x = x + attend(normed, normed, state, name + "attn", future)
        x = x + attend(norm(x, state, name + "cross_attn_ln"), heard, state, name + "cross_attn", None)
        x = feed_forward(x, state, name)
    return norm(x, state, "decoder.ln") @ state["decoder.token_embedding.weight"].T


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def feed_forward(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    hidden = F.gelu(linear(norm(x, state, f"{name}mlp_ln"), state, f"{name}mlp.0"))
    return x + linear(hidden, state, f"{name}mlp.2")


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(x: Tensor, heard: Tensor, state: dict[str, Tensor], name: str, hidden: Tensor | None) -> Tensor:
    q, k, v = (
        linear(x, state, f"{name}.query"),
        linear(heard, state, f"{name}.key"),
        linear(heard, state, f"{name}.value"),
    )
    heads = []
    for head in range(DIMS.n_text_head):
        part = slice(8 * head, 8 * head + 8)  # (B, T, head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    return linear(torch.cat(heads, -1), state, f"{name}.out")


def decode_at_once(heard: Tensor, said: Tensor, rows: list[int], slots: int = 4) -> Tensor:
    """Logits of a whole prefill into `rows`."""
    memory, where = net().new_cache(slots), torch.tensor(rows)
    net().admit(heard, memory, where)
    return net().project(net().decode(said, places(*said.shape[:1], 0, said.shape[1]), memory, where))


# --- the decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 3], [3, 1, 0]])
def test_the_decoder_computes_what_it_says(rows: list[int]) -> None:
    heard, said = features(3), tokens(3, 9)
    torch.testing.assert_close(decode_at_once(heard, said, rows), plain_logits(heard, said), atol=1e-4, rtol=1e-4)


def test_token_by_token_equals_all_at_once() -> None:
    heard, said = features(3), tokens(3, 9)
    memory, rows = net().new_cache(3), torch.arange(3)
    net().admit(heard, memory, rows)
    steps = [net().decode(said[:, i : i + 1], places(3, i, 1), memory, rows) for i in range(9)]
    one_by_one = net().project(torch.cat(steps, 1))
    torch.testing.assert_close(one_by_one, decode_at_once(heard, said, [0, 1, 2]), atol=1e-4, rtol=1e-4)


def test_a_prompt_can_be_followed_by_single_tokens() -> None:
    heard, said = features(2), tokens(2, 9)
    memory, rows = net().new_cache(2), torch.arange(2)
    net().admit(heard, memory, rows)
    net().decode(said[:, :6], places(2, 0, 6), memory, rows)
    last = [net().decode(said[:, i : i + 1], places(2, i, 1), memory, rows) for i in (6, 7, 8)]
    expected = plain_logits(heard, said)[:, 6:]
    torch.testing.assert_close(net().project(torch.cat(last, 1)), expected, atol=1e-4, rtol=1e-4)


def test_padding_behind_a_short_prompt_changes_nothing() -> None:
    """Two prompts of 3 and 7 tokens in one prefill, then two steps with the rows at different positions."""
    heard, said = features(2), tokens(2, 9)
    memory, rows = net().new_cache(2), torch.arange(2)
    net().admit(heard, memory, rows)
    padded = said[:, :7].clone()
    padded[0, 3:] = 39
    prefill = net().project(net().decode(padded, places(2, 0, 7), memory, rows))
    expected = plain_logits(heard, said)
    torch.testing.assert_close(prefill[0, 2], expected[0, 2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prefill[1, 6], expected[1, 6], atol=1e-4, rtol=1e-4)
    for step in range(2):
        at = torch.tensor([[3 + step], [7 + step]])
        stepped = net().project(net().decode(said.gather(1, at), at, memory, rows))
        torch.testing.assert_close(stepped[0, 0], expected[0, 3 + step], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stepped[1, 0], expected[1, 7 + step], atol=1e-4, rtol=1e-4)


def test_a_slot_that_is_used_again_remembers_nothing() -> None:
    memory, row = net().new_cache(1), torch.tensor([0])
    for seed in (5, 6):
        heard, said = features(1, seed), tokens(1, 8 if seed == 5 else 4, seed)
        net().admit(heard, memory, row)
        got = net().project(net().decode(said, places(1, 0, said.shape[1]), memory, row))
        torch.testing.assert_close(got, plain_logits(heard, said), atol=1e-4, rtol=1e-4)


def test_a_moved_slot_goes_on_where_it_was() -> None:
    heard, said = features(3), tokens(3, 7)
    memory = net().new_cache(3)
    net().admit(heard, memory, torch.arange(3))
    net().decode(said[:, :6], places(3, 0, 6), memory, torch.arange(3))
    memory.move(2, 0)
    moved = net().project(net().decode(said[[2, 1], 6:], places(2, 6, 1), memory, torch.arange(2)))
    torch.testing.assert_close(moved[:, 0], plain_logits(heard, said)[[2, 1], 6], atol=1e-4, rtol=1e-4)


def test_the_text_depends_on_what_is_heard() -> None:
    said = tokens(1, 4)
    one, other = decode_at_once(features(1, 1), said, [0]), decode_at_once(features(1, 2), said, [0])
    assert (one - other).abs().max() > 0.1


# --- the encoder --------------------------------------------------------------------------------------------------


def random_mel(rows: int) -> Tensor:
    return torch.randn(rows, 8, 24, generator=torch.Generator().manual_seed(3))


def test_the_encoder_computes_what_it_says() -> None:
    mel = random_mel(3)
    torch.testing.assert_close(net().encode(mel), plain_features(mel), atol=1e-4, rtol=1e-4)


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
    memory, row = one.new_cache(1), torch.tensor([0])
    heard = one.encode(torch.randn(1, 128, 3000))
    one.admit(heard, memory, row)
    logits = one.project(one.decode(torch.tensor([[50258, 50259]]), places(1, 0, 2), memory, row))
    assert (heard.shape, logits.shape) == ((1, 1500, 1280), (1, 2, 51866))
    assert logits.isfinite().all()


def test_half_precision_runs_and_stays_close() -> None:
    half = from_state(DIMS, random_state(DIMS), torch.bfloat16)
    memory, rows = half.new_cache(2), torch.arange(2)
    mel = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(1))
    heard = half.encode(mel)
    half.admit(heard, memory, rows)
    said = tokens(2, 5)
    logits = half.project(half.decode(said, places(2, 0, 5), memory, rows))
    assert (heard.dtype, memory.self_k.dtype, logits.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact = plain_logits(features(2), said)
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
