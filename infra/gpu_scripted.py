"""A net that computes everything and says what it was told: real work on the device, and windows of realistic length.

Random weights say nothing that ends. So the real hidden states and logits are computed, and then one token of each row
is made certain: the next of a script that a window's own tokens tell it where it is in. The script is a chain: every
token has one that follows it. It costs two small kernels a step. It knows tokens, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import Reach
from model.dimensions import Dimensions
from model.tokenizer import Tokenizer
from model.whisper import Whisper

CERTAIN = 1e4  # a logit that no other comes near
CHAINS = 32
TOKENS_PER_WINDOW, SPREAD = 100, 25  # mean and deviation: about what half a minute of speech takes
BOUNDS = (24, 200)
# A token id travels beside the hidden state of its row, in two digits that half precision holds exactly. Eight columns,
# so that rows stay aligned to 16 bytes.
BASE, COLUMNS = 256, 8


@dataclass(frozen=True)
class Script:
    """What follows each token; after the first timestamp of a window, one of several chains begins.

    follows: (V,) the next token. begins: (CHAINS,) the first word of each chain. lengths: tokens of each, the first
    timestamp and the end included.
    """

    follows: Tensor
    begins: Tensor
    begin: int
    lengths: tuple[int, ...]

    @classmethod
    def write(cls, tokenizer: Tokenizer, dims: Dimensions, device: torch.device, seed: int = 0) -> Script:
        """Two segments in each window, of different words throughout: nothing that a rule or a threshold objects to."""
        drawn = np.random.default_rng(seed).normal(TOKENS_PER_WINDOW, SPREAD, CHAINS)
        lengths = [int(length) for length in drawn.clip(*BOUNDS)]
        words = iter(plain_words(tokenizer))
        zero, follows = tokenizer.timestamp_begin, torch.full((dims.n_vocab,), tokenizer.eot)
        follows[tokenizer.transcribe if tokenizer.is_multilingual else tokenizer.sot] = zero
        begins = []
        for index, length in enumerate(lengths):
            said = [next(words) for _ in range(length - 5)]  # besides: two pairs of timestamps less the end, and eot
            middle, pair, last = len(said) // 2, zero + 200 + 2 * index, zero + 1000 + index
            chain = [*said[:middle], pair, pair + 1, *said[middle:], last, tokenizer.eot]
            follows[chain[:-1]] = torch.tensor(chain[1:])
            begins.append(chain[0])
        return cls(follows.to(device), torch.tensor(begins, device=device), zero, tuple(lengths))


def plain_words(tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that are a word of their own, none of which is ever suppressed."""
    texts = ((token, tokenizer.decode([token])) for token in range(1000, 20_000))
    return [token for token, text in texts if text[0] == " " and text[1:].isascii() and text[1:].isalpha()]


class ScriptedWhisper:
    """`Whisper`, whose logits are its own but for one token a row. Hidden states are `COLUMNS` wider than they were."""

    def __init__(self, net: Whisper, tokenizer: Tokenizer) -> None:
        self._net = net
        self.dims, self.device = net.dims, net.device
        self.new_cache, self.encode, self.admit = net.new_cache, net.encode, net.admit
        self.script = Script.write(tokenizer, net.dims, net.device)

    @torch.inference_mode()
    def decode(self, tokens: Tensor, positions: Tensor, cache: Any, reach: Reach) -> Tensor:
        hidden = self._net.decode(tokens, positions, cache, reach)  # (B, T, D)
        rows = torch.arange(len(tokens), device=tokens.device) if reach.rows is None else reach.rows
        chains = self.script.begins[(rows[:, None] + positions) % CHAINS]
        following = torch.where(tokens == self.script.begin, chains, self.script.follows[tokens])  # (B, T)
        digits = torch.stack((following // BASE, following % BASE), -1).to(hidden.dtype)
        return torch.cat((hidden, F.pad(digits, (0, COLUMNS - 2))), -1)

    @torch.inference_mode()
    def project(self, hidden: Tensor) -> Tensor:
        digits = hidden[..., -COLUMNS:].long()
        following = digits[..., 0] * BASE + digits[..., 1]
        return self._net.project(hidden[..., :-COLUMNS]).scatter_(-1, following[..., None], CERTAIN)
