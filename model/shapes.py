"""Name and shape of every tensor of a Whisper checkpoint, from its dimensions alone.

The names are openai/whisper's. It refuses to know files and the net, and needs no torch: a size can be told at once.
"""

from __future__ import annotations

import math

from model.dimensions import Dimensions


def tensor_shapes(dims: Dimensions) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint with these dimensions."""
    audio, text = dims.n_audio_state, dims.n_text_state
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        "encoder.conv1.weight": (audio, dims.n_mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "decoder.token_embedding.weight": (dims.n_vocab, text),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    shapes |= _norm("encoder.ln_post", audio) | _norm("decoder.ln", text)
    for layer in range(dims.n_audio_layer):
        shapes |= _block_shapes(f"encoder.blocks.{layer}", audio, ("attn",))
    for layer in range(dims.n_text_layer):
        shapes |= _block_shapes(f"decoder.blocks.{layer}", text, ("attn", "cross_attn"))
    return shapes


def count_parameters(dims: Dimensions) -> int:
    """Learned numbers of a checkpoint; the positions of the encoder are computed and do not count."""
    shapes = tensor_shapes(dims)
    del shapes["encoder.positional_embedding"]
    return sum(math.prod(shape) for shape in shapes.values())


def _block_shapes(block: str, width: int, attentions: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = _linear(f"{block}.mlp.0", 4 * width, width) | _linear(f"{block}.mlp.2", width, 4 * width)
    shapes |= _norm(f"{block}.mlp_ln", width)
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            shapes |= _linear(f"{block}.{attention}.{part}", width, width)
        del shapes[f"{block}.{attention}.key.bias"]  # it would shift all scores of a query alike
        shapes |= _norm(f"{block}.{attention}_ln", width)
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
