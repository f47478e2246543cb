"""The next token of every lane: logits, rules, temperature and a random stream of its own for each row.

Rows differ in everything and share the batch: nothing drawn for one depends on which others are beside it. It knows
slots and lanes by number and tokens by id, not windows or parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from model.dimensions import Dimensions
from model.options import DecodeOptions
from model.rules import Rules, RuleState
from model.tokenizer import Tokenizer
from model.transfer import read, send, staging, to_device


def random_stream(seed: int, part_id: str, seek: int, attempt: int, lane: int = 0) -> torch.Generator:
    """The random numbers of one lane of one attempt at one window: the same in any slot, batch or order."""
    name = f"{seed}/{part_id}/{seek}/{attempt}" + (f"/{lane}" if lane else "")
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    return torch.Generator().manual_seed(number)


class Sampler:
    """Next-token logits and sampling state of S slots of W lanes, of which the first n are in use.

    Lane w of slot s is row s·W + w.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: DecodeOptions,
        dims: Dimensions,
        slots: int,
        device: torch.device,
        lanes: int = 1,
    ) -> None:
        self._rules = Rules(tokenizer, options, dims, device)
        self._timestamp_begin = tokenizer.timestamp_begin
        self._lanes, self._beam_size = lanes, options.beam_size
        self._state = RuleState.allocate(slots * lanes, device)
        self._logits = torch.zeros(slots * lanes, dims.n_vocab, device=device)  # (S·W, V)
        self._first_logits = torch.zeros(slots, dims.n_vocab, device=device)  # kept for a hotter attempt
        self._temperatures = [0.0] * slots
        self._streams: list[Sequence[torch.Generator]] = [()] * slots

    def admit(self, slot: int, first_logits: Tensor) -> None:
        """Give a slot to a new window, whose prompt ends in `first_logits` (V,)."""
        self._first_logits[slot] = first_logits

    def start(self, slot: int, temperature: float, streams: Sequence[torch.Generator]) -> None:
        """Begin an attempt in a slot: nothing sampled yet in any lane, the prompt's logits to sample from.

        streams: one for each lane that draws its tokens, from the first on; the others take the likeliest.
        """
        rows = self._rows(slot)
        self._logits[rows] = self._first_logits[slot]
        self._state.reset(rows)
        self._temperatures[slot] = temperature
        self._streams[slot] = streams

    def update(self, rows: Tensor | slice, logits: Tensor) -> None:
        """Set the next-token logits (B, V) of `rows` (B,)."""
        self._logits[rows] = logits

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        own, other = self._rows(source), self._rows(target)
        self._logits[other] = self._logits[own]
        self._first_logits[target] = self._first_logits[source]
        self._state.move(own, other)
        self._temperatures[target] = self._temperatures[source]
        self._streams[target] = self._streams[source]

    def choose(self, slots: int) -> tuple[list[int], list[float]]:
        """One token for each lane of the first slots, and its log-probability under the rules at temperature 1.

        Leaves the logits as the rules have them.
        """
        rows = slots * self._lanes
        logits = self._logits[:rows]
        self._rules.apply(logits, self._state.first(rows))
        tokens = logits.argmax(-1)  # (rows,)
        self._draw(tokens, slots)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        chosen, chosen_logprobs = read(tokens, logprobs)
        return [int(token) for token in chosen], chosen_logprobs

    def likeliest(self, slots: Sequence[int]) -> list[tuple[list[list[float]], list[list[int]]]]:
        """For each slot and lane the `beam_size` + 1 likeliest tokens: log-probabilities in falling order, and ids.

        Call `choose` before.
        """
        if not slots:
            return []
        rows = [slot * self._lanes + lane for slot in slots for lane in range(self._lanes)]
        top = self._logits[to_device(rows, self._logits.device)].log_softmax(-1).topk(self._beam_size + 1)
        shape = (len(slots), self._lanes, -1)
        logprobs, tokens = read(top.values.view(shape), top.indices.view(shape))
        ids = [[[int(token) for token in lane] for lane in lanes] for lanes in tokens]
        return list(zip(logprobs, ids, strict=True))

    def follow(self, parents: Sequence[int]) -> None:
        """Let each of the first rows go on from the state of its parent."""
        self._state.follow(to_device(parents, self._logits.device))

    def record(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that the first rows are fed next."""
        self._state.first(len(tokens)).record(to_device(tokens, self._logits.device), self._timestamp_begin)

    def _draw(self, tokens: Tensor, slots: int) -> None:
        """Sample anew in `tokens` (rows,) for lanes that have a stream, from the logits as the rules have them.

        By exponential races: as multinomial sampling, but insensitive to rounding across batch sizes. The waits come
        from the host, so that they are the same on every device, all in one copy.
        """
        drawn = [(slot, lane) for slot in range(slots) for lane in range(len(self._streams[slot]))]
        if not drawn:
            return
        device, n_vocab = self._logits.device, self._logits.shape[1]
        waits = staging(len(drawn), n_vocab, device=device)
        for own, (slot, lane) in zip(waits, drawn, strict=True):
            own.exponential_(generator=self._streams[slot][lane])
        rows = to_device([slot * self._lanes + lane for slot, lane in drawn], device)
        temperatures = to_device([[self._temperatures[slot]] for slot, _ in drawn], device)  # (B, 1)
        probabilities = (self._logits[rows] / temperatures).softmax(-1)  # (B, V)
        tokens[rows] = (probabilities / send(waits, device)).argmax(-1)

    def _rows(self, slot: int) -> slice:
        return slice(slot * self._lanes, (slot + 1) * self._lanes)
