"""`earwitness sql`: one query printed in a format of choice, or a shell to ask many."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jobs import console
from model.errors import EarwitnessError, UsageError
from pipeline import catalog
from pipeline.store import Store

PROMPT = "sql> "
GREETING = "One SELECT a line; DESCRIBE segments tells its columns; an empty line leaves."


def ask(dest: str, query: str, output: str) -> None:
    """Print the rows of one query as a table, csv, json (one object a line) or parquet.

    Raises: `UsageError` for another format, or a query that cannot be run; `DestinationError` without tables.
    """
    if output not in WRITERS:
        raise UsageError(f"--format is {output!r}: choose one of {', '.join(WRITERS)}.")
    _write(catalog.query(Store.open(dest), query), output)


def shell(dest: str) -> None:
    """Answer queries until there is none, all over the snapshot of the start.

    A wrong query of a person only says so; one that comes through a pipe ends the shell with its error.
    """
    interactive = sys.stdin.isatty()
    with closing(catalog.connect(Store.open(dest))) as connection:
        for query in _typed() if interactive else filter(None, map(str.strip, sys.stdin)):
            try:
                _write(catalog.select(connection, query), "table")
            except EarwitnessError as error:
                if not interactive:
                    raise
                console.error(str(error))


def _typed() -> Iterator[str]:
    """Lines of a person, with history and editing where the system has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401
    console.err.print(GREETING)
    while True:
        try:
            line = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            console.err.print()
            return
        if not line:
            return
        yield line


def _write(rows: pa.Table, output: str) -> None:
    """Print rows in one of the formats. Raises: `UsageError` for what that cannot hold."""
    twice = next((name for name in rows.column_names if rows.column_names.count(name) > 1), None)
    if output in NAMED and twice is not None:
        raise UsageError(
            f"Two columns are called {twice!r}, which {output} cannot hold: give one another name with AS."
        )
    try:
        WRITERS[output](rows)
    except pa.ArrowNotImplementedError as error:
        reason = str(error).rstrip(".")
        raise UsageError(f"A column has a type that {output} cannot hold ({reason}): cast it in the query.") from error
    except (OverflowError, ValueError) as error:  # Python's dates end with the year 9999
        raise UsageError(
            f"A value is none that a {output} can hold ({error}): cast it to VARCHAR in the query."
        ) from error


def _csv(rows: pa.Table) -> None:
    for index, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):  # CSV has no lists: they are written as JSON
            texts = [None if value is None else _to_json(value) for value in rows.column(index).to_pylist()]
            rows = rows.set_column(index, field.name, pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(rows, sys.stdout.buffer)


def _json(rows: pa.Table) -> None:
    for row in rows.to_pylist():
        print(_to_json(row))


def _to_json(value: Any) -> str:
    return json.dumps(_finite(value), default=str, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN; they become the texts "inf" and "nan"."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(rows: pa.Table) -> None:
    if sys.stdout.isatty():
        raise UsageError("--format parquet writes bytes: send them to a file, as in `> rows.parquet`.")
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows, buffer)
    sys.stdout.buffer.write(buffer.getvalue())


NAMED = ("json", "parquet")  # a value is found by the name of its column
WRITERS: dict[str, Callable[[pa.Table], None]] = {
    "table": console.show,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
