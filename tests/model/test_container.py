"""CTranslate2's container: one written here by the published layout, then cut, bent and broken."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import checkpoint, container
from model.dimensions import Dimensions
from model.errors import ModelError
from model.shapes import tensor_shapes

DIMS = Dimensions(4, 6, 8, 2, 2, 32, 5, 8, 2, 3)
TYPE_IDS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}
TIED = ("decoder/projection/weight", "decoder/embeddings/weight")
Variables = dict[str, Tensor]


def string(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def variable(name: str, tensor: Tensor) -> bytes:
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    head = struct.pack(f"<B{tensor.dim()}IBI", tensor.dim(), *tensor.shape, TYPE_IDS[tensor.dtype], len(data))
    return string(name) + head + data


def written(variables: Variables, aliases: tuple[tuple[str, str], ...] = (TIED,)) -> bytes:
    """A whole `model.bin`."""
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    body = b"".join(variable(name, tensor) for name, tensor in variables.items())
    pairs = b"".join(string(alias) + string(name) for alias, name in aliases)
    return head + body + struct.pack("<I", len(aliases)) + pairs


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: torch.randn(shape).half() for name, shape in tensor_shapes(DIMS).items()}


def norm(name: str, state: dict[str, Tensor], ours: str) -> Variables:
    return {f"{name}/layer_norm/gamma": state[f"{ours}.weight"], f"{name}/layer_norm/beta": state[f"{ours}.bias"]}


def stack(name: str, state: dict[str, Tensor], *ours: str) -> Variables:
    no_bias = torch.zeros_like(state[f"{ours[0]}.weight"][:, 0])  # of the keys
    biases = [state.get(f"{one}.bias", no_bias) for one in ours]
    weights = torch.cat([state[f"{one}.weight"] for one in ours])
    return {f"{name}/weight": weights, f"{name}/bias": torch.cat(biases)}


def block(state: dict[str, Tensor], side: str, layer: int) -> Variables:
    ours, theirs = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
    attention, cross, feed = f"{theirs}/self_attention", f"{theirs}/attention", f"{theirs}/ffn"
    found = norm(attention, state, f"{ours}.attn_ln") | norm(feed, state, f"{ours}.mlp_ln")
    found |= stack(f"{attention}/linear_0", state, *(f"{ours}.attn.{part}" for part in ("query", "key", "value")))
    found |= stack(f"{attention}/linear_1", state, f"{ours}.attn.out")
    found |= stack(f"{feed}/linear_0", state, f"{ours}.mlp.0") | stack(f"{feed}/linear_1", state, f"{ours}.mlp.2")
    if side == "decoder":
        found |= norm(cross, state, f"{ours}.cross_attn_ln")
        found |= stack(f"{cross}/linear_0", state, f"{ours}.cross_attn.query")
        found |= stack(f"{cross}/linear_1", state, f"{ours}.cross_attn.key", f"{ours}.cross_attn.value")
        found |= stack(f"{cross}/linear_2", state, f"{ours}.cross_attn.out")
    return found


def variables_of(state: dict[str, Tensor]) -> Variables:
    """The variables a converter would write, scalar settings included."""
    found = norm("encoder", state, "encoder.ln_post") | norm("decoder", state, "decoder.ln")
    for convolution in ("conv1", "conv2"):
        found |= stack(f"encoder/{convolution}", state, f"encoder.{convolution}")
    found["encoder/position_encodings/encodings"] = state["encoder.positional_embedding"]
    found["decoder/position_encodings/encodings"] = state["decoder.positional_embedding"]
    found["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    found["encoder/num_heads"] = torch.tensor(DIMS.n_audio_head, dtype=torch.int16)
    found["decoder/num_heads"] = torch.tensor(DIMS.n_text_head, dtype=torch.int16)
    found["decoder/pre_norm"] = torch.tensor(1, dtype=torch.int8)
    for side, layers in (("encoder", DIMS.n_audio_layer), ("decoder", DIMS.n_text_layer)):
        for layer in range(layers):
            found |= block(state, side, layer)
    return found


@pytest.fixture
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    (tmp_path / "model.bin").write_bytes(written(variables_of(state)))
    (tmp_path / "config.json").write_text(json.dumps({"alignment_heads": [[1, 0], [2, 1]]}))
    return tmp_path


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_every_tensor_comes_back(folder: Path, state: dict[str, Tensor]) -> None:
    loaded = checkpoint.load(folder)
    assert_same(loaded.state, state)
    assert loaded.dims == DIMS
    assert loaded.alignment_heads == ((1, 0), (2, 1))
    assert loaded.sha256 == hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    assert loaded.format == "ctranslate2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stored_precision_is_kept(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    (tmp_path / "model.bin").write_bytes(written(variables_of(state)))
    (tmp_path / "config.json").write_text("{}")
    assert_same(checkpoint.load(tmp_path).state, state)


@pytest.mark.parametrize("cuts", [(1,), (5_000,), (3, 4, 20_001)])
def test_a_split_container_is_one_container(
    folder: Path, state: dict[str, Tensor], tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    data = (folder / "model.bin").read_bytes()
    bounds = [0, *cuts, len(data)]
    parts = [tmp_path / f"model.bin.part{index}" for index in range(len(bounds) - 1)]
    for part, start, end in zip(parts, bounds, bounds[1:], strict=False):
        part.write_bytes(data[start:end])
    (folder / "model.bin").unlink()
    loaded = checkpoint.load(folder, parts)
    assert_same(loaded.state, state)
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()


def test_positions_left_out_are_computed(folder: Path, state: dict[str, Tensor]) -> None:
    variables = variables_of(state)
    del variables["encoder/position_encodings/encodings"]
    (folder / "model.bin").write_bytes(written(variables))
    loaded = checkpoint.load(folder)
    positions = loaded.state["encoder.positional_embedding"]
    assert loaded.dims.n_audio_ctx == 1500
    assert positions.shape == (1500, DIMS.n_audio_state)
    assert positions[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # sin 0, cos 0


def test_an_alias_stands_for_its_tensor(folder: Path, state: dict[str, Tensor]) -> None:
    state["decoder.ln.bias"] = state["encoder.ln_post.bias"]
    variables = variables_of(state)
    del variables["decoder/layer_norm/beta"]
    aliases = (TIED, ("decoder/layer_norm/beta", "encoder/layer_norm/beta"))
    (folder / "model.bin").write_bytes(written(variables, aliases))
    assert_same(checkpoint.load(folder).state, state)


def quantised(variables: Variables) -> None:
    variables["encoder/layer_0/ffn/linear_0/weight"] = torch.ones(32, 8, dtype=torch.int8)


def untied(variables: Variables) -> None:
    variables["decoder/projection/weight"] = torch.ones(32, 8).half()


def key_bias(variables: Variables) -> None:
    variables["decoder/layer_1/self_attention/linear_0/bias"][8] = 1.0


def stranger(variables: Variables) -> None:
    variables["decoder/layer_0/adapter/weight"] = torch.ones(2).half()


def headless(variables: Variables) -> None:
    del variables["decoder/num_heads"]


def incomplete(variables: Variables) -> None:
    del variables["decoder/layer_2/ffn/linear_1/bias"]


def reshaped(variables: Variables) -> None:
    variables["encoder/conv2/bias"] = torch.ones(7).half()


def uncuttable(variables: Variables) -> None:
    variables["decoder/layer_0/attention/linear_1/bias"] = torch.zeros(15).half()


@pytest.mark.parametrize(
    ("bend", "complaint"),
    [
        (quantised, r"is quantised .* int8\): give a float16 or float32 conversion"),
        (untied, "output projection is not the token embedding"),
        (key_bias, "gives the keys a bias"),
        (stranger, "Whisper has no tensor decoder/layer_0/adapter/weight"),
        (headless, "dimensions cannot be told"),
        (incomplete, r"lacks the tensor decoder\.blocks\.2\.mlp\.2\.bias"),
        (reshaped, r"encoder\.conv2\.bias in shape \(7,\), where its dimensions demand \(8,\)"),
        (uncuttable, "cannot be cut into 2"),
    ],
)
def test_what_is_no_plain_whisper_is_refused(
    folder: Path, state: dict[str, Tensor], bend: Callable[[Variables], None], complaint: str
) -> None:
    variables = variables_of(state)
    bend(variables)
    aliases = () if "decoder/projection/weight" in variables else (TIED,)
    (folder / "model.bin").write_bytes(written(variables, aliases))
    with pytest.raises(ModelError, match=complaint):
        checkpoint.load(folder)


def test_another_model_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<I", 6) + string("TransformerSpec") + struct.pack("<II", 7, 0))
    with pytest.raises(ModelError, match="'TransformerSpec' model: give one converted from Whisper"):
        container.read([path])


def test_another_version_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<I", 4) + b"anything")
    with pytest.raises(ModelError, match="its version is 4, and only 6 is read"):
        container.read([path])


def test_a_container_cut_anywhere_is_refused(folder: Path) -> None:
    data = (folder / "model.bin").read_bytes()
    path = folder / "cut.bin"
    for size in [*range(0, 400, 7), *range(400, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match="fetch the model again"):
            container.read([path])


def test_bytes_after_the_end_are_refused(folder: Path) -> None:
    path = folder / "model.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="1 bytes follow its end"):
        container.read([path])


def test_a_tensor_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 2)
    path.write_bytes(head + 2 * variable("encoder/conv1/bias", torch.ones(8)))
    with pytest.raises(ModelError, match="encoder/conv1/bias occurs twice"):
        container.read([path])


def test_a_size_beyond_the_file_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 1)
    path.write_bytes(head + string("x") + struct.pack("<BIIBI", 2, 2**15, 2**15, 0, 2**32 - 1))
    with pytest.raises(ModelError, match="type, shape and size of x contradict one another"):
        container.read([path])
    path.write_bytes(head + string("x") + struct.pack("<BIIBI", 2, 2**15, 2**14, 0, 2**31))
    with pytest.raises(ModelError, match="ends too early"):
        container.read([path])


def test_noise_never_ends_in_a_traceback(folder: Path) -> None:
    """Any byte of the layout may be wrong: the outcome is a ModelError, or tensors with other numbers in them."""
    data = (folder / "model.bin").read_bytes()
    path = folder / "noisy.bin"
    generator = torch.Generator().manual_seed(3)
    refused = 0
    for _ in range(300):
        noisy = bytearray(data)
        for position in torch.randint(0, 1_000, (3,), generator=generator).tolist():
            noisy[position] = int(torch.randint(0, 256, (1,), generator=generator))
        path.write_bytes(noisy)
        try:
            container.read([path])
        except ModelError:
            refused += 1
    assert 50 < refused < 300
