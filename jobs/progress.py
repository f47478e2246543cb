"""What is seen of a run: its plan, how far it is, and how it ended; for people, or as one line of JSON.

It watches through `jobs.transcribe.Watcher` and decides nothing. The line of progress is standard error's; the end is a
result.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ray.exceptions import RayError
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from jobs.console import count, duration, err, out, times, waiting
from jobs.transcribe import Watcher
from pipeline.lease import Holder
from pipeline.media import find_ffmpeg
from pipeline.plan import Plan
from pipeline.run import Run, Summary
from pipeline.sandbox import LIMITS, isolation
from pipeline.tally import Counts, Tally

REFRESH_SECONDS = 0.5
LOG_SECONDS = 60.0  # between two lines where standard error is a file, as under a scheduler
BAR_WIDTH = 20
UNCONFINED = "Without bubblewrap, ffmpeg is confined by limits on memory, time and writing."


class Progressing(Watcher):
    """Shows a run to a person: one line of plan, one live line of progress, one sentence or two at the end."""

    def __init__(self, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self._destination = ""

    def waiting(self, holder: Holder, seconds: float) -> None:
        waiting(holder, seconds)

    def planned(self, run: Run) -> None:
        summary = run.summary
        self._destination = run.job.destination
        show_recovered(summary.recovered_shards)
        if summary.pending:
            err.print(plan_line(run), soft_wrap=True)
            if not self._dry_run and isolation(find_ffmpeg()) == LIMITS:
                err.print(UNCONFINED, soft_wrap=True)

    @contextmanager
    def running(self, run: Run, tally: Tally) -> Iterator[None]:
        with bar() as progress, beside(lambda stop: _refresh(progress, tally, run.plan, stop), REFRESH_SECONDS):
            yield

    def finished(self, summary: Summary) -> None:
        if summary.pending and self._dry_run:
            out.print("Dry run: nothing was transcribed or written.")
        else:
            show_summary(summary, self._destination)


@contextmanager
def beside(work: Callable[[threading.Event], None], patience: float) -> Iterator[None]:
    """Let `work` go on in a thread until the block ends, which its event says; it has so many seconds to hear it.

    Then it is left behind: it may be waiting for a cluster that is gone, and what it raises of that is of no use.
    """
    stop = threading.Event()

    def until_stopped() -> None:
        try:
            work(stop)
        except Exception:
            if not stop.is_set():
                raise

    thread = threading.Thread(target=until_stopped, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(patience)


class Json(Watcher):
    """Says nothing until the end, then one line of JSON."""

    def finished(self, summary: Summary) -> None:
        print(json.dumps(asdict(summary) | {"speed": summary.speed, "sandbox": isolation(find_ffmpeg())}))


def show_summary(summary: Summary, destination: str) -> None:
    """Print what a run came to."""
    if not summary.pending:
        files = count(summary.listed, "file")
        out.print(f"Nothing to do: {files} done or given up with this model and options.", soft_wrap=True)
        return
    out.print(
        f"Done: {duration(summary.audio_seconds)} of audio in {duration(summary.elapsed_seconds)} "
        f"({times(summary.speed)} real time), {count(summary.segments, 'segment')}."
    )
    if summary.remaining:
        out.print(f"{count(summary.remaining, 'file')} left to the next run.")
    if summary.failed_parts:
        query = f'earwitness sql {destination} "FROM failures"'
        parts = count(summary.failed_parts, "part")
        out.print(f"{parts} without text; `{query}` says why.", markup=False, soft_wrap=True)


def show_recovered(shards: int) -> None:
    """Say that a run began with the end of another."""
    if shards:
        err.print(f"Finished what an earlier run had prepared: {count(shards, 'shard')}.")


def plan_line(run: Run) -> str:
    """What a run has to do, and with what."""
    place, summary = run.job.place, run.summary
    device = "GPU" if place.model_gpus else "CPU"
    return (
        f"{run.job.model.name}: {summary.pending:,} of {count(summary.listed, 'file')} to do, about "
        f"{duration(run.plan.audio_seconds)} of audio, {place.total_slots} slots on {device}, "
        f"{count(place.decode_actors, 'reader')}"
    )


def describe(counts: Counts, plan: Plan, elapsed: float) -> tuple[float, str]:
    """How much of a run is done, 0 to 1, and the same in words: audio, speed, failures, time left.

    The audio of files not yet read is estimated by the bytes per second of those that were.
    """
    expected = plan.audio_seconds
    if counts.bytes_read:
        expected = counts.seconds_read * plan.pending_bytes / counts.bytes_read
    done = counts.seconds_transcribed
    share = min(1.0, done / expected) if expected else 0.0
    words = [
        f"{duration(done)} of {duration(max(done, expected))}",
        f"{times(done / elapsed if elapsed else 0.0)} real time",
        f"{counts.files_failed:,} failed",
    ]
    if share > 0:
        words.append(f"{duration(elapsed * (1 - share) / share)} left")
    return share, " · ".join(words)


def _refresh(progress: Progress, tally: Tally, plan: Plan, stop: threading.Event) -> None:
    task = progress.add_task("", total=1.0, line="starting")
    started = logged = progress.get_time()
    while not stop.wait(REFRESH_SECONDS):
        now = progress.get_time()
        try:
            share, line = describe(tally.counts(), plan, now - started)
        except RayError:  # the cluster is going, or gone: the run itself will say so
            return
        progress.update(task, completed=share, line=line)
        if progress.disable and now - logged >= LOG_SECONDS:
            logged = now
            err.print(line, soft_wrap=True)


def bar() -> Progress:
    """One line that never wraps: where the terminal is narrow, the bar gives way."""
    bar = BarColumn(bar_width=None, table_column=Column(max_width=BAR_WIDTH))
    words = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    return Progress(bar, words, console=err, transient=True, disable=not err.is_terminal)
