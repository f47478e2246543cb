"""Steps in buckets: what is added to fill one changes nothing, and nothing in a step waits for the device.

Where there is no GPU, a step is not recorded but called again: what a graph would repeat on the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.cache import DecoderCache, Reach
from model.dimensions import OFFICIAL, Dimensions
from model.engine import Engine
from model.graphs import Bucket, CapturedSteps, GraphRecorder, PlainSteps, Record, Run, Steps, steps_for
from model.options import DecodeOptions
from model.precision import load_net
from model.sampling import Sampler, random_stream
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import Whisper, from_state
from tests.model.plain import random_state
from tests.model.scripted import assert_same, saying, scripted_part

# Eight mels, 12 audio positions, width 16, two heads, two layers each, 40 tokens, text context 150: three buckets long.
DIMS = Dimensions(8, 12, 16, 2, 2, 40, 150, 16, 2, 2)
SLOTS = 7  # in buckets of 2, 4 and 7
CPU = torch.device("cpu")
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@cache
def net(device: str = "cpu") -> Whisper:
    return from_state(DIMS, random_state(DIMS)).to(device)


# --- buckets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "all_slots", "held"),
    [(1, 64, 16), (16, 64, 16), (17, 64, 32), (33, 64, 64), (64, 64, 64), (2, 7, 2), (3, 7, 4), (5, 7, 7), (1, 1, 1)],
)
def test_slots_are_a_quarter_a_half_or_all(slots: int, all_slots: int, held: int) -> None:
    assert Bucket.around(slots, Reach(None, 1), all_slots, 448).slots == held


@pytest.mark.parametrize(("text", "held"), [(1, 64), (64, 64), (65, 128), (384, 384), (385, 448), (448, 448)])
def test_text_is_rounded_up_to_multiples_of_64(text: int, held: int) -> None:
    assert Bucket.around(1, Reach(None, text), 8, 448).text == held


def test_text_never_exceeds_the_context() -> None:
    assert Bucket.around(1, Reach(None, 130), 8, 150).text == 150


@pytest.mark.parametrize("ragged", [False, True])
def test_a_mask_is_computed_only_where_there_is_something_to_hide(ragged: bool) -> None:
    assert Bucket.around(1, Reach(None, 5, ragged), 8, 448) == Bucket(2, 64, ragged)


def test_every_step_fits_its_bucket_and_buckets_are_few() -> None:
    buckets = set()
    for slots in range(1, 97):
        for text in range(1, 449):
            bucket = Bucket.around(slots, Reach(None, text), 96, 448)
            assert slots <= bucket.slots <= 96 and text <= bucket.text <= 448
            buckets.add(bucket)
    assert len(buckets) == 3 * 7


# --- padding ------------------------------------------------------------------------------------------------------


def repeat(step: Run) -> Run:
    """What a graph does: the same step on the same memory."""
    return step


def run_and_repeat(step: Run) -> Run:
    """What a recorder does: it runs the step before it records it."""
    step()
    return step


@dataclass
class Pool:
    """Slots that fill, step and fall free at random, as in an engine."""

    steps: Steps
    memory: DecoderCache
    random: Random
    positions: list[int]  # of each occupied slot
    lanes: int

    def turn(self) -> Tensor:
        """Perhaps a window ends, perhaps another comes; then a step for all. Returns its logits (n, V)."""
        full = [slot for slot, position in enumerate(self.positions) if position == DIMS.n_text_ctx]
        if full or len(self.positions) == SLOTS or (self.positions and self.random.random() < 0.2):
            self.leave(max(full, default=self.random.randrange(len(self.positions))))
        if not self.positions or self.random.random() < 0.3:
            self.admit()
        return self.step()

    def leave(self, slot: int) -> None:
        last = len(self.positions) - 1
        self.memory.move(last, slot)
        self.positions[slot] = self.positions[last]
        self.positions.pop()

    def admit(self) -> None:
        """Read a prompt over windows of 24 frames, or fewer, in the first free slot."""
        slot, length = len(self.positions), self.random.choice([1, 3, 60, 125])
        mel = torch.randn(1, 8, self.random.choice([24, 24, 10]), generator=self.stream()).to(self.memory.audio.device)
        on = partial(torch.tensor, device=mel.device)
        model = net(mel.device.type)
        model.admit(model.encode(mel), self.memory, on([slot]))
        rows = on([slot * self.lanes])
        model.decode(
            self.tokens(1, length), torch.arange(length)[None].to(mel.device), self.memory, Reach(rows, length)
        )
        for lane in range(1, self.lanes):
            self.memory.follow([slot * self.lanes + lane], [slot * self.lanes], length)
        self.positions.append(length)

    def step(self) -> Tensor:
        rows = [position for position in self.positions for _ in range(self.lanes)]
        ragged = bool((self.memory.audio < DIMS.n_audio_ctx).any())
        tokens = self.tokens(len(rows), 1)
        logits = self.steps(tokens, torch.tensor(rows).to(tokens.device)[:, None], Reach(None, max(rows) + 1, ragged))
        self.positions = [position + 1 for position in self.positions]
        return logits.clone()

    def tokens(self, rows: int, count: int) -> Tensor:
        return torch.randint(40, (rows, count), generator=self.stream()).to(self.memory.audio.device)

    def stream(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.random.randrange(2**32))


def pool(record: Record | None, lanes: int, device: str = "cpu", seed: int = 0) -> Pool:
    memory = net(device).new_cache(SLOTS, lanes)
    plain = PlainSteps(net(device), memory)
    steps = plain if record is None else CapturedSteps(net(device), memory, SLOTS, record)
    return Pool(steps, memory, Random(seed), [], lanes)


def assert_same_story(one: Pool, other: Pool, turns: int) -> None:
    sizes, lengths = set(), set()
    for _ in range(turns):
        torch.testing.assert_close(one.turn(), other.turn(), atol=1e-4, rtol=1e-4)
        assert one.positions == other.positions
        sizes.add(len(one.positions))
        lengths.add(max(one.positions) // 64)
    assert len(sizes) >= 5 and lengths == {0, 1, 2}, "too little happened"


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("record", [repeat, run_and_repeat])
def test_what_fills_a_bucket_changes_no_logits_now_or_later(record: Record, lanes: int) -> None:
    assert_same_story(pool(record, lanes), pool(None, lanes), turns=80)


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize("lanes", [1, 3])
def test_graphs_compute_what_plain_steps_do(device: str, lanes: int) -> None:
    recorder = GraphRecorder(torch.device(device))
    assert_same_story(pool(recorder, lanes, device), pool(None, lanes, device), turns=120)


@pytest.mark.parametrize("device", [ON_GPU])
def test_float32_is_float32_on_a_gpu(device: str) -> None:
    """Not TF32, by which torch would compute convolutions."""
    mel = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(1))
    there = load_net(DIMS, random_state(DIMS), "float32", torch.device(device))
    torch.testing.assert_close(there.encode(mel).cpu(), net().encode(mel), atol=1e-5, rtol=1e-5)


def test_idle_slots_in_a_bucket_are_written_at_position_0_only() -> None:
    """So the comparison above compares something: what stands in an idle slot is not what stood there."""
    captured = pool(repeat, lanes=1)
    for _ in range(3):
        captured.admit()
    before = captured.memory.self_k.clone()
    captured.step()
    changed = (captured.memory.self_k != before).any(-1).any(2).any(0)  # (slots, n_text_ctx)
    assert changed[3].nonzero().tolist() == [[0]]
    assert not changed[4:].any()


# --- recording ----------------------------------------------------------------------------------------------------


def test_a_bucket_is_recorded_once_when_it_is_first_needed() -> None:
    recorded = []

    def record(step: Run) -> Run:
        recorded.append(step)
        return step

    captured = pool(record, lanes=1)
    assert recorded == []
    for positions, known in [([62], 1), ([63], 1), ([64], 2), ([1, 65], 2), ([1, 1, 65], 3), ([9], 3), ([3] * 7, 4)]:
        captured.positions = positions
        captured.step()
        assert len(recorded) == known
    captured.memory.audio[0] = 5
    captured.step()
    assert len(recorded) == 5


def test_only_the_logits_that_are_asked_for_are_returned() -> None:
    for record in (None, repeat):
        some = pool(record, lanes=2)
        for _ in range(3):
            some.admit()
        tokens, at = some.tokens(6, 1), torch.tensor([[position] for position in some.positions for _ in range(2)])
        reach = Reach(None, int(at.max()) + 1, ragged=True)
        every = some.steps(tokens, at, reach).clone()
        assert every.shape == (6, 40)
        torch.testing.assert_close(some.steps(tokens, at, reach, torch.tensor([4, 1])), every[[4, 1]])


def test_without_a_gpu_steps_run_as_they_come() -> None:
    memory = net().new_cache(2)
    assert steps_for(net(), memory, 2) == PlainSteps(net(), memory)


# --- the engine ---------------------------------------------------------------------------------------------------

SMALL = replace(OFFICIAL["tiny"], n_mels=3, n_text_ctx=32, n_audio_state=16, n_text_state=16, n_audio_head=2)
SMALL = replace(SMALL, n_text_head=2, n_audio_layer=1, n_text_layer=1)


@pytest.mark.parametrize("options", [DecodeOptions(temperatures=(0.0, 0.4)), DecodeOptions(beam_size=2, best_of=2)])
def test_an_engine_says_the_same_in_buckets(options: DecodeOptions) -> None:
    generator = torch.Generator().manual_seed(1)
    small, options = from_state(SMALL, random_state(SMALL)), replace(options, language="en", context_margin=2.0)
    parts = [
        Part(str(frames), torch.randn(3, frames, generator=generator).numpy(), frames) for frames in (900, 3200, 400)
    ]

    def run(in_buckets: bool) -> list[Transcript]:
        engine = Engine(small, Tokenizer.for_dimensions(SMALL), options, slots=2)
        if in_buckets:
            engine.steps = CapturedSteps(small, engine._cache, 2, run_and_repeat)
        futures = [engine.submit(part) for part in parts]
        engine.drain()
        return [future.result(timeout=0) for future in futures]

    said = run(in_buckets=True)
    assert_same(said, run(in_buckets=False))
    assert sum(transcript.tokens for transcript in said) > 100


def test_the_logits_of_a_slot_that_has_just_begun_are_not_asked_for() -> None:
    """It rides along with the other, whose window is longer; its own logits are those of the prompt."""
    said = {
        (1, 0): "<0.00> One.<2.00>",
        (1, 200): "<0.00> Two.<9.00>",
        (2, 0): "<0.00> A longer sentence by far.<9.00>",
    }
    scripted = saying(said, "<0.00> End.<9.00>")
    engine = Engine(scripted, scripted.tokenizer, DecodeOptions.exact(temperatures=(0.0,)), slots=2)
    plain, asked = engine.steps, []

    def watching(tokens: Tensor, positions: Tensor, reach: Reach, rows: Tensor | None = None) -> Tensor:
        asked.append((len(tokens), None if rows is None else tuple(rows.tolist())))
        return plain(tokens, positions, reach, rows)

    engine.steps = watching
    futures = [engine.submit(scripted_part(1, 60)), engine.submit(scripted_part(2, 30))]
    engine.drain()
    assert {(2, None), (2, (1,))} <= set(asked)
    assert [segment.text for segment in futures[1].result().segments] == [" A longer sentence by far."]


# --- no waiting ---------------------------------------------------------------------------------------------------


class Crossings(TorchDispatchMode):
    """Names of the operations that take numbers from the host to the device without data, in order.

    From there nothing can be taken: a tensor on "meta" that is read, or whose values decide a shape, raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.all: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        touched = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.all.append(func.overloadpacket.__name__)
        if len({tensor.device.type for tensor in touched}) > 1:
            self.names.append(self.all[-1])
        return result


@pytest.fixture
def crossings() -> Iterator[Crossings]:
    far_away()  # loaded before anything is counted
    with Crossings() as mode:
        yield mode


META = torch.device("meta")
BIG = replace(OFFICIAL["large-v3"], n_text_layer=2, n_audio_layer=2)


@cache
def far_away() -> Whisper:
    with META:
        return Whisper(BIG).to(META, torch.float16).requires_grad_(False).eval()


def far_tokens(rows: int, count: int) -> Tensor:
    return torch.zeros(rows, count, dtype=torch.int64, device=META)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("lanes", [1, 5])
def test_a_step_neither_waits_nor_copies(lanes: int, ragged: bool, crossings: Crossings) -> None:
    memory = far_away().new_cache(8, lanes)
    for steps in (PlainSteps(far_away(), memory), CapturedSteps(far_away(), memory, 8, repeat)):
        logits = steps(far_tokens(3 * lanes, 1), far_tokens(3 * lanes, 1), Reach(None, 200, ragged))
        assert (logits.shape, logits.dtype, logits.device) == ((3 * lanes, BIG.n_vocab), torch.float32, META)
    assert crossings.names == []


@pytest.mark.parametrize("ragged", [False, True])
def test_a_prompt_and_what_is_heard_neither_wait_nor_copy(ragged: bool, crossings: Crossings) -> None:
    memory, slots = far_away().new_cache(8), far_tokens(1, 3)[0]
    heard = far_away().encode(torch.zeros(3, BIG.n_mels, 3000, device=META))
    far_away().admit(heard, memory, slots)
    far_away().decode(far_tokens(3, 9), far_tokens(3, 9), memory, Reach(slots, 9, ragged))
    memory.move(2, 1)
    assert crossings.names == []


def far_sampler(lanes: int = 1, beam_size: int = 1) -> Sampler:
    tokenizer = Tokenizer.for_dimensions(BIG)
    return Sampler(tokenizer, DecodeOptions(beam_size=beam_size), BIG, 4, META, lanes)


def test_the_rules_neither_wait_nor_copy_and_the_tokens_are_read_once() -> None:
    sampler = far_sampler()
    for slot in range(4):
        sampler.start(slot, 0.0, [])
    with Crossings() as crossings, pytest.raises(NotImplementedError, match="no data"):
        sampler.choose(4)  # what it does last, it does not survive here
    assert "logsumexp" in crossings.all and crossings.all[-1] == "stack"
    assert crossings.names == []


def test_tokens_are_recorded_and_logits_updated_without_waiting(crossings: Crossings) -> None:
    sampler = far_sampler(lanes=2)
    sampler.admit(1, torch.zeros(BIG.n_vocab, device=META))
    sampler.start(1, 0.0, [])
    sampler.move(1, 0)
    sampler.update(slice(2), torch.zeros(2, BIG.n_vocab, device=META))
    sampler.update(far_tokens(1, 2)[0], torch.zeros(2, BIG.n_vocab, device=META))
    assert crossings.names == []
    sampler.record([1, 2, 3])
    sampler.follow([1, 0, 2])
    assert crossings.names == ["_to_copy", "_to_copy"]  # the tokens, the parents


def test_all_that_is_drawn_in_a_step_travels_together() -> None:
    sampler = far_sampler(lanes=2)
    for slot in range(3):
        sampler.start(slot, 0.4, [random_stream(0, "part", 0, 1, lane) for lane in range(2)])
    with Crossings() as crossings, pytest.raises(NotImplementedError, match="no data"):
        sampler.choose(3)
    assert crossings.names == ["_to_copy"] * 3  # rows, temperatures, and the waits of all of them


def test_the_likeliest_of_all_lanes_are_read_once() -> None:
    sampler = far_sampler(lanes=2, beam_size=2)
    with Crossings() as crossings, pytest.raises(NotImplementedError, match="no data"):
        sampler.likeliest([0, 2])
    assert crossings.names == ["_to_copy"]  # the rows
    assert crossings.all[-1] == "stack"
