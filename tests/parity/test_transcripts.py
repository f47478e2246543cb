"""Segments, windows and languages are those of openai-whisper's `transcribe()`, on two models.

At temperature 0 alone every window is comparable, so that is the matrix; the whole fallback schedule runs once more
on base, where the decision which windows are tried again must agree as well. Beam search has no near ties to excuse a
difference with, as its readings are compared as wholes; there, one window in a hundred may differ.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.parity.comparison import MOST_TIES, Comparison
from tests.parity.matrix import FALLBACK, GREEDY, Matrix, Setting

pytestmark = [
    pytest.mark.parity,
    pytest.mark.timeout(900),
    # The reference's beam search sorts a tensor by NumPy, which wants tensors to be wrapped differently one day.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

EVERY_WINDOW = [Setting(model, previous, GREEDY) for model in ("tiny.en", "base") for previous in (True, False)]
WITH_FALLBACK = Setting("base", True, FALLBACK)
ALL = [*EVERY_WINDOW, WITH_FALLBACK]
# Searches cost five times as much, so not all are made; the French ones of tiny.en run into the limit of tokens.
BEAM = [
    Setting(
        "tiny.en", True, GREEDY, beam_size=5, clips=("en/", "es/", "fr/", "hi/", "it/", "ja/", "pl/", "zh/", "long")
    ),
    Setting("base", True, GREEDY, beam_size=5, clips=("hi/", "pt/", "zh/", "silence")),
]
MOST_UNEQUAL = 0.01  # of the windows that a beam search reads


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


def test_beam_search_reads_what_the_references_does(matrix: Matrix) -> None:
    found = sum((matrix.compared(setting) for setting in BEAM), start=Comparison())
    matrix.listed.append(f"beam 5: {len(found.differences)} of {found.windows} windows differ")
    assert found.windows >= 35
    assert len(found.differences) <= MOST_UNEQUAL * found.windows, "\n".join(found.differences)


def test_beam_search_reads_otherwise_than_greed(matrix: Matrix) -> None:
    """Else agreeing on what it reads would mean little."""
    searched, greedy = matrix.theirs(BEAM[0]), matrix.theirs(EVERY_WINDOW[0])
    others = [
        name
        for name in searched
        if searched[name].windows[0].accepted.tokens != greedy[name].windows[0].accepted.tokens
    ]
    assert len(others) >= 5


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
