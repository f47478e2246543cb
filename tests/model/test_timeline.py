"""Spoken time and the time of the part: joined spans, and what lies in the joints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.timeline import Timeline

TWO = Timeline(((100, 300), (1000, 1500)))


def test_it_joins_the_columns_of_its_spans() -> None:
    assert TWO.frames == 700
    joined = TWO.join(np.arange(2000, dtype=np.float32)[None])
    assert joined.tolist() == [[*range(100, 300), *range(1000, 1500)]]
    assert Timeline(()).join(np.zeros((80, 50), np.float32)).shape == (80, 0)


@pytest.mark.parametrize(
    ("joined", "start", "end"),
    [
        (0.0, 1.0, 1.0),
        (1.5, 2.5, 2.5),
        (2.0, 10.0, 3.0),  # in the joint: what begins, begins behind the pause; what ends has ended before it
        (2.5, 10.5, 10.5),
        (7.0, 15.0, 15.0),
        (7.5, 15.5, 15.5),  # a timestamp behind the end of the audio
    ],
)
def test_a_time_lies_where_it_was_said(joined: float, start: float, end: float) -> None:
    assert TWO.start(joined) == pytest.approx(start)
    assert TWO.end(joined) == pytest.approx(end)


@given(st.floats(0, 100), st.integers(1, 10_000))
def test_one_span_from_the_start_changes_nothing(seconds: float, frames: int) -> None:
    whole = Timeline(((0, frames),))
    assert whole.start(seconds) == whole.end(seconds) == seconds


@given(st.sets(st.integers(0, 5000), min_size=2, max_size=20), st.floats(0, 60), st.floats(0, 60))
def test_order_is_kept(edges: set[int], one: float, other: float) -> None:
    points = sorted(edges)
    timeline = Timeline(list(zip(points[::2], points[1::2], strict=False)))
    early, late = sorted((one, other))
    assert timeline.start(early) <= timeline.start(late)
    assert timeline.end(early) <= timeline.end(late)
