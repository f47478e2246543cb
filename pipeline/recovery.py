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

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.announcements import forget
from pipeline.sink import describe
from pipeline.store import snapshot
from pipeline.upkeep import finish_retirements, stored
from pipeline.writer import Writer

KEY = ("part_id", "attempts")  # of a row in the ledger


def recover(writer: Writer) -> int:
    """Finish what was begun; returns how many prepared shards are published by it.

    A prepared shard that overlaps the ledger stays unpublished: its parts were stored by a twin, or done again.
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
    """The prepared paths whose parts, at their attempt, are neither in the ledger nor in a path before."""
    if not prepared:
        return []
    seen = _keys(writer.read("parts", KEY))
    kept = []
    for path in prepared:
        keys = _keys(pq.read_table(pa.BufferReader(writer.objects.read(f"parts/{path}")), columns=[*KEY]))
        if not keys & seen:
            kept.append(path)
            seen |= keys
    return kept


def _keys(rows: pa.Table) -> set[tuple[str, int]]:
    return set(zip(*(rows[name].to_pylist() for name in KEY), strict=True))
