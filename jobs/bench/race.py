"""The measurement: every contender once in every round, one at a time, and what the rounds come to.

Interleaved rounds (A B C A B C …) and ratios within a round cancel what a machine does on the side. It refuses to know
how anybody transcribes, and how results are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from jobs.bench.contenders import OURS, Contender, Setup
from jobs.bench.score import Score, score
from jobs.bench.suites import Suite
from jobs.bench.worker import Run, Worker

Progress = Callable[[str], None]


@dataclass
class Result:
    """All rounds of one contender."""

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # its seconds over ours, round by round; empty without ours

    @property
    def seconds(self) -> list[float]:
        return [run.seconds for run in self.runs]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def word_error_rate(self) -> float:
        return median(score.word_error_rate for score in self.scores)

    @property
    def languages(self) -> float | None:
        return self.scores[-1].languages

    @property
    def peak_bytes(self) -> int:
        return max(run.peak_bytes for run in self.runs)


def race(
    contenders: Sequence[Contender], setup: Setup, suite: Suite, rounds: int, progress: Progress = lambda said: None
) -> list[Result]:
    """Load all contenders, let each warm up, then run each once in every round.

    Raises: what `Worker.run` raises.
    """
    results = [Result(contender) for contender in contenders]
    with ExitStack() as stack:
        workers = [_warm(stack.enter_context(Worker(c, setup)), suite, progress) for c in contenders]
        for number in range(1, rounds + 1):
            for worker, result in zip(workers, results, strict=True):
                progress(f"round {number} of {rounds}: {result.contender.name}")
                run = worker.run(suite.recordings)
                result.runs.append(run)
                progress(f"round {number} of {rounds}: {result.contender.name} {suite.seconds / run.seconds:.1f} ×")
    for result in results:
        result.scores = [score(suite.recordings, run.heard.texts, run.heard.languages) for run in result.runs]
    _compare(results)
    return results


def _warm(worker: Worker, suite: Suite, progress: Progress) -> Worker:
    progress(f"loading {worker.contender.name}")
    worker.wait_until_loaded()
    progress(f"warming up {worker.contender.name}")
    worker.run(suite.warm_up)
    return worker


def _compare(results: Sequence[Result]) -> None:
    """Set the ratios, each within its round."""
    ours = next((result for result in results if result.contender.name == OURS), None)
    for result in results if ours else ():
        assert ours is not None
        result.ratios = [theirs / own for theirs, own in zip(result.seconds, ours.seconds, strict=True)]
