"""The pool of slots, driven by a scripted net: what shares a batch, what is never computed twice, and nobody waits
for ever. What happens within a part is in `test_engine_windows.py`."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from functools import cache

import pytest
import torch

from model.dimensions import OFFICIAL
from model.engine import Counters, Engine
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import Whisper, from_state
from tests.model.scripted import Line, ScriptedNet, assert_same, babble, saying, scripted_part, transcribe

GREEDY = DecodeOptions.exact(temperatures=(0.0,))
UNSURE = DecodeOptions.exact(avg_logprob_threshold=-0.5)  # so that more of what `babble` says is tried again


def engine(net: ScriptedNet, options: DecodeOptions = GREEDY, slots: int = 4, encode_batch: int = 4) -> Engine:
    return Engine(net, net.tokenizer, options, slots, encode_batch)


def numbered(futures: list[Future[Transcript]]) -> list[str]:
    return [future.result(timeout=0).part_id for future in futures]


# --- slots --------------------------------------------------------------------------------------------------------


def test_a_freed_slot_is_used_in_the_next_turn() -> None:
    """Three windows of five tokens and their end, through one slot: 18 turns, in each of which a token was sampled."""
    one = engine(saying({}, "<0.00> One two three.<2.00>"), slots=1)
    assert len(one._tokenizer.encode(" One two three.")) == 4
    futures = [one.submit(scripted_part(number, 30)) for number in range(3)]
    one.drain()
    assert one.counters.turns == one.counters.tokens == one.counters.slot_turns == 3 * 7
    assert one.counters.occupancy(1) == 1.0
    assert numbered(futures) == ["part-0", "part-1", "part-2"]


def test_slots_stay_full_while_anything_waits() -> None:
    """Windows of different lengths, so that slots fall free at different times."""
    said = {(number, 0): f"<0.00>{' la' * (3 + 5 * number)}<2.00>" for number in range(8)}
    pool = engine(saying(said), replace(GREEDY, compression_ratio_threshold=None), slots=3, encode_batch=2)
    for number in range(8):
        pool.submit(scripted_part(number, 30))
    pool.turn()
    while pool._waiting or pool._encoded:
        before = pool.counters.slot_turns
        pool.turn()
        assert pool.counters.slot_turns == before + 3
    pool.drain()
    assert pool.counters.occupancy(3) > 0.75


def test_slots_that_lie_apart_are_refilled_together() -> None:
    """The first and the third of three end in one turn, the second goes on."""
    said = {(1, 0): f"<0.00>{' la' * 20}<2.00>"} | {
        (number, 0): f"<0.00> Word {number}.<2.00>" for number in (0, 2, 3, 4)
    }
    net = saying(said)
    transcripts = transcribe(net, [scripted_part(number, 30) for number in range(5)], GREEDY, slots=3, encode_batch=5)
    assert [one.segments[0].text for one in transcripts if one.part_id != "part-1"] == [
        f" Word {number}." for number in (0, 2, 3, 4)
    ]
    assert net.prefill_batches == [3, 2]
    assert [reach.slots for reach in net.reaches if reach.rows is not None] == [slice(0, 3), None]


def test_the_next_window_of_a_part_takes_the_slot_of_the_last() -> None:
    one = engine(saying({}, "<0.00> Word.<2.00>"), slots=2)
    one.submit(scripted_part(1, 90))
    one.drain()
    assert one.counters.turns == one.counters.tokens == 3 * 5


def test_occupancy_is_the_share_of_slots_with_a_token_to_sample() -> None:
    assert Counters().occupancy(4) == 0.0
    assert Counters(turns=10, slot_turns=25).occupancy(4) == 0.625
    pool = engine(saying({}, "<0.00> Word.<2.00>"), slots=4)
    pool.submit(scripted_part(1, 30))
    pool.drain()
    assert pool.counters.occupancy(4) == 0.25


def test_windows_of_all_parts_are_decoded_together() -> None:
    net = saying({}, "<0.00> Word.<2.00>")
    transcribe(net, [scripted_part(number, 30) for number in range(5)], GREEDY, slots=5, encode_batch=5)
    assert net.encode_batches == [5]
    assert net.prefill_batches == [5]
    assert net.steps == [(0, 1, 2, 3, 4)] * 4


def test_a_step_looks_back_as_far_as_the_longest_text_and_no_further() -> None:
    """Self-attention reads so much of the cache at every step."""
    net = saying({(1, 0): "<0.00> One two three four.<2.00>"}, "<0.00> Five.<2.00>")
    transcribe(net, [scripted_part(1, 60), scripted_part(2, 30)], GREEDY, slots=2)
    prompt, first = 3, 7 + 1  # tokens of the first window, and its end, which is not fed
    second = 1 + 7 + prompt  # all of the first window, behind the symbol that says so
    assert [reach.text for reach in net.reaches] == [
        *range(prompt, prompt + first),
        *range(second, second + 5),
    ]


def test_attempts_at_different_temperatures_are_decoded_together() -> None:
    sure = " A long and perfectly ordinary sentence that goes on for a while yet."
    retried = Line("<0.00> Bad bad.<2.00>", logprob=-2.0, hotter=Line(f"<0.00> So{sure}<9.00>", logprob=-0.01))
    net = saying({(1, 0): retried, (2, 0): f"<0.00>{sure * 2}<9.00>"})
    first, second = transcribe(net, [scripted_part(1, 30), scripted_part(2, 30)], slots=2)
    assert (first.segments[0].temperature, second.segments[0].temperature) == (0.2, 0.0)
    # One step in which part 1 just began again and rides along; every other feeds both, until part 2 is done.
    shared = [step for step in net.steps if len(step) == 2]
    assert len(shared) > 20
    assert set(shared) == {(1, 2)}


def test_a_batch_is_encoded_when_slots_fall_free_and_no_larger_than_asked() -> None:
    net = saying({}, "<0.00> Word.<2.00>")
    transcribe(net, [scripted_part(number, 30) for number in range(7)], GREEDY, slots=2, encode_batch=3)
    assert net.encode_batches == [3, 3, 1]
    assert max(net.prefill_batches) <= 2


def test_the_part_with_most_left_goes_first() -> None:
    net = saying({}, "<0.00> Word.<2.00>")
    seconds = {1: 35, 2: 95, 3: 65, 4: 65}
    transcribe(net, [scripted_part(*part) for part in seconds.items()], GREEDY, slots=1, encode_batch=1)
    heard = [window.part for window in net.heard if not window.silence_behind]
    assert heard == [2, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]


def test_counters_add_up() -> None:
    net = saying({}, "<0.00> Word.<2.00>")
    pool = engine(net)
    futures = [pool.submit(scripted_part(number, 30 + 10 * number)) for number in range(3)]
    pool.drain()
    transcripts = [future.result() for future in futures]
    assert pool.counters.windows == sum(transcript.windows for transcript in transcripts) == 5
    assert pool.counters.tokens == sum(transcript.tokens for transcript in transcripts) == 25
    assert pool.counters.audio_frames == 3000 + 4000 + 5000
    assert pool.counters.attempts == 5
    assert pool.counters.encoded_windows == len(net.heard) == 5


# --- the same words, whatever the batch ---------------------------------------------------------------------------

MANY = [scripted_part(number, 5 + 12 * number) for number in range(8)]


@cache
def alone() -> list[Transcript]:
    """What each part says in an engine of its own."""
    return [transcribe(babble(), [part], UNSURE, slots=1, encode_batch=1)[0] for part in MANY]


@pytest.mark.parametrize(("slots", "encode_batch"), [(2, 1), (3, 5), (16, 4)])
def test_many_parts_in_few_slots_say_what_each_says_alone(slots: int, encode_batch: int) -> None:
    together = transcribe(babble(), MANY, UNSURE, slots, encode_batch)
    assert_same(together, alone())
    assert sum(transcript.windows_retried for transcript in together) >= 5


def test_the_order_of_submission_does_not_matter() -> None:
    assert_same(transcribe(babble(), MANY[::-1], UNSURE, slots=3)[::-1], alone())


def test_an_english_only_model_says_the_same_in_any_batch() -> None:
    parts = [scripted_part(number, 20 * number) for number in range(1, 4)]
    together = transcribe(babble(english_only=True), parts, UNSURE, slots=2)
    assert_same(together, [transcribe(babble(english_only=True), [part], UNSURE, slots=1)[0] for part in parts])


def test_the_seed_decides_hot_windows_and_no_others() -> None:
    def words(temperature: float, seed: int) -> list[list[str]]:
        options = DecodeOptions.exact(temperatures=(temperature,), seed=seed)
        return [[segment.text for segment in one.segments] for one in transcribe(babble(), MANY[:3], options)]

    assert words(0.0, seed=0) == words(0.0, seed=1)
    assert words(0.6, seed=0) == words(0.6, seed=0)
    assert words(0.6, seed=0) != words(0.6, seed=1)


def test_parts_with_the_same_sound_and_other_names_draw_differently() -> None:
    part = scripted_part(1, 30)
    twin = Part("twin", part.mel, part.content_frames)
    one, same, other = transcribe(babble(), [part, part, twin], DecodeOptions.exact(temperatures=(1.0,)))
    assert one == same
    assert one.segments != other.segments


def test_a_real_net_says_the_same_in_any_batch() -> None:
    """Random weights: rows, positions, padding and moving slots all the way down to attention."""
    dims = replace(OFFICIAL["tiny"], n_mels=3, n_text_ctx=32, n_audio_state=16, n_text_state=16, n_audio_head=2)
    dims = replace(dims, n_text_head=2, n_audio_layer=1, n_text_layer=2)
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in Whisper(dims).state_dict().items()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    net, tokenizer = from_state(dims, weights), Tokenizer.for_dimensions(dims)
    parts = [random_part(f"part-{number}", 2000 + 1400 * number, generator) for number in range(5)]
    options = DecodeOptions.exact(temperatures=(0.0, 0.4), avg_logprob_threshold=-6.0)

    def run(slots: int, encode_batch: int) -> list[Transcript]:
        pool = Engine(net, tokenizer, options, slots, encode_batch)
        futures = [pool.submit(part) for part in parts]
        pool.drain()
        return [future.result() for future in futures]

    batched = run(slots=3, encode_batch=2)
    assert_same(batched, run(slots=1, encode_batch=1))
    assert len({transcript.segments[0].tokens for transcript in batched}) == len(parts)


def random_part(name: str, frames: int, generator: torch.Generator) -> Part:
    return Part(name, torch.randn(3, max(frames, 3000), generator=generator).numpy(), frames)


# --- futures ------------------------------------------------------------------------------------------------------


def test_an_empty_engine_has_nothing_to_do() -> None:
    pool = engine(saying({}))
    assert pool.turn() is False
    assert pool.counters.turns == 0


def test_a_part_without_audio_resolves_at_once() -> None:
    net = saying({})
    pool = engine(net)
    future = pool.submit(scripted_part(1, 0))
    assert pool.turn() is False
    assert future.result(timeout=0) == Transcript("part-1")
    assert net.heard == []


def test_a_part_resolves_as_soon_as_it_is_done() -> None:
    pool = engine(saying({(1, 0): "<0.00> Short.<2.00>"}, f"<0.00>{' la la la' * 5}<2.00>"), slots=2)
    short, long = pool.submit(scripted_part(1, 30)), pool.submit(scripted_part(2, 30))
    while pool.turn() and not short.done():
        pass
    assert not long.done()
    pool.drain()
    assert long.done()


def test_parts_may_come_while_others_are_decoded() -> None:
    pool = engine(saying({}, "<0.00> Word.<2.00>"), slots=2)
    first = pool.submit(scripted_part(1, 90))
    pool.turn()
    second = pool.submit(scripted_part(2, 30))
    pool.drain()
    assert numbered([first, second]) == ["part-1", "part-2"]


def test_parts_may_come_from_any_thread() -> None:
    pool = engine(saying({}, "<0.00> Word.<2.00>"), slots=3)
    futures: list[Future[Transcript]] = []

    def submit(start: int) -> None:
        futures.extend([pool.submit(scripted_part(start + number, 30)) for number in range(4)])

    threads = [threading.Thread(target=submit, args=(10 * index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(futures) < 12 or not all(map(Future.done, futures)):
        pool.turn()
    submitted = [f"part-{10 * index + number}" for index in range(3) for number in range(4)]
    assert sorted(numbered(futures)) == sorted(submitted)


def test_a_dead_engine_lets_nobody_wait() -> None:
    """One part in the slot, one encoded, two waiting, one not yet seen."""
    pool = engine(saying({}, "<0.00> Word.<2.00>"), slots=1, encode_batch=2)
    futures = [pool.submit(scripted_part(number, 30)) for number in range(4)]
    pool.turn()
    assert (len(pool._active), len(pool._encoded), len(pool._waiting)) == (1, 1, 2)
    futures.append(pool.submit(scripted_part(9, 30)))
    death = RuntimeError("out of memory")
    pool.fail(death)
    assert [future.exception(timeout=0) for future in futures] == [death] * 5
    assert pool.turn() is False


@pytest.mark.parametrize("method", ["encode", "admit", "decode"])
@pytest.mark.parametrize("turns", [0, 1, 5])
def test_a_net_that_breaks_under_way_lets_nobody_wait(method: str, turns: int) -> None:
    """At the first windows, while decoding, and when a slot is refilled."""
    net = saying({}, "<0.00> Word.<2.00>")
    pool = engine(net, slots=2, encode_batch=2)
    futures = [pool.submit(scripted_part(number, 45 + number)) for number in range(6)]
    for _ in range(turns):
        pool.turn()
    net.breaks.add(method)
    with pytest.raises(RuntimeError, match=f"{method} broke") as caught:
        pool.drain()
    pool.fail(caught.value)
    assert [future.exception(timeout=0) for future in futures] == [caught.value] * 6


def test_a_part_can_be_cancelled_until_it_is_taken_in() -> None:
    pool = engine(saying({}, "<0.00> Word.<2.00>"))
    given_up, late = pool.submit(scripted_part(1, 30)), pool.submit(scripted_part(2, 30))
    assert given_up.cancel()
    pool.turn()
    assert not late.cancel()
    pool.drain()
    assert given_up.cancelled()
    assert numbered([late]) == ["part-2"]
    assert pool.counters.windows == 1


def test_an_engine_goes_on_after_a_failure() -> None:
    net = saying({}, "<0.00> Word.<2.00>")
    pool = engine(net, slots=2)
    pool.submit(scripted_part(1, 30))
    pool.turn()
    pool.fail(RuntimeError("once"))
    future = pool.submit(scripted_part(2, 30))
    pool.drain()
    assert [segment.text for segment in future.result(timeout=0).segments] == [" Word."]
