"""The net in every number format: the one asked for, close to float32, its weights laid out anew where that pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.cache import Reach
from model.dimensions import Dimensions
from model.precision import DTYPES, PackedLinear, load_net
from model.whisper import LayerNorm, Whisper, from_state
from tests.model.plain import Plain, random_state

# Eight mels, 12 audio positions, width 16, two heads, two layers each, 40 tokens, text context 16.
DIMS = Dimensions(8, 12, 16, 2, 2, 40, 16, 16, 2, 2)
CPU = torch.device("cpu")
# How far logits may lie from those of float32, as a share of their size: some units in the last place, added up.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}

packs = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no kernels for bfloat16",
)


def loaded(precision: str, dims: Dimensions = DIMS) -> Whisper:
    return load_net(dims, random_state(dims), precision, CPU)


def logits(net: Whisper, rows: int = 2) -> Tensor:
    """Of a prompt of four tokens and a step of one, in `rows` slots: (rows, 5, V)."""
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(rows, net.dims.n_mels, 24, generator=generator)
    said = torch.randint(net.dims.n_vocab, (rows, 5), generator=generator)
    memory, at = net.new_cache(rows), torch.arange(5).expand(rows, 5)
    net.admit(net.encode(mel), memory, torch.arange(rows))
    prompt = net.project(net.decode(said[:, :4], at[:, :4], memory, Reach(torch.arange(rows), 4)))
    return torch.cat([prompt, net.project(net.decode(said[:, 4:], at[:, 4:], memory, Reach(None, 5)))], 1)


def linears(net: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}


def packed(net: nn.Module) -> dict[str, PackedLinear]:
    return {name: module for name, module in net.named_modules() if isinstance(module, PackedLinear)}


# --- a net in each precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", DTYPES)
def test_a_net_has_the_precision_that_was_asked_for(precision: str) -> None:
    net = loaded(precision)
    assert net.dtype == DTYPES[precision]
    assert {weight.dtype for weight in net.parameters()} == {DTYPES[precision]}
    assert net.encode(torch.zeros(1, 8, 24)).dtype == DTYPES[precision]
    assert net.device == CPU and not net.training
    assert not any(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize("precision", DTYPES)
def test_every_precision_computes_nearly_the_same(precision: str) -> None:
    state, net = random_state(DIMS), loaded(precision)
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 8, 24, generator=generator)
    said = torch.randint(40, (2, 5), generator=generator)
    plain = Plain(DIMS, state)
    expected, found = plain.logits(plain.features(mel), said), logits(net)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < TOLERANCE[precision] * expected.abs().mean()
    assert (found - expected).abs().max() < 4 * TOLERANCE[precision] * expected.abs().max()


@pytest.mark.parametrize("precision", DTYPES)
def test_a_row_computes_the_same_beside_any_other(precision: str) -> None:
    """Within rounding: kernels differ with the number of rows."""
    net = loaded(precision)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(16, 3, DIMS.n_text_state, generator=generator).to(net.dtype)
    together = net.project(hidden)
    alone = torch.stack([net.project(row[None])[0] for row in hidden])
    torch.testing.assert_close(together, alone, atol=TOLERANCE[precision], rtol=TOLERANCE[precision])


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError, match="float8"):
        loaded("float8")


def test_float32_adopts_the_weights_and_packs_nothing() -> None:
    state = random_state(DIMS)
    net = load_net(DIMS, state, "float32", CPU)
    assert not packed(net) and net.unembedding is None
    for name, weight in net.state_dict().items():
        assert weight.data_ptr() == state[name].data_ptr(), name


@pytest.mark.parametrize("precision", DTYPES)
def test_the_checkpoint_is_not_changed(precision: str) -> None:
    """It may serve several nets, and its checksum names the generation."""
    state = random_state(DIMS)
    net = load_net(DIMS, state, precision, CPU)
    once = logits(net)
    for name, weight in random_state(DIMS).items():
        assert torch.equal(state[name], weight) and state[name].dtype == torch.float32, name
    assert torch.equal(logits(load_net(DIMS, state, precision, CPU)), once)
    assert torch.equal(logits(net), once)


# --- weights laid out anew ----------------------------------------------------------------------------------------


@packs
@pytest.mark.parametrize("rows", [1, 2, 16, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 40, bias=bias).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(rows, 3, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = PackedLinear(layer)(x)
    assert (found.dtype, found.shape) == (torch.bfloat16, (rows, 3, 40))
    torch.testing.assert_close(found, layer(x), atol=0.02, rtol=0.02)
    exact = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


@packs
def test_a_packed_layer_takes_rows_from_anywhere() -> None:
    """A slice of a larger tensor, and a single row that lost its dimension of tokens."""
    layer = nn.Linear(48, 40).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(6, 5, 96, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    one = PackedLinear(layer)
    for view in (x[::2, 1:4, :48], x[:, 0, 48:], x[2, :, :48], x[..., :48].transpose(0, 1)):
        torch.testing.assert_close(one(view), layer(view), atol=0.02, rtol=0.02)


@packs
def test_packing_leaves_the_layer_as_it_was() -> None:
    layer = nn.Linear(48, 40).to(torch.bfloat16).requires_grad_(False)
    before = layer.weight.clone()
    one = PackedLinear(layer)
    assert torch.equal(layer.weight, before)
    layer.weight.zero_()
    assert one(torch.ones(1, 48, dtype=torch.bfloat16)).abs().max() > 0.1, "the packed weights are a view"


@packs
def test_every_linear_layer_is_packed_and_nothing_else() -> None:
    net, plain = loaded("bfloat16"), from_state(DIMS, random_state(DIMS), torch.bfloat16)
    assert not linears(net)
    assert set(packed(net)) == {*linears(plain), "unembedding"}
    kept = (nn.Conv1d, nn.Embedding, LayerNorm, nn.GELU)
    for name, module in plain.named_modules():
        if isinstance(module, kept):
            assert type(net.get_submodule(name)) is type(module)


@packs
def test_each_packed_layer_has_its_own_weights() -> None:
    """Layers of one shape are many; each computes what the one of its name did."""
    net, plain = loaded("bfloat16"), from_state(DIMS, random_state(DIMS), torch.bfloat16)
    for name, layer in linears(plain).items():
        x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        found = net.get_submodule(name)(x)
        torch.testing.assert_close(found, layer(x), atol=0.02, rtol=0.02, msg=f"{name} computes something else")


@packs
def test_tokens_are_read_and_written_with_the_same_weights() -> None:
    net = loaded("bfloat16")
    embedding = random_state(DIMS)["decoder.token_embedding.weight"].to(torch.bfloat16)
    assert torch.equal(net.decoder.token_embedding(torch.arange(40)), embedding)
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    torch.testing.assert_close(net.project(hidden), (hidden.float() @ embedding.float().T), atol=0.05, rtol=0.02)


def test_a_cpu_without_bfloat16_computes_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for packed weights refuse to run there; torch's own do not."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    net = loaded("bfloat16", replace(DIMS, n_audio_layer=1))
    assert not packed(net) and net.unembedding is None
    assert logits(net).isfinite().all()
