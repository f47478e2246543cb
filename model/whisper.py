"""The net: a vanilla pre-norm Transformer, encoder and decoder, in plain PyTorch (Radford et al. 2022, section 2.2).

It maps log-mel to features and tokens to logits, and refuses to know more: no rule, no tokenizer, no file. Its state
dict has the names of openai/whisper's checkpoints. The cache is an argument. In shapes, B is rows, T tokens, D width,
H heads, A encoder positions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.cache import DecoderCache, LayerCache, Reach
from model.dimensions import Dimensions

MLP_RATIO = 4
SINUSOID_MAX_TIMESCALE = 10_000


class LayerNorm(nn.LayerNorm):
    """Normalises in float32, whatever the precision of the net."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from a cache. The key projection has no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        return x.view(rows, tokens, self.heads, -1).transpose(1, 2)  # (B, H, T, head_dim)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(x)), self.split(self.value(x))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        """x (B, T, D) attends k, v (B, H, K, head_dim); `hidden` (B, 1, T, K) marks what it must not see."""
        attended = attend(self.split(self.query(x)), k, v, hidden)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # (B, T, D)


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = LayerNorm(width)
        self.mlp = _mlp(width)
        self.mlp_ln = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attn_ln(x)
        x = x + self.attn(normed, *self.attn.keys_values(normed))
        return x + self.mlp(self.mlp_ln(x))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = LayerNorm(width)
        self.cross_attn = Attention(width, heads)
        self.cross_attn_ln = LayerNorm(width)
        self.mlp = _mlp(width)
        self.mlp_ln = LayerNorm(width)

    def forward(self, x: Tensor, cache: LayerCache, hidden: Tensor) -> Tensor:
        normed = self.attn_ln(x)
        x = x + self.attn(normed, *cache.append(*self.attn.keys_values(normed)), hidden)
        k, v = cache.cross()
        heard = self.cross_attn_ln(x).view(len(k), -1, x.shape[-1])  # (slots, T or lanes, D): lanes hear the same
        x = x + self.cross_attn(heard, k, v, cache.unheard).view_as(x)
        return x + self.mlp(self.mlp_ln(x))  # type: ignore[no-any-return]


def _mlp(width: int) -> nn.Sequential:
    inner = MLP_RATIO * width
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class AudioEncoder(nn.Module):
    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        width = dims.n_audio_state
        self.conv1 = nn.Conv1d(dims.n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(dims.n_audio_ctx, width))
        self.positional_embedding: Tensor
        blocks = [EncoderBlock(width, dims.n_audio_head) for _ in range(dims.n_audio_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_post = LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv1(mel))  # (B, D, frames)
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (B, A, D)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)  # type: ignore[no-any-return]


class TextDecoder(nn.Module):
    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        width = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.n_text_ctx, width))
        blocks = [DecoderBlock(width, dims.n_text_head) for _ in range(dims.n_text_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.ln = LayerNorm(width)

    def forward(self, tokens: Tensor, positions: Tensor, cache: DecoderCache, reach: Reach) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[positions]  # (B, T, D)
        seen = torch.arange(reach.text, device=tokens.device)
        hidden = (seen > positions[:, :, None])[:, None]  # (B, 1, T, text): a token sees itself and the ones before
        for block, layer in zip(self.blocks, cache.layers(positions, reach), strict=True):
            x = block(x, layer, hidden)
        return self.ln(x)  # type: ignore[no-any-return]


class Whisper(nn.Module):
    """Whisper of any size: `encode` a window, `admit` it to slots, then `decode` tokens and `project` to logits."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = AudioEncoder(dims)
        self.decoder = TextDecoder(dims)
        self.unembedding: nn.Module | None = None  # the transposed token embedding, where a precision lays it out anew

    @property
    def device(self) -> torch.device:
        return self.decoder.positional_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.positional_embedding.dtype

    def new_cache(self, slots: int, lanes: int = 1) -> DecoderCache:
        return DecoderCache.allocate(self.dims, slots, self.dtype, self.device, lanes)

    @torch.inference_mode()
    def encode(self, mel: Tensor) -> Tensor:
        """Log-mel windows (B, n_mels, frames) to features (B, A, D): two frames a position, at most 3000."""
        return self.encoder(mel.to(self.device, self.dtype))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def admit(self, features: Tensor, cache: DecoderCache, slots: Tensor) -> None:
        """Project features (B, A, D) to the cross-attention keys and values of `slots` (B,), once per window."""
        for index, block in enumerate(self.decoder.blocks):
            cache.admit(index, slots, *block.cross_attn.keys_values(features))  # type: ignore[union-attr, operator]

    @torch.inference_mode()
    def decode(self, tokens: Tensor, positions: Tensor, cache: DecoderCache, reach: Reach) -> Tensor:
        """Feed `tokens` (B, T) at text `positions` (B, T) to the rows of `reach`; returns hidden states (B, T, D).

        Rows shorter than T may be padded on the right: what padding writes into the cache is hidden from every
        earlier position, and overwritten when the row gets there.
        """
        return self.decoder(tokens, positions, cache, reach)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to float32 logits (..., n_vocab), by the transposed token embedding."""
        if self.unembedding is not None:
            return self.unembedding(hidden).float()  # type: ignore[no-any-return]
        return F.linear(hidden, self.decoder.token_embedding.weight).float()


def sinusoids(length: int, channels: int) -> Tensor:
    """Fixed positions of the encoder, (length, channels): sines in the first half, cosines in the second."""
    step = math.log(SINUSOID_MAX_TIMESCALE) / (channels // 2 - 1)
    inverse_timescales = np.exp(-step * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * inverse_timescales
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


def from_state(dims: Dimensions, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Whisper:
    """The net with the weights of a checkpoint (`model.checkpoint.load`), ready to infer.

    The weights are adopted, not copied, where they already have the wanted precision.
    """
    with torch.device("meta"):
        net = Whisper(dims)
    net.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return net.requires_grad_(False).eval()
