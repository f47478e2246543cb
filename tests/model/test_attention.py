"""Every kernel computes the same attention, in every number format and from memory laid out in any way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model import attention
from model.attention import attend

# How far a result may lie from the one in float64: some units in the last place of values around one.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)
B, H, K, HEAD_DIM = 3, 2, 37, 8


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(queries: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v; the queries large enough that attention is sharp."""
    q = 3 * random(B, H, queries, HEAD_DIM, seed=1, dtype=dtype)
    k, v = (random(B, H, K, HEAD_DIM, seed=seed, dtype=dtype) for seed in (2, 3))
    return q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The same query by query and key by key, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row in range(len(q)):
        for head in range(q.shape[1]):
            for query in range(q.shape[2]):
                seen = [
                    key
                    for key in range(k.shape[2])
                    if hidden is None or not hidden[row, 0, query % hidden.shape[2], key]
                ]
                scores = torch.stack([q[row, head, query].double() @ k[row, head, key].double() for key in seen])
                weights = (scores / math.sqrt(q.shape[3])).exp()
                out[row, head, query] = (weights / weights.sum()) @ v[row, head, seen].double()
    return out


def assert_attends(attended: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert attended.dtype == dtype
    torch.testing.assert_close(attended.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 2, 9])
def test_queries_attend_to_all_keys(queries: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(queries, dtype)
    assert_attends(attend(q, k, v), exact(q, k, v), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 9])
def test_what_is_hidden_is_not_attended_to(queries: int, dtype: torch.dtype) -> None:
    """Each row and query sees other keys, but all see the first; what is hidden is loud."""
    q, k, v = inputs(queries, dtype)
    hidden = random(B, 1, queries, K, seed=4, dtype=torch.float32) > 0
    hidden[..., 0] = False
    hidden[..., -1] = True
    k[:, :, -1], v[:, :, -1] = 100.0, 1000.0
    assert_attends(attend(q, k, v, hidden), exact(q, k, v, hidden), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 9])
def test_one_mask_may_stand_for_all_queries_of_a_row(queries: int, dtype: torch.dtype) -> None:
    """As for audio: rows that end after 37, 5 and 20 keys."""
    q, k, v = inputs(queries, dtype)
    hidden = (torch.arange(K) >= torch.tensor([K, 5, 20])[:, None])[:, None, None]
    attended = attend(q, k, v, hidden)
    assert_attends(attended, exact(q, k, v, hidden), dtype)
    short = attend(q[1:2], k[1:2, :, :5], v[1:2, :, :5])
    assert_attends(attended[1:2], short.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 9])
def test_a_mask_that_hides_nothing_changes_nothing(queries: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(queries, dtype)
    masked = attend(q, k, v, torch.zeros(B, 1, queries, K, dtype=torch.bool))
    assert_attends(masked, attend(q, k, v).double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("masked", [True, False])
def test_memory_may_lie_in_any_order(queries: int, masked: bool, dtype: torch.dtype) -> None:
    """Heads split from a projection, and a slice of a cache that goes on behind the keys and the rows."""
    q, k, v = inputs(queries, dtype)
    split = q.transpose(1, 2).reshape(B, queries, -1).view(B, queries, H, -1).transpose(1, 2)
    kept_k, kept_v = torch.full((2, B + 2, H, K + 5, HEAD_DIM), 50.0, dtype=dtype)
    kept_k[:B, :, :K], kept_v[:B, :, :K] = k, v
    hidden = torch.zeros(B, 1, 1, K, dtype=torch.bool) if masked else None
    attended = attend(split, kept_k[:B, :, :K], kept_v[:B, :, :K], hidden)
    assert attended.shape == q.shape
    assert_attends(attended, exact(q, k, v), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [True, False])
def test_text_may_be_kept_in_more_than_the_net_computes_in(masked: bool, dtype: torch.dtype) -> None:
    """Keys and values of text are float32 on a CPU, whatever the queries are; see `model.cache.text_dtype`."""
    q, k, v = inputs(1, dtype)
    hidden = torch.arange(K).expand(B, 1, 1, K) > 20 if masked else None
    assert_attends(attend(q, k.float(), v.float(), hidden), exact(q, k, v, hidden), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 9])
def test_each_kernel_agrees_with_the_others(queries: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(queries, dtype)
    for kernel in kernels():
        assert_attends(kernel(q, k, v), exact(q, k, v), dtype)


def kernels() -> list[Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """All, whichever of them `attend` would choose."""
    return [
        lambda q, k, v: attention._spelled_out(q, k, v, None),
        attention._head_by_head,
        torch.nn.functional.scaled_dot_product_attention,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sharp_look_is_not_blurred(dtype: torch.dtype) -> None:
    """One key that stands out among 1500, as when a word is looked up in the audio."""
    q, k = torch.ones(1, 1, 1, 64, dtype=dtype), torch.zeros(1, 1, 1500, 64, dtype=dtype)
    k[0, 0, 700] = 2.0  # scores 16 above all others, which together still weigh e⁻¹⁶ × 1499
    v = torch.arange(1500, dtype=torch.float32)[:, None].expand(1, 1, 1500, 64).div(1500).to(dtype)
    for queries in (1, 4):
        attended = attend(q.expand(1, 1, queries, 64), k, v)
        assert_attends(attended, v[:, :, 700:701].double().expand_as(attended), dtype)
