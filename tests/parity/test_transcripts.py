"""Segments, windows and languages are those of openai-whisper's greedy `transcribe()`, on two models.

With temperature 0 alone every window is comparable, so that is the matrix; the whole fallback schedule runs once more
on base, where the decision which windows are tried again must agree as well.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.parity.comparison import MOST_TIES, Comparison

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]

GREEDY = (0.0,)
FALLBACK = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RUNS = [
    ("base", True, GREEDY),
    ("base", False, GREEDY),
    ("tiny.en", True, GREEDY),
    ("tiny.en", False, GREEDY),
    ("base", True, FALLBACK),
]
NAMES = [f"{model}-{'with' if previous else 'without'}-previous-{len(schedule)}" for model, previous, schedule in RUNS]


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_segments_are_the_references(run, matrix) -> None:
    found = matrix.compared(*run)
    assert not found.differences, "\n".join(found.differences)
    assert found.segments > len(matrix.audio) / 2


@pytest.mark.parametrize("run", RUNS[:4], ids=NAMES[:4])
def test_every_window_is_compared_at_temperature_0(run, matrix) -> None:
    found = matrix.compared(*run)
    assert found.windows == found.total or found.ties


def test_near_ties_are_rare(matrix) -> None:
    found = sum((matrix.compared(*run) for run in RUNS), start=Comparison())
    matrix.listed.append(
        f"{found.windows} of {found.total} windows and {found.segments} segments compared, {len(found.ties)} near ties"
    )
    assert len(found.ties) <= MOST_TIES * found.windows, "\n".join(found.ties)


def test_some_windows_need_fallback(matrix) -> None:
    """Else agreeing on which do would mean nothing."""
    runs = matrix.theirs("base", True, FALLBACK)
    assert sum(window.accepted.temperature > 0 for run in runs.values() for window in run.windows) >= 3


def test_one_changed_token_is_found(matrix) -> None:
    """The comparison itself: a token that the reference did not choose is no near tie."""
    theirs = matrix.theirs("tiny.en", True, GREEDY)
    changed = {name: replace(run, windows=list(run.windows)) for name, run in theirs.items()}
    first = theirs["en/counting"].windows[0]
    tokens = (*first.accepted.tokens[:3], first.accepted.tokens[3] + 1, *first.accepted.tokens[4:])
    changed["en/counting"].windows[0] = replace(first, tries=[replace(first.accepted, tokens=tokens)], seek=0)
    found = matrix.compare("tiny.en", changed, theirs)
    assert len(found.differences) == 1 and not found.ties
    assert "en/counting, window 0, token 3" in found.differences[0]
