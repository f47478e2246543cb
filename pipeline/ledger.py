"""What the tables know, for the planner: the media and the ledger of one generation, as DuckDB reads their Parquet.

Both are views over the objects of one snapshot. Rows are read column by column and never held as a whole, and what
exceeds the memory goes to a temporary folder, so that an archive may have millions of files. It refuses to know what
the rows mean: that is `plan.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from model.errors import DestinationError
from pipeline.records import MEDIA, PARTS
from pipeline.sink import parquet_bytes
from pipeline.snapshot import PROTOCOL, SnapshotFileSystem
from pipeline.spill import spill_folder
from pipeline.store import Store, unusable

# Of DuckDB's own buffers. Python, Ray, torch and the weights of a base model come to 0.8 GB, and planning is to fit
# into 2 GB on the machine that submits.
MEMORY = "600MiB"
MOST_THREADS = 4  # each has buffers of its own
LEDGER = ("media_id", "index", "is_last", "status", "attempts", "part_seconds", "sha256", "same_as")
_COLUMNS = ", ".join(f'"{column}"' for column in LEDGER)

_BUGS = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException)

# Joins are written with the smaller side on the right: a listing that streams in tells nobody how long it is, and
# DuckDB would take it for small, and hold it.
_SETTINGS = """
    SET preserve_insertion_order = false;
    SET disabled_optimizers = 'build_side_probe_side,join_order';
"""


@contextmanager
def ledger_of(store: Store | None, generation: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with the views `ledger` (columns LEDGER, of one generation) and `media` (`records.MEDIA`).

    Both are empty where there is no store yet. Raises: `DestinationError` when the tables cannot be read.
    """
    with connected() as connection:
        if store is None:
            with_tables(connection, PARTS.empty_table().select(LEDGER), MEDIA.empty_table())
            yield connection
            return
        try:
            _show(connection, store, generation)
            yield connection
        except _BUGS:
            raise
        except duckdb.Error as error:
            raise _explained(store, error) from error


@contextmanager
def connected() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own; what exceeds its memory goes to a temporary folder, and with it."""
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    bounds: dict[str, Any] = {"temp_directory": str(spill_folder()), "memory_limit": MEMORY, "threads": threads}
    with duckdb.connect(config=bounds) as connection:
        connection.execute(_SETTINGS)
        yield connection


def with_tables(connection: duckdb.DuckDBPyConnection, ledger: pa.Table, media: pa.Table) -> None:
    """Let Arrow tables stand for what a store would hold."""
    connection.register("ledger", ledger)
    connection.register("media", media)


def _show(connection: duckdb.DuckDBPyConnection, store: Store, generation: str) -> None:
    """The two views over a snapshot of a store. Media are added before their parts, so they are looked at after."""
    sizes: dict[str, int] = {}
    for name, below in (("parts", f"data/{generation}/"), ("media", "")):
        found = store.snapshot(name).items()
        sizes |= {f"{name}/{path}": size for path, size in found if path.startswith(below)}
    # An object without rows in each: it gives the columns where there is no other.
    parts, media = f"parts/data/{generation}/", "media/"
    extra = {f"{parts}.columns": PARTS, f"{media}.columns": MEDIA}
    empty = {path: parquet_bytes(schema.empty_table()) for path, schema in extra.items()}
    connection.register_filesystem(SnapshotFileSystem(store.objects, sizes, empty))
    connection.execute(f"""
        CREATE VIEW ledger AS SELECT {_COLUMNS} FROM read_parquet('{PROTOCOL}://{parts}*');
        CREATE VIEW media AS FROM read_parquet('{PROTOCOL}://{media}*');
    """)


def _explained(store: Store, error: duckdb.Error) -> DestinationError:
    """What our file system raised inside DuckDB, which keeps but its text; or what DuckDB itself cannot read."""
    kind, _, said = str(error).splitlines()[0].partition(": ")
    if kind.endswith(DestinationError.__name__):
        return DestinationError(said)
    return unusable(store.objects, "tables", error)
