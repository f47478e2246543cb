"""A log that is followed over connections that break; real jobs are in test_submit.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ray_jobs import _as_given, _Log

WHOLE = 'Runtime env is setting up.\n{"earwitness": "planned"}\n\nfünf\nlast'


class Dashboard:
    """Tells a log from its beginning at each connection, in pieces, and breaks each where it is told to."""

    def __init__(self, log: str, piece: int, breaks: list[int]) -> None:
        self._log, self._piece, self._breaks = log, piece, breaks

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        end = self._breaks.pop(0) if self._breaks else len(self._log)
        for start in range(0, end, self._piece):
            yield self._log[start : min(end, start + self._piece)]
        if end < len(self._log):
            raise RuntimeError("WebSocket connection closed unexpectedly")


@given(piece=st.integers(1, 80), breaks=st.lists(st.integers(0, len(WHOLE) - 1), max_size=4))
def test_every_line_is_told_once_however_often_the_connection_breaks(piece: int, breaks: list[int]) -> None:
    told: list[str] = []
    log = _Log(told.append)
    dashboard = Dashboard(WHOLE, piece, breaks)
    for _ in range(len(breaks) + 1):
        asyncio.run(log.tail(dashboard, "job"))
    assert told == WHOLE.split("\n")[:-1]
    log.rest(WHOLE)
    assert told == WHOLE.split("\n")


def test_what_no_connection_told_is_told_at_the_end() -> None:
    told: list[str] = []
    log = _Log(told.append)
    asyncio.run(log.tail(Dashboard(WHOLE, 7, [30]), "job"))
    log.rest(WHOLE)
    assert told == WHOLE.split("\n")


def test_the_address_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would take RAY_ADDRESS for it."""
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with _as_given():
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
