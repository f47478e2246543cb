"""The next token of every slot: logits, rules, temperature and a random stream of its own for each row.

Rows differ in everything and share the batch: nothing drawn for one depends on which others are beside it. It knows
slots by number and tokens by id, not windows or parts.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from model.dimensions import Dimensions
from model.options import DecodeOptions
from model.rules import Rules, RuleState
from model.tokenizer import Tokenizer


def random_stream(seed: int, part_id: str, seek: int, attempt: int) -> torch.Generator:
    """The random numbers of one attempt at one window: the same in any slot, batch or order."""
    name = f"{seed}/{part_id}/{seek}/{attempt}".encode()
    number = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
    return torch.Generator().manual_seed(number)


class Sampler:
    """Next-token logits and sampling state of S slots, of which the first n are in use."""

    def __init__(
        self, tokenizer: Tokenizer, options: DecodeOptions, dims: Dimensions, slots: int, device: torch.device
    ) -> None:
        self._rules = Rules(tokenizer, options, dims, device)
        self._timestamp_begin = tokenizer.timestamp_begin
        self._state = RuleState.allocate(slots, device)
        self._logits = torch.zeros(slots, dims.n_vocab, device=device)  # (S, V)
        self._first_logits = torch.zeros_like(self._logits)  # kept for a hotter attempt at the same prompt
        self._temperatures = [0.0] * slots
        self._streams: list[torch.Generator | None] = [None] * slots

    def admit(self, row: int, first_logits: Tensor) -> None:
        """Give slot `row` to a new window, whose prompt ends in `first_logits` (V,)."""
        self._first_logits[row] = first_logits

    def start(self, row: int, temperature: float, stream: torch.Generator) -> None:
        """Begin an attempt in slot `row`: nothing sampled yet, the prompt's logits to sample from."""
        self._logits[row] = self._first_logits[row]
        self._state.reset(row)
        self._temperatures[row] = temperature
        self._streams[row] = stream

    def update(self, rows: Tensor, logits: Tensor) -> None:
        """Set the next-token logits (B, V) of `rows` (B,)."""
        self._logits[rows] = logits

    def move(self, source: int, target: int) -> None:
        for tensor in (self._logits, self._first_logits):
            tensor[target] = tensor[source]
        self._state.move(source, target)
        self._temperatures[target] = self._temperatures[source]
        self._streams[target] = self._streams[source]

    def choose(self, count: int) -> tuple[list[int], list[float]]:
        """One token for each of the first `count` slots, and its log-probability under the rules at temperature 1."""
        logits = self._logits[:count]
        state = self._state.first(count)
        self._rules.apply(logits, state)
        tokens = logits.argmax(-1)  # (count,)
        for row in range(count):
            if self._temperatures[row] > 0:
                tokens[row] = self._draw(row)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        state.record(tokens, self._timestamp_begin)
        return tokens.tolist(), logprobs.tolist()

    def _draw(self, row: int) -> Tensor:
        """Sample by exponential races: as multinomial sampling, but insensitive to rounding across batch sizes."""
        probabilities = (self._logits[row] / self._temperatures[row]).softmax(-1)  # (V,)
        waits = torch.empty(len(probabilities)).exponential_(generator=self._streams[row])
        return (probabilities / waits.to(probabilities.device)).argmax(-1)
