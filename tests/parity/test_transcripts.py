"""Segments, windows and languages are those of openai-whisper's greedy `transcribe()`, on two models.

At temperature 0 alone every window is comparable, so that is the matrix; the whole fallback schedule runs once more
on base, where the decision which windows are tried again must agree as well.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.parity.comparison import MOST_TIES, Comparison
from tests.parity.matrix import FALLBACK, GREEDY, Matrix, Setting

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]

EVERY_WINDOW = [Setting(model, previous, GREEDY) for model in ("tiny.en", "base") for previous in (True, False)]
WITH_FALLBACK = Setting("base", True, FALLBACK)
ALL = [*EVERY_WINDOW, WITH_FALLBACK]


@pytest.mark.parametrize("setting", ALL, ids=str)
def test_segments_are_the_references(setting: Setting, matrix: Matrix) -> None:
    found = matrix.compared(setting)
    assert not found.differences, "\n".join(found.differences)
    assert found.segments > len(matrix.audio) / 2


@pytest.mark.parametrize("setting", EVERY_WINDOW, ids=str)
def test_every_window_is_compared_at_temperature_0(setting: Setting, matrix: Matrix) -> None:
    found = matrix.compared(setting)
    assert found.windows == found.total or found.ties


def test_near_ties_are_rare(matrix: Matrix) -> None:
    found = sum((matrix.compared(setting) for setting in ALL), start=Comparison())
    matrix.listed.append(
        f"{found.windows} of {found.total} windows and {found.segments} segments compared, {len(found.ties)} near ties"
    )
    assert len(found.ties) <= MOST_TIES * found.windows, "\n".join(found.ties)


def test_some_windows_need_fallback(matrix: Matrix) -> None:
    """Else agreeing on which do would mean nothing."""
    windows = [window for run in matrix.theirs(WITH_FALLBACK).values() for window in run.windows]
    assert sum(window.accepted.temperature > 0 for window in windows) >= 3


def test_one_changed_token_is_found(matrix: Matrix) -> None:
    """The comparison itself: a token that the reference is sure of is no near tie."""
    theirs = matrix.theirs(EVERY_WINDOW[0])["en/counting"]
    first = theirs.windows[0]
    tokens = (*first.accepted.tokens[:3], first.accepted.tokens[3] + 1, *first.accepted.tokens[4:])
    window = replace(first, tries=[replace(first.accepted, tokens=tokens)], seek=0)
    ours = replace(theirs, windows=[window, *theirs.windows[1:]])
    found = matrix.compare("tiny.en", {"en/counting": ours}, {"en/counting": theirs})
    assert len(found.differences) == 1 and not found.ties
    assert "en/counting, window 0, token 3" in found.differences[0]
