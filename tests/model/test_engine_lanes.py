"""Beam search and the best of many samples in a pool: every window is read as it would be read alone.

Alone means here: no cache, no slots, no lanes, and one window after the other through a net of random weights. What one
reading does with its log-probabilities is tested in `test_beam.py`; here it is fed by the whole engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.beam import BeamSearch, BestOf, Candidate
from model.dimensions import OFFICIAL
from model.engine import Engine
from model.options import DecodeOptions
from model.reading import Greedy, Slot
from model.rules import Rules, RuleState
from model.sampling import random_stream
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part
from model.whisper import Whisper, from_state
from tests.model.plain import Plain
from tests.model.scripted import Heard, assert_same, babble, saying, scripted_part, transcribe

# Width 16, a context of 32 tokens of which 16 may be sampled, and the vocabulary of tiny.
DIMS = replace(OFFICIAL["tiny"], n_mels=3, n_text_ctx=32, n_audio_state=16, n_text_state=16, n_audio_head=2)
DIMS = replace(DIMS, n_text_head=2, n_audio_layer=1, n_text_layer=2)
TOKENIZER = Tokenizer.for_dimensions(DIMS)
CPU = torch.device("cpu")
# What is louder than the other fifty thousand tokens, which else would leave no room for anything like a sentence.
LOUD = (*range(2000, 2012), TOKENIZER.eot, *range(TOKENIZER.timestamp_begin, DIMS.n_vocab, 100))


@cache
def random_weights() -> dict[str, Tensor]:
    """Weights by which what is said depends on what was said and heard: small biases, strong positions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in Whisper(DIMS).state_dict().items()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, weight in weights.items():
        weight *= 0.1 if name.endswith("bias") else 1.0
    weights["decoder.positional_embedding"] *= 2
    weights["decoder.token_embedding.weight"] *= 0.3
    weights["decoder.token_embedding.weight"][[*LOUD]] *= 5
    weights["decoder.token_embedding.weight"][TOKENIZER.eot] *= 2
    return weights


@cache
def parts() -> list[Part]:
    generator = torch.Generator().manual_seed(1)
    return [random_part(number, 700 + 1400 * number, generator) for number in range(4)]


def random_part(number: int, frames: int, generator: torch.Generator) -> Part:
    mel = torch.randn(3, max(frames, 3000), generator=generator).numpy()
    return Part(f"part-{number}", mel, frames)


# --- together: the engine -----------------------------------------------------------------------------------------


@dataclass
class Read:
    """One attempt at one window, and what it began from."""

    part: Part
    seek: int
    number: int  # of the attempt
    temperature: float
    prompt: tuple[int, ...]
    attempt: Attempt


@dataclass
class WatchedEngine(Engine):
    """The engine itself; only remembering is added."""

    net: Whisper
    options: DecodeOptions
    slots: int
    reads: list[Read] = field(default_factory=list)
    at_once: set[tuple[type, ...]] = field(default_factory=set)  # kinds of readings that shared a turn

    def __post_init__(self) -> None:
        super().__init__(self.net, TOKENIZER, self.options, self.slots, encode_batch=2)

    def _verdict(self, slot: Slot) -> tuple[Attempt, tuple[str, ...]]:
        attempt, failed = super()._verdict(slot)
        of = slot.progress
        self.reads.append(Read(of.part, of.seek, slot.attempt, slot.temperature, tuple(of.prompt()), attempt))
        return attempt, failed

    def _sample(self) -> None:
        self.at_once.add(tuple(type(slot.reading) for slot in self._slots()))
        super()._sample()


def read_together(options: DecodeOptions, slots: int) -> WatchedEngine:
    """An engine that has read all parts."""
    pool = WatchedEngine(from_state(DIMS, random_weights()), options, slots)
    for part in parts():
        pool.submit(part)
    pool.drain()
    return pool


# --- alone: one window, spelled out -------------------------------------------------------------------------------


def read_alone(read: Read, options: DecodeOptions) -> Candidate:
    """The window of `read` from its log-mel on."""
    plain = Plain(DIMS, random_weights())
    features = plain.features(window(read, options))
    limit = min(16, 32 + 1 - len(read.prompt))
    reading, streams = reading_of(read, options, limit)
    lanes: list[tuple[int, ...]] = [()] * len(getattr(reading, "lanes", [()]))
    while not reading.finished:
        said = torch.tensor([(*read.prompt, *lane) for lane in lanes])
        logits = plain.logits(features.expand(len(lanes), -1, -1), said, begin=-1)[:, 0]
        logprobs = under_rules(logits, lanes, options).log_softmax(-1)
        parents, fed = advance(reading, logprobs, streams, read.temperature)
        lanes = [(*lanes[parent], token) for parent, token in zip(parents, fed, strict=True)]
    return reading.best()


def window(read: Read, options: DecodeOptions) -> Tensor:
    """(1, 3, frames): the audio and zeros, up to 30 seconds or as many whole seconds as the margin wants."""
    heard = read.part.mel[:, read.seek : min(read.seek + 3000, read.part.content_frames)]
    frames = 3000
    if options.context_margin is not None:
        frames = min(3000, -(-(heard.shape[1] + round(100 * options.context_margin)) // 100) * 100)
    return torch.from_numpy(np.pad(heard, ((0, 0), (0, frames - heard.shape[1]))))[None]


def reading_of(read: Read, options: DecodeOptions, limit: int) -> tuple[Any, list[torch.Generator]]:
    """The empty reading, and the random numbers of those of its lanes that draw."""
    penalty, eot = options.length_penalty, TOKENIZER.eot
    if read.temperature == 0:
        beam = options.beam_size > 1
        return BeamSearch(options.beam_size, options.patience, penalty, eot, limit) if beam else Greedy(eot, limit), []
    window = (options.seed, read.part.part_id, read.seek, read.number)
    streams = [random_stream(*window, lane) for lane in range(options.best_of)]
    return BestOf(options.best_of, penalty, eot, limit) if options.best_of > 1 else Greedy(eot, limit), streams


def under_rules(logits: Tensor, lanes: Sequence[tuple[int, ...]], options: DecodeOptions) -> Tensor:
    rules = Rules(TOKENIZER, options, DIMS, CPU)
    for row, lane in zip(logits, lanes, strict=True):
        state = RuleState.allocate(1, CPU)
        for token in lane:
            state.record(torch.tensor([token]), TOKENIZER.timestamp_begin)
        rules.apply(row[None], state)
    return logits


def advance(
    reading: Any, logprobs: Tensor, streams: Sequence[torch.Generator], temperature: float
) -> tuple[Sequence[int], list[int]]:
    if isinstance(reading, BeamSearch):
        top = logprobs.topk(len(reading.lanes) + 1)
        return reading.step(top.values.numpy(), top.indices.numpy())
    tokens = logprobs.argmax(-1).tolist()
    for lane, stream in enumerate(streams):
        waits = torch.empty(logprobs.shape[1]).exponential_(generator=stream)
        tokens[lane] = int(((logprobs[lane] / temperature).softmax(-1) / waits).argmax())
    chosen = [logprobs[lane, token].item() for lane, token in enumerate(tokens)]
    return range(len(tokens)), reading.step(tokens, chosen)


# --- the comparison -----------------------------------------------------------------------------------------------

# Some windows pass at temperature 0, some are tried again: searches and samples side by side in five lanes.
SEARCH = DecodeOptions.exact(
    language="en",
    beam_size=5,
    best_of=3,
    temperatures=(0.0, 0.6),
    avg_logprob_threshold=-2.0,
    compression_ratio_threshold=None,
)
PATIENCE: dict[str, Any] = {"beam_size": 3, "patience": 2.0, "length_penalty": 0.6, "best_of": 1}
MODES = {
    "patient search": (replace(SEARCH, temperatures=(0.0,), **PATIENCE), {BeamSearch}),
    "search then samples, with a margin": (replace(SEARCH, context_margin=1.0, context_from=0.0), {BeamSearch, BestOf}),
    "search then one sample": (replace(SEARCH, best_of=1), {BeamSearch, Greedy}),
    "greedy then samples": (replace(SEARCH, beam_size=1, avg_logprob_threshold=-2.35), {Greedy, BestOf}),
}


@pytest.mark.parametrize(("options", "kinds"), MODES.values(), ids=MODES)
def test_every_attempt_is_what_it_would_be_alone(options: DecodeOptions, kinds: set[type]) -> None:
    pool = read_together(options, slots=3)
    for read in pool.reads:
        best = read_alone(read, options)
        assert read.attempt.tokens == best.tokens
        assert read.attempt.avg_logprob == pytest.approx(best.sum_logprob / (len(best.tokens) + 1), abs=1e-3)
    assert len(pool.reads) >= 7 and len({len(read.attempt.tokens) for read in pool.reads}) >= 3
    assert any(set(at_once) == kinds and len(at_once) == 3 for at_once in pool.at_once)


# Lanes of a window that is said by `babble`, where slots fall free at different times and windows are tried again.
BABBLED = DecodeOptions.exact(beam_size=3, best_of=2, temperatures=(0.0, 0.7), avg_logprob_threshold=-0.5)
MANY = [scripted_part(number, 5 + 12 * number) for number in range(5)]


@pytest.mark.parametrize(("slots", "encode_batch"), [(2, 1), (4, 3)])
def test_many_parts_in_few_slots_say_what_each_says_alone(slots: int, encode_batch: int) -> None:
    alone = [transcribe(babble(), [part], BABBLED, slots=1, encode_batch=1)[0] for part in MANY]
    together = transcribe(babble(), MANY[::-1], BABBLED, slots, encode_batch)[::-1]
    assert_same(together, alone)
    assert 1 <= sum(one.windows_retried for one in alone) < sum(one.windows for one in alone)


def test_a_search_finds_what_greed_passes_by() -> None:
    """Two ways to begin: the likelier one leads to improbable words, the other does not."""
    net = saying({}, "")
    first, second, eot = 2000, 3000, net.tokenizer.eot
    zero, end = net.tokenizer.timestamp(0.0), net.tokenizer.timestamp(5.0)

    def script(heard: Heard, prompt: tuple[int, ...], sampled: tuple[int, ...]) -> dict[int, float]:
        if len(sampled) == 1:
            return {first: math.log(0.6), second: math.log(0.4)}
        if len(sampled) == 2:
            lucky = sampled[1] == second
            return {second + 1: 0.0} if lucky else dict.fromkeys(range(first + 1, first + 101), math.log(0.01))
        return {({0: zero, 3: end}.get(len(sampled), eot)): 0.0}

    net.script = script

    def said(**options: Any) -> tuple[int, ...]:
        (transcript,) = transcribe(net, [scripted_part(1, 30)], DecodeOptions.exact(temperatures=(0.0,), **options))
        return transcript.segments[0].tokens

    assert said() == (zero, first, first + 1, end)
    assert said(beam_size=2) == (zero, second, second + 1, end)


def test_all_lanes_of_all_slots_take_one_step_together() -> None:
    """A token more in every slot, however many lanes it has, is one turn and counts once."""
    net = saying({}, "<0.00> Word.<2.00>")
    options = DecodeOptions.exact(language="en", beam_size=5, temperatures=(0.0,))
    pool = Engine(net, net.tokenizer, options, slots=3)
    futures = [pool.submit(scripted_part(number, 30)) for number in range(3)]
    pool.drain()
    assert [[segment.text for segment in future.result().segments] for future in futures] == [[" Word."]] * 3
    assert net.prefill_batches == [3]
    assert set(net.steps) == {(0, 1, 2)}
    assert pool.counters.tokens == pool.counters.slot_turns == 3 * pool.counters.turns
    assert len(net.steps) == pool.counters.turns - 1
