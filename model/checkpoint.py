"""A checkpoint on disk becomes one state dict, under the names of openai/whisper, whatever wrote it.

Three formats are read: OpenAI's `.pt`, Hugging Face's safetensors folder, and CTranslate2's folder. It refuses to
know names of models, caches and packages (that is `pipeline/weights.py`) and the net: tensors are checked against
the shapes that the dimensions demand, and keep the precision they were stored in.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import container
from model.dimensions import Dimensions
from model.errors import ModelError
from model.releases import RELEASES, AlignmentHeads
from model.shapes import tensor_shapes
from model.whisper import sinusoids

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)

# What torch.load raises on files that are cut short, changed, or hold more than tensors.
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, AssertionError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ArithmeticError),
)

# Hugging Face's names, part by part, in the order in which they are replaced (transformers, convert_openai_to_hf.py).
_HUGGINGFACE_NAMES = (
    ("layers.", "blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("self_attn.", "attn."),
    ("encoder_attn.", "cross_attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("embed_tokens", "token_embedding"),
    ("embed_positions.weight", "positional_embedding"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
)
_HUGGINGFACE_DIMENSIONS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights and the little that must be known about them; `state` is what `model.whisper.from_state` takes."""

    state: dict[str, Tensor]
    dims: Dimensions
    alignment_heads: AlignmentHeads
    sha256: str  # of the bytes of the weights; of several safetensors files: of their digests, sorted
    format: str  # openai, huggingface or ctranslate2


def load(path: Path, parts: Sequence[Path] = ()) -> Checkpoint:
    """Read a `.pt` file, or a folder with `config.json` and the weights of Hugging Face or CTranslate2.

    `parts` are the pieces of a CTranslate2 `model.bin` that was split, in order, wherever they lie.

    Raises: `ModelError` when the checkpoint is missing, damaged, incomplete, or of another format.
    """
    try:
        checkpoint = _load_folder(path, parts) if path.is_dir() else _load_file(path)
    except OSError as error:
        raise ModelError(f"The model {path} cannot be read: {error.strerror or error}.") from error
    _verify(checkpoint, path)
    return checkpoint


def _verify(checkpoint: Checkpoint, path: Path) -> None:
    expected, found = tensor_shapes(checkpoint.dims), checkpoint.state
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [name for name in expected if name in found and tuple(found[name].shape) != expected[name]]
    typed = [name for name in found if found[name].dtype not in PRECISIONS]
    if missing:
        raise ModelError(f"{path} lacks {_some(missing)}: it is incomplete, or no Whisper model.")
    if unexpected:
        raise ModelError(f"{path} holds {_some(unexpected)}, which Whisper does not have: give a plain Whisper model.")
    if wrong:
        shape, wanted = tuple(found[wrong[0]].shape), expected[wrong[0]]
        raise ModelError(f"{path} holds {wrong[0]} in shape {shape}, where its dimensions demand {wanted}.")
    if typed:
        dtype = str(found[typed[0]].dtype).removeprefix("torch.")
        raise ModelError(f"{path} holds {typed[0]} as {dtype}: give a model in float32, float16 or bfloat16.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the tensor {names[0]}{more}"


# OpenAI's .pt


def _load_file(path: Path) -> Checkpoint:
    if path.suffix != ".pt":
        raise ModelError(
            f"{path} is no checkpoint: give a .pt file, or the folder that holds config.json with "
            f"model.safetensors or model.bin."
        )
    sha256 = _digest(path)
    release = RELEASES.get(path.stem)
    if release and release.sha256 != sha256:
        raise ModelError(
            f"{path} is not OpenAI's {path.stem}: its sha256 begins {sha256[:12]} instead of "
            f"{release.sha256[:12]}; fetch it again, or give another name to weights of your own."
        )
    saved = _unpickle(path)
    if not isinstance(saved, dict) or not {"dims", "model_state_dict"} <= saved.keys():
        raise ModelError(f"{path} is no checkpoint of Whisper: it lacks dims or model_state_dict.")
    dims = _dimensions(saved["dims"], {field.name: field.name for field in fields(Dimensions)}, path)
    heads = next((known.alignment_heads for known in RELEASES.values() if known.sha256 == sha256), None)
    return Checkpoint(_tensors(saved["model_state_dict"], path), dims, _heads(heads, dims, path), sha256, "openai")


def _unpickle(path: Path) -> Any:
    try:
        # Mapped files are read when a tensor is used, once; the oldest format of torch cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as error:
        raise ModelError(f"{path} is damaged, or holds more than tensors: fetch the model again.") from error


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path} is no checkpoint of Whisper: its model_state_dict holds more than tensors.")
    return dict(state)


# Folders


def _load_folder(path: Path, parts: Sequence[Path]) -> Checkpoint:
    shards = [] if parts else _shards(path)
    if shards:
        return _load_huggingface(path, shards)
    parts = parts or [path / "model.bin"]
    if not parts[0].exists():
        raise ModelError(f"{path} holds no weights: expected model.safetensors, its shards and index, or model.bin.")
    state, dims, sha256 = container.read(parts)
    # Left out by some converters; they never change.
    state.setdefault("encoder.positional_embedding", sinusoids(dims.n_audio_ctx, dims.n_audio_state))
    heads = _heads(_json(path / "config.json").get("alignment_heads"), dims, path)
    return Checkpoint(state, dims, heads, sha256, "ctranslate2")


def _load_huggingface(path: Path, shards: list[Path]) -> Checkpoint:
    dims = _dimensions(_json(path / "config.json"), _HUGGINGFACE_DIMENSIONS, path)
    state = {_openai_name(name): tensor for shard in shards for name, tensor in _read_safetensors(shard)}
    state.setdefault("encoder.positional_embedding", sinusoids(dims.n_audio_ctx, dims.n_audio_state))
    projection = state.pop("proj_out.weight", None)
    if projection is not None and not torch.equal(projection, state.get("decoder.token_embedding.weight", projection)):
        raise ModelError(f"{path} has an output projection of its own: Whisper's is the token embedding.")
    generation = path / "generation_config.json"
    heads = _json(generation).get("alignment_heads") if generation.exists() else None
    digests = sorted(_digest(shard) for shard in shards)
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Checkpoint(state, dims, _heads(heads, dims, path), sha256, "huggingface")


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a folder: the whole model in one, or those that its index lists."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole] if whole.exists() else []
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} lists no shards: fetch the model again.")
    shards = [path / Path(str(name)).name for name in sorted(set(map(str, weight_map.values())))]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise ModelError(f"{path} lacks {absent[0]}, which its index lists: fetch the model again.")
    return shards


def _read_safetensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{shard} is no intact safetensors file: {error}; fetch the model again.") from error


def _openai_name(name: str) -> str:
    name = name.removeprefix("model.")
    for theirs, ours in _HUGGINGFACE_NAMES:
        name = name.replace(theirs, ours)
    return name


# What the formats share


def _dimensions(values: Any, names: dict[str, str], path: Path) -> Dimensions:
    """Dimensions from a mapping that calls them by `names`; each is a whole number above 0."""
    found = {ours: values.get(theirs) if isinstance(values, dict) else None for ours, theirs in names.items()}
    for ours, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{path} is no Whisper model: its {names[ours]} is {value!r}, not a whole number above 0.")
    return Dimensions(**{ours: int(value) for ours, value in found.items() if value is not None})


def _heads(given: Any, dims: Dimensions, path: Path) -> AlignmentHeads:
    """Alignment heads as stored; where none are, all of the later half of the decoder, as openai/whisper does."""
    if not given:
        later = range(dims.n_text_layer // 2, dims.n_text_layer)
        return tuple((layer, head) for layer in later for head in range(dims.n_text_head))
    try:
        heads = tuple((int(layer), int(head)) for layer, head in given)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: alignment_heads is no list of pairs (layer, head).") from error
    for layer, head in heads:
        if not (0 <= layer < dims.n_text_layer and 0 <= head < dims.n_text_head):
            raise ModelError(f"{path}: alignment_heads names head {head} of layer {layer}, which is not there.")
    return heads


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: fetch the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no settings: fetch the model again.")
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
