"""Beam search, best of many samples and their ranking equal openai-whisper's own classes, step by step and bit by bit.

A script stands for the net: the logits after any reading are drawn by a generator that the reading seeds, so a lane
that continues the wrong history says something else from then on. The vocabulary is tiny, and ties are many. In the
last tests a real decoder with random weights is behind both.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from model.beam import BeamSearch, BestOf, Candidate, likeliest

whisper = pytest.importorskip("whisper", reason="the extra `parity` is not installed")
decoding = pytest.importorskip("whisper.decoding", reason="the extra `parity` is not installed")

pytestmark = [
    pytest.mark.parity,
    # The reference sorts a tensor by NumPy, which wants tensors to be wrapped differently one day.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

WORDS, EOT = 9, 9
SIZE = WORDS + 1
PROMPT = (20, 21, 22)  # never looked at
SEEDS = range(12)
SIZES_AND_PATIENCES = [(size, patience) for size in range(1, 6) for patience in (0.5, 1.0, 1.5, 2.0)][1:]  # not 1 × 0.5
LENGTH_PENALTIES = (None, 0.0, 0.6, 1.0)

Script = Callable[[tuple[int, ...], int], Tensor]  # logits (SIZE,) after a reading, in a lane


def plain(logits: Tensor, random: torch.Generator) -> Tensor:
    return logits


def tied(logits: Tensor, random: torch.Generator) -> Tensor:
    return logits.round()


def forbidding(logits: Tensor, random: torch.Generator) -> Tensor:
    """Often fewer tokens are allowed than a beam needs, and the end among those that are not."""
    forbidden = torch.rand(SIZE, generator=random) < 0.7
    forbidden[int(logits.argmax())] = False
    return logits.masked_fill(forbidden, -math.inf)


def write(
    seed: int, manner: Callable[[Tensor, torch.Generator], Tensor], rounding: float, may_be_empty: bool
) -> Script:
    """`rounding`: by how much lanes differ that read the same, as the rows of a matrix product do."""

    def script(reading: tuple[int, ...], lane: int) -> Tensor:
        random = torch.Generator().manual_seed(zlib.crc32(repr((seed, reading)).encode()))
        logits = torch.randn(SIZE, generator=random) * 1.5
        logits[EOT] += seed % 3
        if reading:
            logits = manner(logits, random)
        elif not may_be_empty:
            logits[EOT] = -math.inf
        noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(lane))
        return logits + rounding * noise

    return script


class Rearrangements(decoding.Inference):
    """Remembers how the reference rearranges its cache."""

    def rearrange_kv_cache(self, source_indices: list[int]) -> None:
        self.sources = source_indices


def readings(tokens: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[len(PROMPT) :]) for row in tokens.tolist()]


def chosen(candidates: list[list[Any]], sums: list[list[float]], penalty: float | None, start: int) -> Candidate:
    """What the reference makes of the candidates of its decoder: cut at the end of text, and ranked."""
    cut = [tuple(itertools.takewhile(lambda token: token != EOT, c.tolist()[start:])) for c in candidates[0]]
    index = decoding.MaximumLikelihoodRanker(penalty).rank([cut], sums)[0]
    return Candidate(cut[index], sums[0][index])


class TwoSearches:
    """Both beam searches through one script, compared after every step."""

    def __init__(self, script: Script, ours: BeamSearch, beam_size: int, patience: float) -> None:
        self.script, self.ours, self.beam_size = script, ours, beam_size
        self.cache = Rearrangements()
        self.theirs = decoding.BeamSearchDecoder(beam_size, EOT, self.cache, patience)
        self.tokens = torch.tensor([PROMPT] * beam_size)
        self.sums = torch.zeros(beam_size)
        self.histories: list[tuple[int, ...]] = [()] * beam_size  # what our lanes have been fed

    def step(self) -> bool:
        """Whether the reference has enough."""
        logits = torch.stack([self.script(reading, lane) for lane, reading in enumerate(self.histories)])
        self.tokens, completed = self.theirs.update(self.tokens, logits, self.sums)
        top = logits.log_softmax(-1).topk(self.beam_size + 1)
        parents, fed = self.ours.step(top.values.numpy(), top.indices.numpy())
        self.histories = [(*self.histories[parent], token) for parent, token in zip(parents, fed, strict=True)]
        assert parents == self.cache.sources
        assert self.histories == readings(self.tokens)
        assert self.ours.lanes == list(zip(self.histories, self.sums.tolist(), strict=True))
        ended = [(reading[len(PROMPT) : -1], total) for reading, total in self.theirs.finished_sequences[0].items()]
        assert self.ours.ended == ended
        assert self.ours.finished or not completed
        return bool(completed)

    def best(self, penalty: float | None) -> Candidate:
        candidates, sums = self.theirs.finalize(self.tokens[None], self.sums[None])
        return chosen(candidates, sums, penalty, len(PROMPT))


@pytest.mark.parametrize("manner", [plain, tied, forbidding])
@pytest.mark.parametrize(("beam_size", "patience"), SIZES_AND_PATIENCES)
def test_beam_search(beam_size, patience, manner) -> None:
    for seed in SEEDS:
        penalty, limit = LENGTH_PENALTIES[seed % 4], (2, 6, 14)[seed % 3]
        script = write(seed, manner, rounding=0.0, may_be_empty=penalty is not None)
        ours = BeamSearch(beam_size, patience, penalty, EOT, limit)
        searches = TwoSearches(script, ours, beam_size, patience)
        completed = False
        while not ours.finished:
            completed = searches.step()
        assert completed or len(ours.lanes[0].tokens) == limit
        assert ours.best() == searches.best(penalty)


@pytest.mark.parametrize("rounding", [1e-7, 0.05])
def test_lanes_that_read_the_same_may_differ_in_their_last_bits(rounding) -> None:
    """Before the first step: the last lane's numbers count, in the order in which the first lane had them."""
    for seed in SEEDS:
        ours = BeamSearch(5, 1.0, None, EOT, 6)
        searches = TwoSearches(write(seed, tied, rounding, may_be_empty=False), ours, 5, 1.0)
        while not ours.finished:
            searches.step()
        assert ours.best() == searches.best(None)


def test_the_searches_end_in_every_way() -> None:
    """The scripts are worth their name: with enough ended, by the limit, with ended and with unfinished winners."""
    ways = set()
    for seed, limit, patience in itertools.product(SEEDS, (3, 14), (0.5, 2.0)):
        ours, script = BeamSearch(3, patience, None, EOT, limit), write(seed, plain, 0.0, may_be_empty=False)
        searches = TwoSearches(script, ours, 3, patience)
        while not ours.finished:
            searches.step()
        ways.add((len(ours.lanes[0].tokens) == limit, ours.best() in ours.ended))
    assert ways == set(itertools.product((True, False), repeat=2))


@pytest.mark.parametrize("best_of", [1, 2, 5])
def test_best_of(best_of) -> None:
    for seed in SEEDS:
        penalty, limit, temperature = LENGTH_PENALTIES[seed % 4], (2, 6, 14)[seed % 3], (0.2, 1.0)[seed % 2]
        script = write(seed, plain, 0.0, may_be_empty=penalty is not None)
        theirs, ours = decoding.GreedyDecoder(temperature, EOT), BestOf(best_of, penalty, EOT, limit)
        tokens, sums = torch.tensor([PROMPT] * best_of), torch.zeros(best_of)
        for step in range(limit):
            assert not ours.finished
            logits = torch.stack([script(reading, 0) for reading in readings(tokens)])
            torch.manual_seed(step)
            sampled = Categorical(logits=logits / temperature).sample()  # also for lanes that have ended
            torch.manual_seed(step)
            tokens, completed = theirs.update(tokens, logits, sums)
            logprobs = logits.log_softmax(-1).gather(1, sampled[:, None])[:, 0]
            assert ours.step(sampled.tolist(), logprobs.numpy()) == tokens[:, -1].tolist()
            assert [lane.sum_logprob for lane in ours.lanes] == sums.tolist()
            if completed:
                break
        assert ours.finished
        candidates, totals = theirs.finalize(tokens[None], sums[None])
        assert ours.best() == chosen(list(candidates), totals, penalty, len(PROMPT))


@pytest.mark.parametrize("penalty", [*LENGTH_PENALTIES, 0.9])
def test_ranking(penalty) -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        lengths = torch.randint(1, 6, (5,), generator=random).tolist()
        sums = (-lengths[0] * torch.rand(5, generator=random)).mul(8).round().div(8).tolist()  # often equal
        candidates = [
            Candidate((lane,) * length, total) for lane, (length, total) in enumerate(zip(lengths, sums, strict=True))
        ]
        index = decoding.MaximumLikelihoodRanker(penalty).rank([[c.tokens for c in candidates]], [sums])[0]
        assert likeliest(candidates, penalty) == candidates[index]


def test_where_the_reference_divides_by_zero_an_empty_reading_counts_as_one_token() -> None:
    with pytest.raises(ZeroDivisionError):
        decoding.MaximumLikelihoodRanker(None).rank([[(), (1,)]], [[-0.4, -0.5]])
    assert likeliest([Candidate((), -0.4), Candidate((1,), -0.5)], None) == Candidate((), -0.4)


# --- whole windows: the reference's own loop over a decoder with random weights ---------------------------------------

DIMS = dict(n_mels=80, n_audio_ctx=4, n_audio_state=16, n_audio_head=2, n_audio_layer=1)
DIMS |= dict(n_vocab=51_864, n_text_ctx=16, n_text_state=16, n_text_head=2, n_text_layer=1)
FEW_WORDS = range(1000, 1015)


@pytest.fixture(scope="module")
def net() -> Any:
    """A net of the reference; 16 tokens of context, of which half may be sampled."""
    torch.manual_seed(0)
    net = whisper.Whisper(whisper.ModelDimensions(**DIMS)).requires_grad_(False).eval()
    net.decoder.positional_embedding.normal_(0, 2)  # strong, or it would say one word for ever
    net.decoder.ln.weight *= 0.5  # or be too sure of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the vocabulary's file is left to the garbage collector
        whisper.tokenizer.get_tokenizer(net.is_multilingual, num_languages=net.num_languages)  # read once, then kept
    return net


def decode(task: Any, search: BeamSearch, features: Tensor) -> Candidate:
    """Our search over the net and the rules of a task of the reference's, without a cache."""
    lanes = [task.initial_tokens] * task.n_group
    while not search.finished:
        tokens = torch.tensor(lanes)
        logits = task.model.logits(tokens, features.expand(task.n_group, -1, -1))[:, -1]
        for rule in task.logit_filters:
            rule.apply(logits, tokens)
        top = logits.log_softmax(-1).topk(task.n_group + 1)
        parents, fed = search.step(top.values.numpy(), top.indices.numpy())
        lanes = [(*lanes[parent], token) for parent, token in zip(parents, fed, strict=True)]
    return search.best()


@pytest.mark.parametrize("prompt", [[], [1001, 1002], list(range(1000, 1009))])
@pytest.mark.parametrize(("beam_size", "patience", "penalty"), [(5, 1.0, None), (2, 2.0, 0.5), (4, 0.5, None)])
def test_whole_windows(beam_size, patience, penalty, prompt, net) -> None:
    eot = whisper.tokenizer.get_tokenizer(False).eot
    never = sorted(set(range(net.dims.n_vocab)) - {eot, *FEW_WORDS})
    for seed in range(3):
        options = decoding.DecodingOptions(
            language="en", beam_size=beam_size, patience=patience, length_penalty=penalty, prompt=prompt,
            suppress_tokens=list(never), without_timestamps=True, fp16=False,
        )  # fmt: skip
        features = 5 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed))
        theirs = whisper.decode(net, features, options)[0]
        task = decoding.DecodingTask(net, options)
        limit = min(8, 16 + 1 - len(task.initial_tokens))
        ours = decode(task, BeamSearch(beam_size, patience, penalty, eot, limit), features)
        assert list(ours.tokens) == theirs.tokens
        assert ours.sum_logprob / (len(ours.tokens) + 1) == pytest.approx(theirs.avg_logprob, abs=1e-4)
