"""Processes, rounds and ratios, with contenders that hear without a model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.bench.contenders import OURS, Contender, Setup
from jobs.bench.race import Result, race
from jobs.bench.recordings import Recording
from jobs.bench.suites import Suite
from jobs.bench.worker import Worker
from model.errors import ModelError, UsageError
from tests.jobs.bench.scripted import MODULE

SUITE = Suite(
    "folder",
    (
        Recording("a", Path("a.wav"), 10.0, "red green blue white", "en"),
        Recording("b", Path("b.wav"), 2.0, "noir", "fr"),
    ),
    (Recording("w", Path("w.wav"), 1.0, "warm", "en"),),
    None,
)


def _contender(name: str, **settings: object) -> Contender:
    return Contender(name, MODULE, settings)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """Three rounds of two contenders, of which the second takes longer, needs more and hears too much."""
    said: list[str] = []
    contenders = [_contender(OURS, seconds=0.05), _contender("slow", seconds=0.5, suffix=" hm", megabytes=50)]
    done = race(contenders, Setup("none", threads=1), SUITE, rounds=3, progress=said.append)
    order = [line.split(": ")[1] for line in said if line.startswith("round") and "×" not in line]
    assert order == [OURS, "slow"] * 3  # interleaved
    return done


def test_ratios_are_taken_within_a_round(results: list[Result]) -> None:
    ours, slow = results
    assert ours.ratios == [1.0, 1.0, 1.0]
    assert slow.ratios == [theirs / own for theirs, own in zip(slow.seconds, ours.seconds, strict=True)]
    assert slow.ratio == sorted(slow.ratios)[1] > 1
    assert min(ours.seconds) >= 0.05 and min(slow.seconds) >= 0.5


def test_errors_languages_and_memory_are_each_contenders_own(results: list[Result]) -> None:
    ours, slow = results
    assert (ours.word_error_rate, slow.word_error_rate) == (0.0, 2 / 5)
    assert ours.languages == 1.0
    assert slow.peak_bytes - ours.peak_bytes > 40 << 20


def test_each_has_one_process_and_its_threads(results: list[Result]) -> None:
    processes = [{run.heard.stages["process"] for run in result.runs} for result in results]
    assert [len(ids) for ids in processes] == [1, 1] and processes[0] != processes[1]
    assert {run.heard.stages["threads"] for result in results for run in result.runs} == {1.0}


def test_without_ours_there_are_no_ratios(setup: Setup) -> None:
    (result,) = race([_contender("alone")], setup, SUITE, rounds=1)
    assert result.ratio is None and result.word_error_rate == 0.0


def test_a_contenders_own_error_comes_through(setup: Setup) -> None:
    with pytest.raises(ModelError, match=r"^There are no such weights\.$"):
        race([_contender("poor", failure="load")], setup, SUITE, rounds=1)


def test_a_process_that_dies_is_one_sentence(setup: Setup) -> None:
    with Worker(_contender("mortal", failure="die"), setup) as worker:
        worker.wait_until_loaded()
        with pytest.raises(UsageError, match="contender mortal ended with exit code 7"):
            worker.run(SUITE.recordings)
        with pytest.raises(UsageError, match="contender mortal ended"):
            worker.run(SUITE.recordings)


def test_leaving_ends_a_process_that_is_busy(setup: Setup) -> None:
    with Worker(_contender("busy", seconds=60), setup) as worker:
        worker.wait_until_loaded()
        worker._pipe.send(list(SUITE.recordings))
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert not worker._process.is_alive()
