"""What a person sees: the plan, the progress and the end of a run, tables of rows, and errors of one sentence.

Results go to standard output; progress and errors to standard error, so that a pipe gets results only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jobs.transcribe import Watcher
from pipeline.plan import Plan
from pipeline.run import Run, Summary
from pipeline.tally import Counts, Tally

REFRESH_SECONDS = 0.5
NARROWEST_TEXT = 24  # columns that the widest column of a table keeps on a narrow terminal

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Progressing(Watcher):
    """Shows a run on a terminal: one line of plan, one live line of progress, one sentence at the end."""

    def __init__(self, dry_run: bool = False) -> None:
        self._dry_run = dry_run

    def planned(self, run: Run) -> None:
        place, summary = run.job.place, run.summary
        if summary.recovered_shards:
            err.print(f"Finished what an earlier run had prepared: {_count(summary.recovered_shards, 'shard')}.")
        if not summary.pending:
            return
        device = "GPU" if place.model_gpus else "CPU"
        err.print(
            f"{run.job.model.name}: {summary.pending} of {_count(summary.listed, 'file')} to do, about "
            f"{duration(run.plan.audio_seconds)} of audio, {place.total_slots} slots on {device}"
        )

    @contextmanager
    def running(self, run: Run, tally: Tally) -> Iterator[None]:
        stop = threading.Event()
        with _bar() as progress:
            task = progress.add_task("", total=1.0, line="starting")
            started = progress.get_time()

            def refresh() -> None:
                while not stop.wait(REFRESH_SECONDS):
                    counts = tally.counts()
                    elapsed = progress.get_time() - started
                    share, line = describe(counts, run.plan, elapsed)
                    progress.update(task, completed=share, line=line)

            watcher = threading.Thread(target=refresh, name="progress", daemon=True)
            watcher.start()
            try:
                yield
            finally:
                stop.set()
                watcher.join()

    def finished(self, summary: Summary) -> None:
        if self._dry_run:
            out.print("Dry run: nothing was transcribed or written.")
        elif not summary.pending:
            out.print(
                f"Nothing to do: {_count(summary.listed, 'file')} already transcribed with this model and options."
            )
        else:
            out.print(
                f"Done: {duration(summary.audio_seconds)} of audio in {duration(summary.elapsed_seconds)} "
                f"({summary.speed:.1f} × real time), {_count(summary.segments, 'segment')}."
            )
            if summary.failed_parts:
                out.print(f"{_count(summary.failed_parts, 'file')} without text: SELECT * FROM failures says why.")


class Json(Watcher):
    """Says nothing until the end, then one line of JSON."""

    def finished(self, summary: Summary) -> None:
        print(json.dumps(asdict(summary) | {"speed": summary.speed}))


def describe(counts: Counts, plan: Plan, elapsed: float) -> tuple[float, str]:
    """How much of a run is done, 0 to 1, and the same in words: hours, speed, failures, time left.

    The audio of files not yet read is estimated by the bytes per second of those that were.
    """
    expected = plan.audio_seconds
    if counts.bytes_read:
        expected = counts.seconds_read * plan.pending_bytes / counts.bytes_read
    share = min(1.0, counts.seconds_transcribed / expected) if expected else 0.0
    speed = counts.seconds_transcribed / elapsed if elapsed else 0.0
    words = [f"{counts.seconds_transcribed / 3600:.2f} h", f"{speed:.1f} × real time"]
    if counts.files_failed:
        words.append(f"{counts.files_failed} failed")
    if share > 0:
        words.append(f"{duration(elapsed * (1 - share) / share)} left")
    return share, " · ".join(words)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def show(rows: pa.Table) -> None:
    """Print rows as a table if the terminal is wide enough for it, else one below the other, name by value."""
    cells = [[cell(value) for value in row.values()] for row in rows.to_pylist()]
    if rows.num_rows and _too_wide(rows.schema.names, cells):
        _show_expanded(rows.schema.names, cells)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in rows.schema:
        numeric = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        table.add_column(Text(field.name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table)
    if not rows.num_rows:
        out.print("(no rows)")


def _too_wide(names: list[str], cells: list[list[str]]) -> bool:
    """Whether a table would break names or short values; only the widest column, the text as a rule, may wrap."""
    widths = [max(cell_len(text) for text in column) for column in zip(names, *cells, strict=True)]
    widest = max(widths)
    needed = sum(widths) + 2 * (len(widths) - 1) - widest + min(widest, NARROWEST_TEXT)
    return needed > out.width


def _show_expanded(names: list[str], cells: list[list[str]]) -> None:
    for number, row in enumerate(cells, start=1):
        out.print(Text(f"row {number}", style="bold"))
        block = Table(box=None, pad_edge=False, show_header=False)
        block.add_column(style="dim", no_wrap=True)
        block.add_column(overflow="fold")
        for name, text in zip(names, row, strict=True):
            block.add_row(Text(name), Text(text))
        out.print(block)


def cell(value: Any) -> str:
    """One value of a row, as short as it can be told."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, datetime):
        return value.isoformat(" ", timespec="seconds")
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    return str(value)


def error(sentence: str) -> None:
    """Say what went wrong, in one sentence, on standard error."""
    err.print("[red]earwitness:[/red]", end=" ")
    err.print(sentence, markup=False, soft_wrap=True)


def _bar() -> Progress:
    return Progress(BarColumn(bar_width=20), TextColumn("{task.fields[line]}"), console=err, transient=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
