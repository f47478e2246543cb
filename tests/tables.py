"""What is in the tables of a destination: as any reader of Delta counts, and as users do."""

from __future__ import annotations

from pipeline.catalog import query
from pipeline.store import Store


def rows_in(store: Store, name: str) -> int:
    """What any Delta reader counts."""
    return int(store.table(name).to_pyarrow_table().num_rows)


def shown(store: Store) -> tuple[int, int]:
    """What users count: parts and segments of the views."""
    counts = query(store, "SELECT (SELECT count(*) FROM parts) AS p, (SELECT count(*) FROM segments) AS s")
    return counts["p"][0].as_py(), counts["s"][0].as_py()
