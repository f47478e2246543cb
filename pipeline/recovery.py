"""What a killed writer left behind, finished by the next one before it begins.

Workers prepare a shard as two objects, and the writer publishes it by two commits, so a kill leaves one of these:

    a segments object alone            invisible; the parts are done again
    both objects                       rolled forward: published
    both, and the segments committed   rolled forward: the parts are committed as well
    a retirement that began            finished (`upkeep.py`)

No shard is deleted: a worker of the killed run may still be about to store the other half. It refuses to know why the
writer died.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.announcements import forget
from pipeline.sink import describe
from pipeline.store import snapshot
from pipeline.upkeep import finish_retirements, stored
from pipeline.writer import Writer

# Where in a file a row of the ledger stands, at which attempt, and how long the parts of that file are.
PLACE = ("media_id", "generation", "index", "attempts")
CUT = ("part_seconds", "same_as")


def recover(writer: Writer) -> int:
    """Finish what was begun; returns how many prepared shards are published by it.

    A prepared shard that overlaps the ledger stays unpublished: its parts were stored by a twin, or done again. So does
    one of which a file is cut otherwise in the ledger: it came late, and a later run had begun that file anew.
    """
    forget(writer.objects)  # who was to publish what they tell of is gone, and what is prepared is found below
    retired = finish_retirements(writer)
    published = snapshot(writer.table("parts")).keys()
    begun = snapshot(writer.table("segments")).keys() - published
    prepared = stored(writer.objects, "parts").keys() - published - retired
    # Those of which the segments are committed come first: they lack only the other commit.
    forward = _without_overlap(writer, sorted(prepared, key=lambda path: (path not in begun, path)))
    writer.publish([describe(writer.objects, path) for path in forward])
    writer.remove("segments", begun - set(forward))
    return len(forward)


def _without_overlap(writer: Writer, prepared: list[str]) -> list[str]:
    """Those of the prepared paths that go with the ledger, and with the paths before them."""
    rows = {path: _rows(writer.objects.read(f"parts/{path}")) for path in prepared}
    if not rows:
        return []
    files = pa.concat_tables(rows.values())["media_id"].unique()
    ledger = writer.read("parts", [*PLACE, *CUT])
    taken = _Taken()
    taken.add(ledger.filter(pc.is_in(ledger["media_id"], files)).to_pylist())
    kept = []
    for path, table in rows.items():
        if taken.fit(found := table.to_pylist()):
            taken.add(found)
            kept.append(path)
    return kept


def _rows(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), columns=[*PLACE, *CUT])


class _Taken:
    """What is stored already: places in files, each at an attempt, and the length each file is cut to.

    A copy's row stands for no cut: its file has none before it has parts of its own.
    """

    def __init__(self) -> None:
        self._places: set[tuple[Any, ...]] = set()
        self._lengths: dict[tuple[str, str], float] = {}

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._places.update(map(_place, rows))
        self._lengths.update(_lengths(rows))

    def fit(self, rows: list[dict[str, Any]]) -> bool:
        if any(_place(row) in self._places for row in rows):
            return False
        return all(self._lengths.get(file, length) == length for file, length in _lengths(rows))


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in PLACE)


def _lengths(rows: list[dict[str, Any]]) -> list[tuple[tuple[str, str], float]]:
    return [((row["media_id"], row["generation"]), row["part_seconds"]) for row in rows if row["same_as"] is None]
