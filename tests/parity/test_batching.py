"""What a part comes to does not depend on what it is batched with: any number of slots, any order, one result.

This needs no reference but for near ties, which rounding decides differently from batch to batch too.
"""

from __future__ import annotations

import random

import pytest

from model.options import DecodeOptions
from tests.parity.comparison import MOST_TIES, Comparison

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]

SLOTS = (1, 2, 7, 16)


def test_slots_and_order_change_nothing(matrix, sides) -> None:
    """The whole schedule, so that retries and their random numbers are in it."""
    engine, options = sides("tiny.en").ours, DecodeOptions()
    first = engine.run(matrix.audio, options, slots=SLOTS[0])
    total = Comparison()
    for slots in SLOTS[1:]:
        order = random.Random(slots).sample(list(matrix.audio), len(matrix.audio))
        other = engine.run(matrix.audio, options, slots=slots, order=order)
        total += matrix.compare("tiny.en", other, first, same=True)
    assert not total.differences, "\n".join(total.differences)
    assert total.windows == total.total or total.ties
    assert len(total.ties) <= MOST_TIES * total.windows, "\n".join(total.ties)
