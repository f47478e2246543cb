"""Tables for the tests of the views: batches to publish, and questions that have one row for an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipeline.catalog import query
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import Writer

Results = Callable[..., pa.Table]


def publish(store: Writer, *batches: pa.Table) -> None:
    for batch in batches:
        store.publish([prepare(store.objects, batch)])


def one(store: Store, sql: str) -> dict[str, Any]:
    (row,) = query(store, sql).to_pylist()
    return dict(row)


def with_rules(table: pa.Table, rules: list[str]) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        for segment in row["segment_rows"]:
            segment["rules_fired"] = rules
    return pa.Table.from_pylist(rows, schema=table.schema)


def spoken(*words: str, start: float) -> list[dict[str, Any]]:
    """As many words, half a second each."""
    times = [start + 0.5 * index for index in range(len(words))]
    return [
        {"word": word, "start": time, "end": time + 0.5, "probability": 0.9}
        for word, time in zip(words, times, strict=True)
    ]


def doubtful(results: Results, **evidence: Any) -> pa.Table:
    """One file whose first segment differs."""
    rows = results("a", parts=1, segments=3).to_pylist()
    rows[0]["segment_rows"][0] |= evidence
    return pa.Table.from_pylist(rows, schema=results("a").schema)
