"""OpenAI's `.pt` and Hugging Face's folders become the same state; whatever is damaged becomes one sentence."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import checkpoint
from model.dimensions import Dimensions
from model.errors import ModelError
from model.releases import RELEASES
from model.shapes import tensor_shapes

DIMS = Dimensions(4, 6, 8, 2, 2, 32, 5, 8, 2, 3)
LATER_HALF = ((1, 0), (1, 1), (2, 0), (2, 1))  # of three layers with two heads
HUGGINGFACE_CONFIG = {
    "model_type": "whisper",
    "num_mel_bins": 4,
    "max_source_positions": 6,
    "d_model": 8,
    "encoder_attention_heads": 2,
    "encoder_layers": 2,
    "vocab_size": 32,
    "max_target_positions": 5,
    "decoder_attention_heads": 2,
    "decoder_layers": 3,
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: torch.randn(shape).half() for name, shape in tensor_shapes(DIMS).items()}


def save_pt(path: Path, state: Any, dims: Any = None, **options: Any) -> Path:
    torch.save({"dims": dims or asdict(DIMS), "model_state_dict": state}, path, **options)
    return path


def huggingface_name(name: str) -> str:
    """The name transformers gives to a tensor of openai/whisper."""
    replacements = [
        (r"\.blocks\.", ".layers."),
        (r"\bcross_attn_ln\b", "encoder_attn_layer_norm"),
        (r"\battn_ln\b", "self_attn_layer_norm"),
        (r"\bmlp_ln\b", "final_layer_norm"),
        (r"\bcross_attn\.", "encoder_attn."),
        (r"\battn\.", "self_attn."),
        (r"\.(query|key|value)\.", lambda match: f".{match[1][0]}_proj."),
        (r"\.out\.", ".out_proj."),
        (r"\bmlp\.0\b", "fc1"),
        (r"\bmlp\.2\b", "fc2"),
        (r"encoder\.ln_post\b", "encoder.layer_norm"),
        (r"decoder\.ln\b", "decoder.layer_norm"),
        (r"\btoken_embedding\b", "embed_tokens"),
        (r"\bpositional_embedding\b", "embed_positions.weight"),
    ]
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return "model." + name


def save_huggingface(folder: Path, state: dict[str, Tensor], shards: int = 1, prefix: str = "model.") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HUGGINGFACE_CONFIG))
    renamed = {prefix + huggingface_name(name).removeprefix("model."): tensor for name, tensor in state.items()}
    if shards == 1:
        save_file(renamed, folder / "model.safetensors")
        return folder
    files = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
    weight_map = {name: files[index % shards] for index, name in enumerate(renamed)}
    for file in files:
        save_file({name: renamed[name] for name in renamed if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


# OpenAI's .pt


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pt_file_comes_back(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    path = save_pt(tmp_path / "mine.pt", state, _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load(path)
    assert_same(loaded.state, state)
    assert (loaded.dims, loaded.format) == (DIMS, "openai")
    assert loaded.alignment_heads == LATER_HALF
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_official_name_demands_the_published_digest(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save_pt(tmp_path / "base.pt", state)
    with pytest.raises(
        ModelError, match="is not OpenAI's base: its sha256 begins [0-9a-f]{12} instead of ed3a0b6b1c0e"
    ):
        checkpoint.load(path)


def test_a_published_digest_brings_its_alignment_heads(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_pt(tmp_path / "renamed.pt", state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(RELEASES, "small-example", type(RELEASES["base"])(digest, ((2, 1),)))
    assert checkpoint.load(path).alignment_heads == ((2, 1),)


def test_a_pt_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    path = tmp_path / "hostile.pt"
    torch.save({"dims": asdict(DIMS), "model_state_dict": Hostile()}, path)
    with pytest.raises(ModelError, match="is damaged, or holds more than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("saved", [[1, 2], {"model": {}}, {"dims": {}, "weights": {}}])
def test_a_pt_file_of_something_else_is_refused(tmp_path: Path, saved: Any) -> None:
    path = tmp_path / "other.pt"
    torch.save(saved, path)
    with pytest.raises(ModelError, match="it lacks dims or model_state_dict"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "dims", [{"n_mels": 4}, asdict(DIMS) | {"n_text_layer": 0}, asdict(DIMS) | {"n_vocab": "9"}, [3]]
)
def test_dimensions_must_be_complete_whole_numbers(tmp_path: Path, state: dict[str, Tensor], dims: Any) -> None:
    with pytest.raises(ModelError, match="not a whole number above 0"):
        checkpoint.load(save_pt(tmp_path / "mine.pt", state, dims))


def test_a_missing_tensor_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["decoder.blocks.1.cross_attn.key.weight"], state["decoder.ln.bias"]
    with pytest.raises(ModelError, match=r"lacks the tensor decoder\.ln\.bias and 1 more: it is incomplete"):
        checkpoint.load(save_pt(tmp_path / "mine.pt", state))


def test_an_unexpected_tensor_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["decoder.blocks.0.attn.key.bias"] = torch.zeros(8)
    with pytest.raises(ModelError, match=r"holds the tensor decoder\.blocks\.0\.attn\.key\.bias, which Whisper"):
        checkpoint.load(save_pt(tmp_path / "mine.pt", state))


def test_a_shape_that_contradicts_the_dimensions_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["decoder.token_embedding.weight"] = torch.zeros(33, 8)
    with pytest.raises(ModelError, match=r"token_embedding\.weight in shape \(33, 8\), .* demand \(32, 8\)"):
        checkpoint.load(save_pt(tmp_path / "mine.pt", state))


def test_whole_numbers_are_no_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["encoder.conv1.bias"] = torch.zeros(8, dtype=torch.int8)
    with pytest.raises(ModelError, match=r"encoder\.conv1\.bias as int8: give a model in float32"):
        checkpoint.load(save_pt(tmp_path / "mine.pt", state))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pt_file_cut_short_is_refused(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    data = save_pt(tmp_path / "whole.pt", state, _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for size in (0, 1, 100, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match="is damaged, or holds more than tensors"):
            checkpoint.load(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_noise_in_a_pt_file_never_ends_in_a_traceback(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    data = save_pt(tmp_path / "whole.pt", state, _use_new_zipfile_serialization=zipped).read_bytes()
    generator = torch.Generator().manual_seed(5)
    path = tmp_path / "noisy.pt"
    refused = 0
    for _ in range(60):
        noisy = bytearray(data)
        for position in torch.randint(0, 6_000, (4,), generator=generator).tolist():
            noisy[position] = int(torch.randint(0, 256, (1,), generator=generator))
        path.write_bytes(noisy)
        try:
            checkpoint.load(path)
        except ModelError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(("name", "complaint"), [("gone.pt", "No such file"), ("notes.txt", "is no checkpoint")])
def test_what_is_not_there_or_of_another_kind_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=complaint):
        checkpoint.load(tmp_path / name)


# Hugging Face's folder


def test_the_names_of_hugging_face_are_those_published() -> None:
    """Names as listed in openai/whisper-base on the Hub: the renaming of these tests is itself held to them."""
    assert (
        huggingface_name("decoder.blocks.1.cross_attn.key.weight")
        == "model.decoder.layers.1.encoder_attn.k_proj.weight"
    )
    assert huggingface_name("decoder.blocks.0.attn_ln.bias") == "model.decoder.layers.0.self_attn_layer_norm.bias"
    assert huggingface_name("encoder.blocks.5.mlp.2.weight") == "model.encoder.layers.5.fc2.weight"
    assert huggingface_name("encoder.positional_embedding") == "model.encoder.embed_positions.weight"
    assert huggingface_name("encoder.ln_post.weight") == "model.encoder.layer_norm.weight"


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_hugging_face_folder_comes_back(tmp_path: Path, state: dict[str, Tensor], prefix: str) -> None:
    folder = save_huggingface(tmp_path, state, prefix=prefix)
    loaded = checkpoint.load(folder)
    assert_same(loaded.state, state)
    assert (loaded.dims, loaded.format) == (DIMS, "huggingface")
    assert loaded.alignment_heads == LATER_HALF
    assert loaded.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_shards_come_back_as_one(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = save_huggingface(tmp_path, state, shards=3)
    loaded = checkpoint.load(folder)
    assert_same(loaded.state, state)
    shards = folder.glob("*.safetensors")
    digests = sorted(hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards)
    assert loaded.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_alignment_heads_come_from_the_generation_config(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = save_huggingface(tmp_path, state)
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, 1], [2, 0]]}))
    assert checkpoint.load(folder).alignment_heads == ((0, 1), (2, 0))


@pytest.mark.parametrize("heads", [[[3, 0]], [[0, 2]], [[-1, 0]], [[1]], "all"])
def test_alignment_heads_that_are_not_there_are_refused(tmp_path: Path, state: dict[str, Tensor], heads: Any) -> None:
    folder = save_huggingface(tmp_path, state)
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": heads}))
    with pytest.raises(ModelError, match="alignment_heads"):
        checkpoint.load(folder)


def test_a_tied_projection_is_dropped_and_another_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = save_huggingface(tmp_path, state)
    renamed = {huggingface_name(name): tensor for name, tensor in state.items()}
    embedding = state["decoder.token_embedding.weight"]
    save_file(renamed | {"proj_out.weight": embedding.clone()}, folder / "model.safetensors")
    assert_same(checkpoint.load(folder).state, state)
    save_file(renamed | {"proj_out.weight": embedding + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="an output projection of its own"):
        checkpoint.load(folder)


def test_a_missing_shard_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = save_huggingface(tmp_path, state, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors, which its index lists"):
        checkpoint.load(folder)


def test_a_damaged_folder_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = save_huggingface(tmp_path, state)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    for size in (0, 7, 500, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="no intact safetensors file"):
            checkpoint.load(folder)
    weights.write_bytes(whole)
    for text, complaint in [("{", "is no JSON"), ("[]", "holds no settings"), ("{}", "num_mel_bins is None")]:
        config.write_text(text)
        with pytest.raises(ModelError, match=complaint):
            checkpoint.load(folder)


def test_a_folder_without_weights_is_told_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGGINGFACE_CONFIG))
    with pytest.raises(ModelError, match=r"expected model\.safetensors, its shards and index, or model\.bin"):
        checkpoint.load(tmp_path)


def test_large_v3_is_a_whisper_like_any_other(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """128 mel bands and 51,866 tokens, in a narrow net so that the test stays small."""
    dims = Dimensions(128, 1500, 4, 2, 1, 51866, 448, 4, 2, 1)
    state = {name: torch.zeros(shape).half() for name, shape in tensor_shapes(dims).items()}
    loaded = checkpoint.load(save_pt(tmp_path / "v3.pt", state, asdict(dims)))
    assert loaded.dims.num_languages == 100
    assert loaded.state["encoder.conv1.weight"].shape == (4, 128, 3)
