"""The path through the attention: each step against an obvious one, and a net that looks where it was made to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model.alignment import MEDIAN_WIDTH, MOST_PADDING, Aligner, SpokenText, batches, clean, median_filter, warp
from model.cache import DecoderCache, Reach
from model.dimensions import OFFICIAL, WINDOW_FRAMES
from model.tokenizer import Tokenizer
from model.whisper import Whisper, from_state
from model.words import WordTiming

DIMS = replace(
    OFFICIAL["tiny.en"], n_mels=8, n_audio_state=16, n_audio_head=2, n_text_state=16, n_text_head=2, n_text_layer=3
)
TOKENIZER = Tokenizer.for_dimensions(DIMS)
HEADS = ((1, 0), (2, 0), (2, 1))

# --- dynamic time warping -----------------------------------------------------------------------------------------


def warped_slowly(cost: NDArray[np.float32]) -> list[int]:
    """As openai/whisper's `timing.py` defines it, one cell after the other."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    came_from = {}
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, down, along = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < down and both < along:
                before = (i - 1, j - 1)
            elif down < both and down < along:
                before = (i - 1, j)
            else:
                before = (i, j - 1)
            came_from[i, j] = before
            total[i, j] = cost[i - 1, j - 1] + total[before]
    first, cell = [0] * rows, (rows, columns)
    while cell != (0, 0):
        first[cell[0] - 1] = cell[1] - 1
        cell = came_from[cell]
    return first


@st.composite
def costs(draw: st.DrawFn) -> list[NDArray[np.float32]]:
    """Up to four matrices of any shape, with many ties or none."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=4))
    scale = draw(st.sampled_from([0, 1, 2, 1000]))
    return [np.round(generator.normal(size=shape) * scale).astype(np.float32) for shape in shapes]


@given(costs())
def test_all_at_once_equals_cell_by_cell(matrices: list[NDArray[np.float32]]) -> None:
    assert [first.tolist() for first in warp(matrices)] == [warped_slowly(matrix) for matrix in matrices]


def test_the_path_follows_what_is_cheap() -> None:
    cheap = ["#....", ".##..", "...#.", "....#"]
    matrix = np.array([[0 if cell == "#" else 1 for cell in row] for row in cheap], np.float32)
    assert warp([matrix])[0].tolist() == [0, 1, 3, 4]


def test_more_tokens_than_positions_share_them() -> None:
    matrix = np.array([[0, 1], [0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    assert warp([matrix])[0].tolist() == [0, 0, 0, 1, 1]


# --- the attention, cleaned ---------------------------------------------------------------------------------------


@given(st.integers(4, 30), st.integers(0, 2**32), st.booleans())
def test_the_median_filter_takes_the_middle_of_seven(width: int, seed: int, ties: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 3, width)).astype(np.float32)
    x = np.round(x) if ties else x
    mirrored = np.pad(x, ((0, 0), (0, 0), (3, 3)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, MEDIAN_WIDTH, axis=-1)
    assert np.array_equal(median_filter(torch.from_numpy(x)).numpy(), np.median(windows, axis=-1))


@pytest.mark.parametrize("width", [0, 1, 3])
def test_too_few_positions_are_not_filtered(width: int) -> None:
    x = torch.randn(1, 2, width)
    assert torch.equal(median_filter(x), x)


def test_what_all_tokens_look_at_is_taken_out() -> None:
    """A column counts by how it differs from token to token: a fixed place that draws all attention says nothing."""
    looks = torch.zeros(1, 3, 30)
    looks[0, :, 0] = 20.0
    looks[0, 1, 10:20] = 1.0
    cleaned = clean(looks)[0]
    assert cleaned[1, 10:20].tolist() == pytest.approx([2**0.5] * 10, abs=1e-3)
    assert cleaned[[0, 2], 10:20].flatten().tolist() == pytest.approx([-(2**-0.5)] * 20, abs=1e-3)


def test_where_all_tokens_look_the_same_nothing_is_found() -> None:
    assert torch.equal(clean(torch.zeros(2, 5, 40)), torch.zeros(2, 5, 40))
    assert torch.equal(clean(torch.randn(1, 5, 1)), torch.zeros(1, 5, 1))


# --- a net with random weights ------------------------------------------------------------------------------------


@cache
def net() -> Whisper:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Whisper(DIMS).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    scales = {name: 1.0 if name.endswith(("ln.weight", "ln_post.weight")) else 0.0 for name in shapes}
    state = {name: scales[name] + 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return from_state(DIMS, state)


def memory(one: Whisper, slots: int = 4, lanes: int = 1) -> DecoderCache:
    """A cache whose slots hear something random, and have texts of their own."""
    generator = torch.Generator().manual_seed(1)
    cache = one.new_cache(slots, lanes)
    for tensor in (cache.self_k, cache.self_v, cache.cross_k, cache.cross_v):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return cache


def spoken(text: str, frames: int = WINDOW_FRAMES) -> SpokenText:
    return SpokenText((TOKENIZER.sot,), tuple(TOKENIZER.encode(text)), frames, "en")


TEXTS = (spoken(" One two three."), spoken(" A much longer sentence, with marks in it!", 1234), spoken(" No."))


def rows(*numbers: int) -> Reach:
    return Reach(torch.tensor(numbers), text=0)


def assert_same(ones: Sequence[Sequence[WordTiming]], others: Sequence[Sequence[WordTiming]]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert [replace(word, probability=0) for word in one] == [replace(word, probability=0) for word in other]
        assert [word.probability for word in one] == pytest.approx([word.probability for word in other], rel=1e-3)


def test_a_text_does_not_depend_on_what_it_is_aligned_with() -> None:
    aligner, cache = Aligner(net(), TOKENIZER, HEADS), memory(net())
    alone = [aligner.align(cache, rows(row), [text])[0] for row, text in zip((2, 0, 3), TEXTS, strict=True)]
    assert_same(aligner.align(cache, rows(2, 0, 3), TEXTS), alone)
    assert_same(aligner.align(cache, rows(3, 2, 0), [TEXTS[2], *TEXTS[:2]]), [alone[2], *alone[:2]])
    assert len({word.end for words in alone for word in words}) > 3


def test_the_order_of_heads_does_not_matter() -> None:
    cache = memory(net())
    ones, others = (Aligner(net(), TOKENIZER, heads).align(cache, rows(0), TEXTS[:1]) for heads in (HEADS, HEADS[::-1]))
    assert_same(ones, others)


def test_every_alignment_head_counts() -> None:
    cache, text = memory(net()), TEXTS[1:2]
    times = [
        tuple(word.end for word in Aligner(net(), TOKENIZER, heads).align(cache, rows(0), text)[0])
        for heads in ((HEADS[0],), (HEADS[1],), (HEADS[2],), HEADS)
    ]
    assert len(set(times)) == 4


def test_nothing_is_written_to_the_cache() -> None:
    cache, before = memory(net()), memory(net())
    Aligner(net(), TOKENIZER, HEADS).align(cache, rows(1, 2), TEXTS[:2])
    for tensor, untouched in zip(vars(cache).values(), vars(before).values(), strict=True):
        assert torch.equal(tensor, untouched)


def test_probabilities_are_those_of_the_decoder_among_text() -> None:
    cache, text = memory(net()), TEXTS[0]
    (words,) = Aligner(net(), TOKENIZER, HEADS).align(cache, rows(2), [text])
    fed = torch.tensor([[TOKENIZER.sot, TOKENIZER.no_timestamps, *text.tokens]])
    places = torch.arange(fed.shape[1])[None]
    logits = net().project(net().decode(fed, places, cache, Reach(torch.tensor([2]), fed.shape[1])))[0]
    expected = logits[1:-1, : TOKENIZER.eot].softmax(-1)[torch.arange(len(text.tokens)), torch.tensor(text.tokens)]
    counts = [len(word.tokens) for word in words]
    means = [float(group.mean()) for group in expected.split(counts)]
    assert [word.probability for word in words] == pytest.approx(means, rel=1e-3)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 90, 5 + MOST_PADDING, 6 + MOST_PADDING], [[0, 2], [3], [1]]),
        ([0, 30, 0, 30], [[1, 3]]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_texts_of_similar_length_are_read_together(counts: list[int], expected: list[list[int]]) -> None:
    assert batches(counts) == expected


def test_a_text_without_tokens_has_no_words() -> None:
    aligner, cache = Aligner(net(), TOKENIZER, HEADS), memory(net())
    nothing = spoken("")
    assert aligner.align(cache, rows(0), [nothing]) == [[]]
    found = aligner.align(cache, rows(1, 2, 0), [nothing, TEXTS[0], nothing])
    assert found[0] == found[2] == []
    assert_same(found[1:2], aligner.align(cache, rows(2), TEXTS[:1]))


def test_slots_of_several_lanes_hear_once() -> None:
    cache = memory(net(), slots=2, lanes=3)
    single = memory(net(), slots=2)
    single.cross_k.copy_(cache.cross_k)
    single.cross_v.copy_(cache.cross_v)
    aligner = Aligner(net(), TOKENIZER, HEADS)
    assert_same(aligner.align(cache, rows(3), TEXTS[:1]), aligner.align(single, rows(1), TEXTS[:1]))


def test_what_lies_behind_a_slots_own_audio_is_not_heard() -> None:
    cache, other = memory(net()), memory(net())
    for one in (cache, other):
        one.audio[1] = 700
    other.cross_k[:, 1, :, 700:], other.cross_v[:, 1, :, 700:] = 7.0, -7.0
    reach, texts = Reach(torch.tensor([0, 1]), text=0, ragged=True), [TEXTS[0], TEXTS[1]]
    aligner = Aligner(net(), TOKENIZER, HEADS)
    assert_same(aligner.align(cache, reach, texts), aligner.align(other, reach, texts))


# --- a net that looks where it was made to look -------------------------------------------------------------------

WIDTH = DIMS.n_text_state
TEXT = " one two three four"  # a token each
BORDERS = (0, 100, 250, 600, 900)  # audio positions where the words start, and where the last ends


def following_net(dtype: torch.dtype = torch.float32) -> Whisper:
    """Only the place of a token in the text matters: its query is the unit vector of that place."""
    dims = replace(DIMS, n_text_head=1, n_text_layer=1)
    with torch.device("meta"):
        state = {name: torch.zeros(tensor.shape, device="cpu") for name, tensor in Whisper(dims).state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("ln.weight"):
            tensor.fill_(1)
    state["decoder.positional_embedding"][:WIDTH] = torch.eye(WIDTH)
    state["decoder.blocks.0.cross_attn.query.weight"][:] = 4 * torch.eye(WIDTH)
    return from_state(dims, state, dtype)


def heard_by(one: Whisper, borders: Sequence[int] = BORDERS) -> DecoderCache:
    """Keys in which each stretch of audio is that of a token: the first text token is written at place 1."""
    cache = one.new_cache(1)
    for index, (start, end) in enumerate(zip(borders, (*borders[1:], 1500), strict=True)):
        cache.cross_k[0, 0, 0, start:end, 1 + index] = 4
    return cache


def align(one: Whisper, cache: DecoderCache, text: SpokenText) -> list[WordTiming]:
    return Aligner(one, TOKENIZER, ((0, 0),)).align(cache, rows(0), [text])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_lie_where_the_decoder_looked(dtype: torch.dtype) -> None:
    one = following_net(dtype)
    words = align(one, heard_by(one), spoken(TEXT))
    assert [word.word for word in words] == [" one", " two", " three", " four"]
    assert [(word.start, word.end) for word in words] == [(0.0, 2.0), (2.0, 5.0), (5.0, 12.0), (12.0, 18.0)]
    assert [word.tokens for word in words] == [(token,) for token in TOKENIZER.encode(TEXT)]


def test_a_word_of_several_tokens_spans_them() -> None:
    words = align(following_net(), heard_by(following_net()), spoken(" one two.!"))
    assert [(word.word, word.start, word.end) for word in words] == [
        (" one", 0.0, 2.0),
        (" two", 2.0, 5.0),
        (".", 5.0, 12.0),
        ("!", 12.0, 18.0),
    ]
    split = align(following_net(), heard_by(following_net()), spoken(" unspoken two"))
    assert [len(word.tokens) for word in split] == [2, 1]
    assert [(word.start, word.end) for word in split] == [(0.0, 5.0), (5.0, 12.0)]


def test_behind_the_audio_of_the_window_nothing_is_found() -> None:
    words = align(following_net(), heard_by(following_net()), spoken(TEXT, frames=1000))
    assert [word.start for word in words[:3]] == [0.0, 2.0, 5.0]
    assert max(word.end for word in words) <= 10.0


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_window_of_almost_no_audio_has_times_all_the_same(frames: int) -> None:
    words = align(following_net(), heard_by(following_net()), spoken(TEXT, frames))
    assert len(words) == 4
    assert all(0 <= word.start <= word.end <= frames / 100 for word in words)


def test_a_window_with_as_many_tokens_as_a_window_can_have() -> None:
    text = spoken(" word" * (DIMS.n_text_ctx // 2))
    words = Aligner(net(), TOKENIZER, HEADS).align(memory(net()), rows(0), [text])[0]
    assert len(words) == DIMS.n_text_ctx // 2
    ends: Tensor = torch.tensor([word.end for word in words])
    assert bool((ends.diff() >= 0).all())
