"""What a person reads: tables of rows, durations, counts, and errors of one sentence.

Results go to standard output; everything else to standard error, so that a pipe gets results only. It refuses to know
where rows come from, and what a run is (`progress.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST_TEXT = 24  # columns that the widest column of a table keeps on a narrow terminal
GAP = 2  # spaces between the columns of a table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line; rich would exit with the code of a bug."""
        raise BrokenPipeError


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)

# A file name may hold anything. What would steer the terminal is shown as its escape sequence; tabs and new lines stay.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(rows: pa.Table) -> None:
    """Print rows as a table if the terminal is wide enough for it, else one below the other, name by value."""
    if not rows.num_rows:
        out.print("(no rows)")
        return
    names = rows.schema.names
    cells = list(zip(*([cell(value) for value in column.to_pylist()] for column in rows.columns), strict=True))
    widths = [max(map(_width, column)) for column in zip(names, *cells, strict=True)]
    widest = widths.index(max(widths))
    least = max(cell_len(names[widest]), min(widths[widest], NARROWEST_TEXT))
    if sum(widths) - widths[widest] + least + GAP * (len(widths) - 1) > out.width:
        _show_expanded(names, cells)
        return
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index, field in enumerate(rows.schema):
        numeric = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        # Only the widest column, the text as a rule, may wrap: names and short values stay whole.
        wraps = {"overflow": "fold", "min_width": least} if index == widest else {"no_wrap": True}
        table.add_column(Text(field.name), justify="right" if numeric else "left", **wraps)
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table)


def _show_expanded(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(cells, start=1):
        out.print(Text(f"row {number}", style="bold"))
        block = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
        block.add_column(style="dim", no_wrap=True)
        block.add_column(overflow="fold")
        for name, text in zip(names, row, strict=True):
            block.add_row(Text(name), Text(text))
        out.print(block)


def cell(value: Any) -> str:
    """One value of a row, as short as it can be told."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        rounded = f"{value:.2f}"
        return f"{value:.2g}" if value and float(rounded) == 0 else rounded
    if isinstance(value, datetime):
        return value.isoformat(" ", timespec="seconds")
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {cell(item)}" for name, item in value.items()) + "}"
    return harmless(str(value))


def harmless(text: str) -> str:
    """Text without control characters but tabs and new lines."""
    return _STEERING.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3.4 h, 1,200 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def times(factor: float) -> str:
    """How many times as fast: 0.2 ×, 1,150 ×."""
    return f"{factor:,.1f} ×" if factor < 100 else f"{factor:,.0f} ×"


def count(number: int, noun: str) -> str:
    """A number of things: 1 file, 2,000 files."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def error(sentence: str) -> None:
    """Say what went wrong, in one line, on standard error."""
    err.print("[red]earwitness:[/red]", end=" ")
    err.print(harmless(" ".join(sentence.splitlines())), markup=False, soft_wrap=True)


def waiting(holder: object, seconds: float) -> None:
    """Say why nothing happens for a while: another writer may still be alive."""
    err.print(f"Waiting up to {duration(seconds)} to see whether {holder} still writes there.", soft_wrap=True)


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))
