"""The table of runs: one row for each run that came to its end, however it ended.

The row is written by the holder of the lease when the work is over. A run that is killed, or loses its lease, has no
row; what it had stored is published by the next one. It refuses to know how a run goes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from model.errors import EarwitnessError
from pipeline.run import SECONDS_PER_HOUR, Run
from pipeline.writer import run_id

DONE, DEADLINE, MAX_HOURS, INTERRUPTED, ERROR = "done", "deadline", "max_hours", "interrupted", "error"


class Record:
    """Writes the row of a run when the block ends, and says what it holds; a context manager.

    command: that of the command line which began the run. told: is given the row, a `records.RUNS` row, once it is
    stored. Raises: `LeaseError` once another has taken over; `DestinationError` when the storage refuses; neither takes
    the place of an error that ended the run.
    """

    def __init__(self, run: Run, command: str, told: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        self._run = run
        self._command = command
        self._told = told

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._run.writer is not None, "a run that was only looked at leaves no row"
        found = row(self._run, self._command, error)
        with suppress(EarwitnessError) if error else nullcontext():
            self._run.writer.add_history(found)
            self._told(found)


def row(run: Run, command: str, error: BaseException | None) -> dict[str, Any]:
    """The `records.RUNS` row of a run that ends now, by an error or without."""
    summary, place = run.summary, run.job.place
    worker_seconds = summary.elapsed_seconds * place.model_actors
    price = run.job.config.run.cost_per_hour
    return dict(
        run_id=run.run_id or run_id(run.started_at),
        command=command,
        started_at=run.started_at,
        ended_at=datetime.now(UTC),
        generation=summary.generation,
        host=platform.node(),
        listed=summary.listed,
        new=summary.new,
        changed=summary.changed,
        missing=summary.missing,
        pending=summary.pending,
        remaining=summary.remaining if error is None else None,
        parts=summary.parts,
        segments=summary.segments,
        failed_parts=summary.failed_parts,
        audio_hours=summary.audio_seconds / SECONDS_PER_HOUR,
        elapsed_seconds=summary.elapsed_seconds,
        speed=summary.speed,
        worker_seconds=worker_seconds,
        gpu_seconds=worker_seconds * place.model_gpus,
        cost_estimate=None if price is None else worker_seconds / SECONDS_PER_HOUR * price,
        ended=_ended(run, error),
        error=_sentence(error),
    )


def _ended(run: Run, error: BaseException | None) -> str:
    if error is not None:
        return INTERRUPTED if isinstance(error, (KeyboardInterrupt, SystemExit)) else ERROR
    if run.summary.remaining > run.plan.postponed:
        return DEADLINE
    return MAX_HOURS if run.plan.postponed else DONE


def _sentence(error: BaseException | None) -> str | None:
    if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
        return None
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, EarwitnessError) else f"{type(error).__name__}: {first}"
