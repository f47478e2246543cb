"""The net once more, as the paper says it: no cache, no rows, no positions, no kernels; and weights to try it with.

Slow, and short enough to be believed. What the net computes by any shorter way is compared with this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.dimensions import Dimensions
from model.whisper import Whisper


def random_state(dims: Dimensions, seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough that every part of the net matters; norms scale by about one."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Whisper(dims).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    scales = {name: 1.0 if name.endswith(("ln.weight", "ln_post.weight")) else 0.0 for name in shapes}
    return {name: scales[name] + 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Plain:
    """A net of these dimensions with the weights of `state`."""

    dims: Dimensions
    state: dict[str, Tensor]

    def features(self, mel: Tensor) -> Tensor:
        """Features (B, A, D) of windows (B, n_mels, frames)."""
        for name, stride in (("encoder.conv1", 1), ("encoder.conv2", 2)):
            mel = F.conv1d(mel, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, padding=1)
            mel = mel * (1 + torch.erf(mel / 2**0.5)) / 2  # GELU, not approximated
        x = mel.transpose(1, 2)
        x = x + self.state["encoder.positional_embedding"][: x.shape[1]]
        for layer in range(self.dims.n_audio_layer):
            name = f"encoder.blocks.{layer}."
            normed = self._norm(x, name + "attn_ln")
            x = x + self._attend(normed, normed, name + "attn", self.dims.n_audio_head)
            x = self._feed_forward(x, name)
        return self._norm(x, "encoder.ln_post")

    def logits(self, heard: Tensor, said: Tensor, begin: int = 0) -> Tensor:
        """Logits (B, T, V) of whole texts (B, T) over features (B, A, D), from the token `begin` on."""
        count = said.shape[1]
        x = self.state["decoder.token_embedding.weight"][said] + self.state["decoder.positional_embedding"][:count]
        future = torch.ones(count, count, dtype=torch.bool).triu(1)
        for layer in range(self.dims.n_text_layer):
            name, heads = f"decoder.blocks.{layer}.", self.dims.n_text_head
            normed = self._norm(x, name + "attn_ln")
            x = x + self._attend(normed, normed, name + "attn", heads, future)
            x = x + self._attend(self._norm(x, name + "cross_attn_ln"), heard, name + "cross_attn", heads)
            x = self._feed_forward(x, name)
        return self._norm(x[:, begin:], "decoder.ln") @ self.state["decoder.token_embedding.weight"].T

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", torch.zeros(()))

    def _feed_forward(self, x: Tensor, name: str) -> Tensor:
        hidden = F.gelu(self._linear(self._norm(x, f"{name}mlp_ln"), f"{name}mlp.0"))
        return x + self._linear(hidden, f"{name}mlp.2")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def _attend(self, x: Tensor, heard: Tensor, name: str, heads: int, hidden: Tensor | None = None) -> Tensor:
        q, k, v = (
            self._linear(x, f"{name}.query"),
            self._linear(heard, f"{name}.key"),
            self._linear(heard, f"{name}.value"),
        )
        width, attended = q.shape[-1] // heads, []
        for head in range(heads):
            part = slice(width * head, width * (head + 1))  # (B, T, head_dim)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
            if hidden is not None:
                scores = scores.masked_fill(hidden, -torch.inf)
            attended.append(scores.softmax(-1) @ v[..., part])
        return self._linear(torch.cat(attended, -1), f"{name}.out")
