"""What people and machines get to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import console
from jobs.bench.contenders import CONTENDERS, OURS, Heard, Setup
from jobs.bench.race import Result
from jobs.bench.recordings import Recording
from jobs.bench.report import as_json, show
from jobs.bench.score import Score
from jobs.bench.suites import Suite
from jobs.bench.worker import Run

SUITE = Suite("clips", (Recording("a", Path("a.wav"), 600.0, "words", "en"),), (), None)
COUNTERS = dict(tokens=1000, windows=20, attempts=22, occupancy=0.925)


def _result(name: str, *seconds: float, languages: float | None = 0.985) -> Result:
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    is_ours = name == OURS
    heard = Heard(
        ["Words."], ["en"], 1000, {"encode": 12.0, "step": 6.0} if is_ours else {}, COUNTERS if is_ours else {}
    )
    runs = [Run(s, 2 * s, 1_234_000_000, heard) for s in seconds]
    ratios = [s / own for s, own in zip(seconds, (20.0, 24.0, 30.0), strict=False)]
    return Result(contender, runs, [Score(23, 1000, languages)] * len(runs), ratios)


@pytest.fixture
def printed(columns: Callable[[int], None], capsys: pytest.CaptureFixture[str]) -> Callable[[list[Result]], list[str]]:
    def lines(results: list[Result]) -> list[str]:
        columns(80)
        show(results, SUITE, Setup("base", 2))
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_row_holds_medians_spread_ratio_errors_and_memory(printed: Callable[..., list[str]]) -> None:
    lines = printed([_result(OURS, 20.0, 24.0, 30.0), _result("faster-int8-workers", 40.0, 60.0, 45.0)])
    assert lines[0].split(";")[0] == "clips: 1 file, 10 min" and "language unknown, 3 rounds" in "".join(lines[:2])
    assert _row(lines, OURS) == [OURS, "25.0", "20.0–30.0", "1.00", "2.30", "1,234", "98.5"]
    theirs = ["faster-int8-workers", "13.3", "10.0–15.0", "2.00", "2.30", "1,234", "98.5"]
    assert _row(lines, "faster-int8-workers") == theirs
    assert max(map(len, lines)) <= 80


def test_below_stand_our_stages_and_what_was_done(printed: Callable[..., list[str]]) -> None:
    lines = printed([_result(OURS, 20.0, 24.0, 30.0)])
    assert _row(lines, "encode") == ["encode", "12.00", "50.0"] and _row(lines, "step") == ["step", "6.00", "25.0"]
    assert "42 tokens/s, 0.83 windows/s; 20 windows, 22 attempts, slots 92 % full" in lines


def test_languages_show_where_they_were_to_be_found(printed: Callable[..., list[str]]) -> None:
    lines = printed([_result("openai-greedy", 60.0, languages=None)])
    assert _row(lines, "openai-greedy")[-1] == "1,234"
    assert "lang." not in "".join(lines)


def test_without_ours_no_ratio_is_shown(printed: Callable[..., list[str]]) -> None:
    result = _result("openai-greedy", 60.0)
    result.ratios = []
    assert _row(printed([result]), "openai-greedy") == ["openai-greedy", "10.0", "10.0–10.0", "2.30", "1,234", "98.5"]


def test_json_has_every_run_and_every_text() -> None:
    results = [_result(OURS, 20.0, 24.0), _result("openai-greedy", 60.0, 60.0)]
    told: dict[str, Any] = json.loads(json.dumps(as_json(results, SUITE, Setup("base", 2, scratch="/tmp/x"))))
    ours, theirs = told["contenders"]
    assert ours["times_real_time"] == {"median": 27.5, "min": 25.0, "max": 30.0}
    assert [run["seconds"] for run in theirs["runs"]] == [60.0, 60.0] and theirs["ratios"] == [3.0, 2.5]
    assert ours["runs"][0]["stages"] == {"encode": 12.0, "step": 6.0} and ours["is_ours"] is True
    assert told["recordings"][0]["heard"] == {OURS: "Words.", "openai-greedy": "Words."}
    assert told["setup"]["threads"] == 2 and "scratch" not in told["setup"]
    assert set(told["machine"]) == {"cpu", "cores", "load", "packages"} and told["machine"]["packages"]["torch"]


def _row(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if line.split()[:1] == [name])
    assert console.out.width == 80
    return line.split()
