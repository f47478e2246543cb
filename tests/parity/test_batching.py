"""What a part comes to does not depend on what it is batched with: any number of slots, any order, one result.

The exception is the same as for the reference: rounding differs from batch to batch, and may decide a near tie.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.options import DecodeOptions
from tests.parity.comparison import MOST_TIES, Comparison
from tests.parity.matrix import SIDE_BY_SIDE, Audio, Matrix
from tests.parity.recorded import OurRun

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

SLOTS = (1, 2, 7, 16)
SCHEDULE = (0.0, 0.4, 0.8)
LANGUAGES = ("en", "es", "fr", "pl", "pt")  # tiny.en fails at all but the first, and tries again


@pytest.fixture(scope="module")
def parts(audio: Audio) -> Audio:
    """Sixteen parts: fifteen clips, and the English ones five times over, which is more than one window."""
    clips = {name: part for name, part in audio.items() if name.startswith(LANGUAGES)}
    english = [part for name, part in clips.items() if name.startswith("en/")]
    return clips | {"english": np.concatenate(english * 5)}


def test_slots_and_order_change_nothing(parts: Audio, matrix: Matrix) -> None:
    ours, options = matrix.sides("tiny.en").ours, DecodeOptions.exact(temperatures=SCHEDULE)

    def run(slots: int) -> dict[str, OurRun]:
        order = random.Random(slots).sample(list(parts), len(parts))
        return ours.run(parts, options, slots=slots, order=order)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        alone, *batched = pool.map(run, SLOTS)
    windows = [window for part in alone.values() for window in part.windows]
    assert len(windows) > len(parts) and any(window.accepted.temperature > 0 for window in windows)
    comparisons = [matrix.compare("tiny.en", runs, alone, same_streams=True) for runs in batched]
    total = sum(comparisons, start=Comparison())
    assert not total.differences, "\n".join(total.differences)
    assert total.windows == total.total or total.ties
    assert len(total.ties) <= MOST_TIES * total.windows, "\n".join(total.ties)
