"""What a slot is reading: one attempt at one window, in one lane or several, token by token.

It keeps what was sampled and says what is fed next; the readings themselves are those of `beam.py`, or greedy. It
knows neither tensors nor the net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from model import fallback
from model.beam import BeamSearch, BestOf, Candidate
from model.dimensions import Dimensions
from model.loops import LOOP, is_looping
from model.options import DecodeOptions
from model.progress import PartProgress
from model.tokenizer import Tokenizer
from model.transcript import Attempt


class Greedy:
    """One reading that takes what it is given: the likeliest, or a single sample. As `BestOf` of one, but lighter."""

    def __init__(self, eot: int, token_limit: int) -> None:
        self._eot, self._token_limit = eot, token_limit
        self.tokens: list[int] = []
        self.sum_logprob = 0.0
        self.finished = False

    def step(self, tokens: Sequence[int], logprobs: Sequence[float]) -> list[int]:
        """Take the first token, and its log-probability; returns what is fed next."""
        self.sum_logprob += logprobs[0]
        if tokens[0] != self._eot:
            self.tokens.append(tokens[0])
        self.finished = tokens[0] == self._eot or len(self.tokens) == self._token_limit
        return [tokens[0]]

    def best(self) -> Candidate:
        return Candidate(tuple(self.tokens), self.sum_logprob)


@dataclass
class Slot:
    """One window of one part while it is read, with all its attempts so far.

    fed: the tokens of its lanes that the net gets next; empty while the attempt has only its prompt.
    """

    progress: PartProgress
    order: int  # of the part, among all submitted
    prompt_length: int
    no_speech_prob: float
    options: DecodeOptions
    tokenizer: Tokenizer
    dims: Dimensions
    attempt: int = 0
    length: int = 0  # tokens sampled in this attempt
    sampled: int = 0  # in all attempts
    fed: list[int] = field(default_factory=list)
    rules_fired: list[str] = field(default_factory=list)
    reading: Greedy | BestOf | BeamSearch = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    @property
    def temperature(self) -> float:
        return self.options.temperatures[self.attempt]

    @property
    def is_last(self) -> bool:
        """Whether no hotter attempt is left: what it comes to is kept."""
        return self.attempt + 1 == len(self.options.temperatures)

    @property
    def samples(self) -> int:
        """Lanes to draw a token for; none at temperature 0."""
        return self.options.best_of if self.temperature > 0 else 0

    @property
    def token_limit(self) -> int:
        """Half the text context, or what the prompt leaves of it."""
        n_text_ctx = self.dims.n_text_ctx
        return min(n_text_ctx // 2, n_text_ctx + 1 - self.prompt_length)

    @property
    def position(self) -> int:
        """Text position at which the net is fed next."""
        return self.prompt_length + max(0, self.length - 1)

    def begin(self) -> None:
        """Start the attempt: nothing sampled yet."""
        options, eot, limit = self.options, self.tokenizer.eot, self.token_limit
        self.fed, self.length = [], 0
        if self.temperature == 0 and options.beam_size > 1:
            self.reading = BeamSearch(options.beam_size, options.patience, options.length_penalty, eot, limit)
        elif self.temperature > 0 and options.best_of > 1:
            self.reading = BestOf(options.best_of, options.length_penalty, eot, limit)
        else:
            self.reading = Greedy(eot, limit)

    def sample(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Take one token in each lane, and its log-probability."""
        assert not isinstance(self.reading, BeamSearch)
        self._take(self.reading.step(tokens, logprobs))

    def search(self, logprobs: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]) -> list[int]:
        """Take the likeliest next tokens of each lane; returns the lane that each goes on from."""
        assert isinstance(self.reading, BeamSearch)
        parents, fed = self.reading.step(logprobs, tokens)
        self._take(fed)
        return parents

    def has_ended(self) -> bool:
        """Whether the attempt is over: read to its end, at its limit, or caught in a loop."""
        if self.reading.finished:
            return True
        if self.is_last or not self.options.stop_loops or isinstance(self.reading, BestOf):
            return False  # the last is kept whatever it is, and of several samples another may be
        looping = is_looping(self.reading.best().tokens, self.tokenizer, self.options.compression_ratio_threshold)
        if looping:
            self.rules_fired.append(LOOP)
        return looping

    def verdict(self) -> tuple[Attempt, tuple[str, ...]]:
        """The attempt, and the names of the rules that reject it; none on the last temperature."""
        best = self.reading.best()
        text = self.tokenizer.decode(list(best.tokens)).strip()
        attempt = Attempt(
            tokens=best.tokens,
            text=text,
            temperature=self.temperature,
            avg_logprob=best.sum_logprob / (len(best.tokens) + 1),
            no_speech_prob=self.no_speech_prob,
            compression_ratio=fallback.compression_ratio(text),
            reached_limit=len(best.tokens) == self.token_limit,
        )
        return attempt, () if self.is_last else fallback.failures(attempt, self.options)

    def retry(self, failed: Sequence[str]) -> None:
        """Begin again at the next temperature, `failed` being why."""
        self.rules_fired += failed
        self.attempt += 1
        self.begin()

    def _take(self, fed: list[int]) -> None:
        self.fed = fed
        self.length += 1
        self.sampled += 1
