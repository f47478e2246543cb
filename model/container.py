"""CTranslate2's `model.bin`: one container of named tensors, read once from start to end, hashed on the way.

It refuses to know what a checkpoint needs (`checkpoint.py` compares) and where the bytes come from: several files
count as one. Layout, little endian: version, name and revision of the spec; then each variable as name, rank,
dimensions, type, size and data; then aliases (OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py`).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.dimensions import WINDOW_FRAMES, Dimensions
from model.errors import ModelError

VERSION = 6
SPEC = "WhisperSpec"
MAX_RANK = 3  # of a convolution, the largest that Whisper has

# Type ids; "i8" and "i16" hold quantised weights, or a scalar setting.
_TYPES = {
    0: torch.float32,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.float16,
    5: torch.bfloat16,
}

# Where the tensors of one block lie; a stack is several of ours, one above the other.
_IN_BLOCK = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
_AROUND_BLOCKS = {
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
}
_BLOCK = re.compile(r"(encoder|decoder)/layer_(\d+)/(.+)/(weight|bias|gamma|beta)")
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_EMBEDDING, _PROJECTION = "decoder/embeddings/weight", "decoder/projection/weight"  # tied in every Whisper
_SETTINGS = {"decoder/alignment_heads", "decoder/alignment_layer"}  # may have a shape; config.json says the same


class Contents(NamedTuple):
    """What one container holds, under the names of openai/whisper's checkpoints."""

    state: dict[str, Tensor]
    dims: Dimensions
    sha256: str  # of all bytes, in order


def read(parts: Sequence[Path]) -> Contents:
    """The tensors of a container that lies in `parts`, one file after the other.

    Raises: `ModelError` when it is damaged, quantised, or not Whisper's; `OSError` when a file cannot be read.
    """
    with ExitStack() as stack:
        stream = _Stream(parts, stack)
        variables = _variables(stream)
        state: dict[str, Tensor] = {}
        for name, tensor in variables.items():
            if tensor.dim() and name not in _SETTINGS:
                state.update(_ours(name, tensor, stream))
        return Contents(state, _dimensions(state, variables, stream), stream.sha256.hexdigest())


class _Stream:
    """Several files read as one, forwards only; every byte handed out is within bounds and in the digest."""

    def __init__(self, parts: Sequence[Path], stack: ExitStack) -> None:
        self.name = str(parts[0])
        self.left = sum(part.stat().st_size for part in parts)
        self.sha256 = hashlib.sha256()
        self._files = [stack.enter_context(part.open("rb")) for part in parts]

    def take(self, size: int) -> bytearray:
        if size > self.left:
            raise self.damaged("it ends too early")
        self.left -= size
        taken = bytearray(size)
        rest = memoryview(taken)
        while rest and self._files:
            got = self._files[0].readinto(rest)
            rest = rest[got:]
            if not got:
                self._files.pop(0)
        if rest:
            raise self.damaged("it became shorter while it was read")
        self.sha256.update(taken)
        return taken

    def number(self, kind: str) -> int:
        return int(struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0])

    def string(self) -> str:
        text = bytes(self.take(self.number("H")))
        try:
            return text.removesuffix(b"\0").decode("ascii")
        except UnicodeDecodeError:
            raise self.damaged("a name in it is no text") from None

    def damaged(self, why: str) -> ModelError:
        return ModelError(f"{self.name} is no intact CTranslate2 container: {why}; fetch the model again.")


def _variables(stream: _Stream) -> dict[str, Tensor]:
    """Everything in the container by its own names, aliases resolved, the tied projection left out."""
    _header(stream)
    variables: dict[str, Tensor] = {}
    for _ in range(stream.number("I")):
        name, tensor = _variable(stream)
        if name in variables:
            raise stream.damaged(f"{name} occurs twice")
        variables[name] = tensor
    for _ in range(stream.number("I")):
        alias, name = stream.string(), stream.string()
        if name not in variables:
            raise stream.damaged(f"{alias} stands for {name}, which is not there")
        variables[alias] = variables[name]
    if stream.left:
        raise stream.damaged(f"{stream.left} bytes follow its end")
    projection, embedding = variables.pop(_PROJECTION, None), variables.get(_EMBEDDING)
    if projection is None or embedding is None or not torch.equal(projection, embedding):
        raise stream.damaged("its output projection is not the token embedding")
    return variables


def _header(stream: _Stream) -> None:
    version = stream.number("I")
    if version != VERSION:
        raise stream.damaged(f"its version is {version}, and only {VERSION} is read")
    spec = stream.string()
    if spec != SPEC:
        raise ModelError(f"{stream.name} holds a {spec!r} model: give one converted from Whisper ({SPEC}).")
    stream.number("I")  # the revision of the spec tells of decoding options, never of tensors


def _variable(stream: _Stream) -> tuple[str, Tensor]:
    name = stream.string()
    rank = stream.number("B")
    if rank > MAX_RANK:
        raise stream.damaged(f"{name} has {rank} dimensions")
    shape = [stream.number("I") for _ in range(rank)]
    dtype = _TYPES.get(stream.number("B"))
    size = stream.number("I")
    if dtype is None or size != math.prod(shape) * dtype.itemsize:
        raise stream.damaged(f"type, shape and size of {name} contradict one another")
    if rank and not dtype.is_floating_point and name not in _SETTINGS:
        raise ModelError(
            f"{stream.name} is quantised ({name} is {str(dtype).removeprefix('torch.')}): "
            f"give a float16 or float32 conversion of the model."
        )
    data = stream.take(size)
    return name, torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def _ours(name: str, tensor: Tensor, stream: _Stream) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one variable under our names; stacks are cut into views, not copied."""
    if name in _AROUND_BLOCKS:
        yield _AROUND_BLOCKS[name], tensor
        return
    match = _BLOCK.fullmatch(name)
    if match is None or match[3] not in _IN_BLOCK:
        raise stream.damaged(f"Whisper has no tensor {name}")
    side, layer, place, leaf = match.groups()
    stacked = _IN_BLOCK[place]
    if tensor.shape[0] % len(stacked) or not tensor.shape[0]:
        raise stream.damaged(f"{name} cannot be cut into {len(stacked)}")
    for ours, piece in zip(stacked, tensor.chunk(len(stacked)), strict=True):
        if not (leaf == "bias" and ours.endswith(".key")):
            yield f"{side}.blocks.{int(layer)}.{ours}.{_LEAVES[leaf]}", piece
        elif piece.any():
            raise stream.damaged(f"{name} gives the keys a bias, which Whisper's do not have")


def _dimensions(state: dict[str, Tensor], variables: dict[str, Tensor], stream: _Stream) -> Dimensions:
    try:
        n_audio_state, n_mels, _ = state["encoder.conv1.weight"].shape
        n_vocab, n_text_state = state["decoder.token_embedding.weight"].shape
        return Dimensions(
            n_mels=n_mels,
            n_audio_ctx=_audio_context(state),
            n_audio_state=n_audio_state,
            n_audio_head=int(variables["encoder/num_heads"]),
            n_audio_layer=_layers(state, "encoder"),
            n_vocab=n_vocab,
            n_text_ctx=state["decoder.positional_embedding"].shape[0],
            n_text_state=n_text_state,
            n_text_head=int(variables["decoder/num_heads"]),
            n_text_layer=_layers(state, "decoder"),
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise stream.damaged(f"its dimensions cannot be told ({error})") from error


def _audio_context(state: dict[str, Tensor]) -> int:
    positions = state.get("encoder.positional_embedding")
    return WINDOW_FRAMES // 2 if positions is None else positions.shape[0]


def _layers(state: dict[str, Tensor], side: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{side}.blocks.")})
