"""`earwitness sql`: one query printed in a format of choice, or a shell to ask many."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import closing

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jobs import console
from model.errors import EarwitnessError, UsageError
from pipeline import catalog
from pipeline.store import Store

PROMPT = "sql> "
GREETING = "One SELECT a line, DESCRIBE segments for its columns, an empty line or Ctrl-D to leave."


def ask(dest: str, query: str, output: str) -> None:
    """Print the rows of one query as a table, csv, json (one object a line) or parquet.

    Raises: `UsageError` for another format, or a query that cannot be run; `DestinationError` without tables.
    """
    if output not in WRITERS:
        raise UsageError(f"--format is {output!r}: choose one of {', '.join(WRITERS)}.")
    WRITERS[output](catalog.query(Store.open(dest), query))


def shell(dest: str) -> None:
    """Ask for queries until there is none, all over the snapshot of the start. A wrong query only says so."""
    with closing(catalog.connect(Store.open(dest))) as connection:
        console.err.print(GREETING)
        while query := _line():
            try:
                console.show(catalog.select(connection, query))
            except EarwitnessError as error:
                console.error(str(error))


def _line() -> str:
    try:
        return input(PROMPT if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _csv(rows: pa.Table) -> None:
    lists = [i for i, field in enumerate(rows.schema) if pa.types.is_nested(field.type)]
    for index in lists:  # CSV has no lists: they are written as JSON-like text
        texts = [None if value is None else str(value) for value in rows.column(index).to_pylist()]
        rows = rows.set_column(index, rows.schema.names[index], pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(rows, sys.stdout.buffer)


def _json(rows: pa.Table) -> None:
    for row in rows.to_pylist():
        print(json.dumps(row, default=str, ensure_ascii=False))


def _parquet(rows: pa.Table) -> None:
    if sys.stdout.isatty():
        raise UsageError("--format parquet writes bytes: send them to a file, as in `> rows.parquet`.")
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows, buffer)
    sys.stdout.buffer.write(buffer.getvalue())


WRITERS: dict[str, Callable[[pa.Table], None]] = {
    "table": console.show,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
