"""Several readings of one window side by side, and the likeliest of them: beam search, and the best of many samples.

A window has lanes, and each lane reads on by one token a step. What stands here is bookkeeping alone: in come a few
log-probabilities of every lane, under all rules; out goes the token each lane is fed next, and, in beam search, the
lane whose history it takes over. It knows nothing of tensors, devices, slots, rules, or the net.

Given the same log-probabilities it equals openai/whisper's `decoding.py` to the last bit, one window at a time. Hence
sums are kept in float32, and what is equally likely stays in the order it came in. Patience is that of Kasai et al.
2022 (arXiv:2204.05424), the length penalty that of Wu et al. 2016 (arXiv:1609.08144, equation 14).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import UsageError


class Candidate(NamedTuple):
    """One reading of a window, finished or not."""

    tokens: tuple[int, ...]  # without the end of text
    sum_logprob: float  # of the tokens, and of the end of text if it came; always a float32 value


EMPTY = Candidate((), 0.0)


class BeamSearch:
    """The `beam_size` likeliest unfinished readings of one window, and those that have ended on the way.

    patience: the search is over when beam_size × patience readings have ended. token_limit: or after so many steps.
    length_penalty: see `likeliest`. Raises: `UsageError` where `candidates_wanted` does.
    """

    def __init__(
        self, beam_size: int, patience: float, length_penalty: float | None, eot: int, token_limit: int
    ) -> None:
        self._beam_size, self._wanted = beam_size, candidates_wanted(beam_size, patience)
        self._length_penalty, self._eot, self._token_limit = length_penalty, eot, token_limit
        self.lanes = [EMPTY] * beam_size  # unfinished, the likeliest first
        self.ended: list[Candidate] = []  # in the order they came

    @property
    def finished(self) -> bool:
        return len(self.ended) >= self._wanted or len(self.lanes[0].tokens) >= self._token_limit

    def step(self, top_logprobs: ArrayLike, top_tokens: ArrayLike) -> tuple[list[int], list[int]]:
        """Extend the lanes; returns for each the lane whose history it continues, and the token it is fed next.

        Both arguments are (beam_size, beam_size + 1): float32 log-probabilities of the likeliest next tokens of each
        lane, in falling order, and their ids; further rows and columns are ignored. There are always enough to go on
        with, one token of a lane at most being the end: where the rules leave fewer, forbidden ones, at -inf, fill up.
        """
        rows, columns = self._beam_size, self._beam_size + 1
        tokens = np.asarray(top_tokens)[:rows, :columns].reshape(rows * columns).tolist()
        logprobs = np.asarray(top_logprobs, np.float32)[:rows, :columns]
        totals = (_sums(self.lanes)[:, None] + logprobs).ravel().tolist()
        parents, fed, lanes = [], [], []
        for index in self._ranked(tokens, totals):
            lane, token, total = index // columns, tokens[index], totals[index]
            read = self.lanes[lane].tokens
            if token != self._eot:
                parents.append(lane)
                fed.append(token)
                lanes.append(Candidate((*read, token), total))
                if len(lanes) == self._beam_size:
                    break
            elif len(self.ended) < self._wanted:
                self.ended.append(Candidate(read, total))
        self.lanes = lanes
        return parents, fed

    def best(self) -> Candidate:
        """The likeliest of those that ended, and of the unfinished ones if fewer than beam_size have.

        So with a patience below 1 an unfinished reading may win, although the search did not run into its limit.
        """
        candidates = list(self.ended)
        if len(candidates) < self._beam_size:
            rising = np.argsort(_sums(self.lanes))  # the reference's way, by which the last of equals comes first
            candidates.append(self.lanes[rising[-1]])  # all lanes are equally long, so no other could win
        return likeliest(candidates, self._length_penalty)

    def _ranked(self, tokens: list[int], totals: list[float]) -> list[int]:
        """Indices of the extensions of all lanes, the likeliest first, equals by lane; each reading once."""
        indices: Iterable[int] = range(len(tokens))
        if not self.lanes[0].tokens:  # before the first step all lanes read the same; ever after, no two do
            indices = {token: index for index, token in enumerate(tokens)}.values()
        return sorted(indices, key=totals.__getitem__, reverse=True)


class BestOf:
    """`best_of` readings of one window sampled independently, each until its own end of text; greedy if it is one.

    token_limit: all are over after so many steps. length_penalty: see `likeliest`.
    """

    def __init__(self, best_of: int, length_penalty: float | None, eot: int, token_limit: int) -> None:
        self._length_penalty, self._eot, self._token_limit = length_penalty, eot, token_limit
        self.lanes = [EMPTY] * best_of
        self._ended = [False] * best_of
        self._steps = 0

    @property
    def finished(self) -> bool:
        return all(self._ended) or self._steps >= self._token_limit

    def step(self, tokens: Sequence[int], logprobs: ArrayLike) -> list[int]:
        """Extend each lane by the token sampled for it; returns what it is fed next, the end for those at theirs.

        logprobs: of these tokens, at temperature 1. For a lane that has ended both may be anything, and what stands
        behind the last lane is ignored.
        """
        count = len(self.lanes)
        totals = (_sums(self.lanes) + np.asarray(logprobs, np.float32)[:count]).tolist()
        fed = [self._eot if ended else token for ended, token in zip(self._ended, tokens[:count], strict=True)]
        self.lanes = [
            lane if ended else Candidate(lane.tokens if token == self._eot else (*lane.tokens, token), total)
            for lane, ended, token, total in zip(self.lanes, self._ended, fed, totals, strict=True)
        ]
        self._ended = [token == self._eot for token in fed]
        self._steps += 1
        return fed

    def best(self) -> Candidate:
        """The likeliest of all lanes, whether they ended or ran into the limit."""
        return likeliest(self.lanes, self._length_penalty)


def candidates_wanted(beam_size: int, patience: float) -> int:
    """How many readings must have ended for a beam search to be over; a half is rounded to the even number.

    Raises: `UsageError` when that is none.
    """
    wanted = round(beam_size * patience)
    if wanted < 1:
        raise UsageError(
            f"beam_size {beam_size} × patience {patience} is {wanted} candidates: raise one of them to make it 1."
        )
    return wanted


def likeliest(candidates: Sequence[Candidate], length_penalty: float | None) -> Candidate:
    """The candidate of the highest log-probability per token, the first of equals; the end of text is not counted.

    length_penalty: alpha, from 0 (the plain sum decides) to 1; None divides by the length. An empty candidate counts
    as one token, where openai/whisper would divide by zero.
    """
    scores = [candidate.sum_logprob / _penalty(len(candidate.tokens), length_penalty) for candidate in candidates]
    return candidates[int(np.argmax(scores))]


def _penalty(length: int, length_penalty: float | None) -> float:
    if length_penalty is None:
        return max(length, 1)
    return float(((5 + length) / 6) ** length_penalty)


def _sums(lanes: Iterable[Candidate]) -> NDArray[np.float32]:
    return np.array([lane.sum_logprob for lane in lanes], np.float32)  # (lanes,)
