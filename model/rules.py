"""What may be sampled next inside one window: the rules of Whisper's meta-language, each a function over logits.

All work in place on next-token logits (B, V) of any mix of windows, with the facts about each row in a `RuleState`.
They know token ids and nothing of text, temperature or time. Source: Radford et al. 2022, section 4.5, and
openai/whisper `decoding.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.dimensions import Dimensions
from model.options import DecodeOptions
from model.tokenizer import Tokenizer

FORBIDDEN = -math.inf
NO_TIMESTAMP = -1


@dataclass(frozen=True)
class RuleState:
    """What the rules need to know of the tokens sampled so far in each of S slots; every tensor is (S,)."""

    count: Tensor  # tokens sampled
    last_is_timestamp: Tensor
    before_last_is_timestamp: Tensor  # true as well while fewer than two tokens are sampled
    last_timestamp: Tensor  # token id, or NO_TIMESTAMP

    @classmethod
    def allocate(cls, slots: int, device: torch.device) -> RuleState:
        def full(value: int | bool) -> Tensor:
            return torch.full((slots,), value, device=device)

        return cls(full(0), full(False), full(True), full(NO_TIMESTAMP))

    def first(self, rows: int) -> RuleState:
        """The state of the first `rows` slots, as views."""
        return RuleState(*(tensor[:rows] for tensor in self._tensors()))

    def reset(self, rows: slice) -> None:
        for tensor, value in zip(self._tensors(), (0, False, True, NO_TIMESTAMP), strict=True):
            tensor[rows] = value

    def move(self, source: slice, target: slice) -> None:
        for tensor in self._tensors():
            tensor[target] = tensor[source]

    def follow(self, parents: Tensor) -> None:
        """Let each of the first rows go on from what its parent has seen."""
        for tensor in self._tensors():
            tensor[: len(parents)] = tensor[parents]

    def record(self, tokens: Tensor, timestamp_begin: int) -> None:
        """Add one sampled token (S,) to every row."""
        is_timestamp = tokens >= timestamp_begin
        self.before_last_is_timestamp.copy_(self.last_is_timestamp | (self.count == 0))
        self.last_is_timestamp.copy_(is_timestamp)
        self.last_timestamp.copy_(torch.where(is_timestamp, tokens, self.last_timestamp))
        self.count.add_(1)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.count, self.last_is_timestamp, self.before_last_is_timestamp, self.last_timestamp


class Rules:
    """All rules of one vocabulary under one set of options, applied in the reference's order."""

    def __init__(self, tokenizer: Tokenizer, options: DecodeOptions, dims: Dimensions, device: torch.device) -> None:
        self.timestamp_begin = tokenizer.timestamp_begin
        self.eot = tokenizer.eot
        never = [*tokenizer.suppressed(options.suppress_tokens), tokenizer.no_timestamps]
        self.never = torch.tensor(never, device=device)
        self.blank = torch.tensor(tokenizer.blank_tokens if options.suppress_blank else (), device=device).long()
        latest = options.max_initial_timestamp
        self.latest_start = None if not latest else round(latest / dims.seconds_per_position)

    def apply(self, logits: Tensor, state: RuleState) -> None:
        """Forbid in `logits` (B, V), in place, whatever may not follow what `state` (B,) has seen."""
        logits[:, self.never] = FORBIDDEN
        forbid_blank_start(logits, state, self.blank)
        forbid_unpaired_timestamps(logits, state, self.timestamp_begin, self.eot)
        forbid_decreasing_timestamps(logits, state, self.timestamp_begin)
        require_timestamp_start(logits, state, self.timestamp_begin, self.latest_start)
        prefer_timestamp_mass(logits, self.timestamp_begin)


def forbid_blank_start(logits: Tensor, state: RuleState, blank: Tensor) -> None:
    """A window starts neither with a lone space nor with its own end."""
    starting = state.count == 0
    logits[:, blank] = logits[:, blank].masked_fill(starting[:, None], FORBIDDEN)


def forbid_unpaired_timestamps(logits: Tensor, state: RuleState, timestamp_begin: int, eot: int) -> None:
    """Timestamps come in pairs: after one that ends a segment, another or the end; after a pair, text."""
    opens_segment = state.last_is_timestamp & state.before_last_is_timestamp
    ends_segment = state.last_is_timestamp & ~state.before_last_is_timestamp
    logits[:, timestamp_begin:].masked_fill_(opens_segment[:, None], FORBIDDEN)
    logits[:, :eot].masked_fill_(ends_segment[:, None], FORBIDDEN)


def forbid_decreasing_timestamps(logits: Tensor, state: RuleState, timestamp_begin: int) -> None:
    """Time never runs back, and a segment is never empty: only the start of the next may repeat a timestamp."""
    ends_segment = state.last_is_timestamp & ~state.before_last_is_timestamp
    earliest = torch.where(ends_segment, state.last_timestamp, state.last_timestamp + 1)
    timestamps = torch.arange(timestamp_begin, logits.shape[1], device=logits.device)
    past = (timestamps < earliest[:, None]) & (state.last_timestamp != NO_TIMESTAMP)[:, None]
    logits[:, timestamp_begin:].masked_fill_(past, FORBIDDEN)


def require_timestamp_start(logits: Tensor, state: RuleState, timestamp_begin: int, latest_start: int | None) -> None:
    """A window starts with a timestamp, and not with one later than `latest_start` (in timestamp steps)."""
    starting = (state.count == 0)[:, None]
    logits[:, :timestamp_begin].masked_fill_(starting, FORBIDDEN)
    if latest_start is not None:
        logits[:, timestamp_begin + latest_start + 1 :].masked_fill_(starting, FORBIDDEN)


def prefer_timestamp_mass(logits: Tensor, timestamp_begin: int) -> None:
    """If all timestamps together are likelier than the likeliest other token, one of them is taken.

    Text has one likely token where a timestamp spreads over its neighbours; alone, each of these would lose.
    """
    mass = logits[:, timestamp_begin:].logsumexp(-1)  # (B,)
    likeliest = logits[:, :timestamp_begin].amax(-1)  # (B,)
    logits[:, :timestamp_begin].masked_fill_((mass > likeliest)[:, None], FORBIDDEN)
