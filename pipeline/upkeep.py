"""Keeping the tables of a destination small: merge shards, drop a generation, clear away what nobody can see.

Both tables change by commits of their own, so what goes is written down first, in `retired/ID.json`; a kill in between
is finished by the next writer. Objects that left the tables stay in the storage for a grace period, for readers of an
older version and for workers that are slow to notice that their run has ended; `vacuum` deletes them after it.

It refuses to know what is in a shard, but for its rows.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UsageError
from pipeline.objects import ObjectStore
from pipeline.sink import SHARD_NAME_LENGTH, describe, parquet_bytes
from pipeline.store import TABLES, snapshot
from pipeline.writer import Actions, Writer, remove_actions, shard_action

FOLDER = "retired"
SMALL_BYTES = 16 << 20  # of both objects of a shard; larger ones are not merged again
MERGED_BYTES = 64 << 20  # of both together; a reader holds one in memory, and so does the merge
GRACE_HOURS = 24.0
SHORTEST_GRACE_HOURS = 1.0  # a slow worker of a run that is over stores within this


@dataclass(frozen=True)
class Retirement:
    """Shards that leave both tables, and the one that takes their place, if any; paths as in `records.SHARD`."""

    name: str  # unique: what was dropped may come again, and be dropped again
    epoch: int  # of the writer
    old: tuple[str, ...]
    merged: str | None = None

    @property
    def record(self) -> str:
        return f"{FOLDER}/{self.name}.json"

    @property
    def done(self) -> str:
        """An empty object that says that the tables are changed: from then on it is never done again."""
        return f"{FOLDER}/{self.name}.done"


@dataclass(frozen=True)
class Vacuumed:
    """What `vacuum` deleted."""

    objects: int = 0
    bytes: int = 0


def compact(writer: Writer) -> int:
    """Merge small shards of a generation into larger ones; returns how many there are fewer. The rows stay as they are.

    Half merged, nothing is seen twice through the views.
    """
    fewer = 0
    for group in _groups(writer):
        _retire(writer, group, _merge(writer.objects, group))
        fewer += len(group) - 1
    return fewer


def drop(writer: Writer, generation: str) -> int:
    """Take every row of one generation out of the tables; returns how many shards that were.

    Raises: `UsageError` when the tables hold no such generation.
    """
    published = snapshot(writer.table("parts")).keys()
    found = {path for path in published if _generation(path) == generation}
    if not found:
        known = sorted({_generation(path) for path in published})
        raise UsageError(f"There is no generation {generation!r}: the tables hold {', '.join(known) or 'none'}.")
    # What was prepared and never published goes with it: nothing would keep recovery from publishing it any more.
    prepared = {path for path in stored(writer.objects, "parts") if _generation(path) == generation}
    _retire(writer, sorted(found | prepared), None)
    return len(found)


def vacuum(writer: Writer, grace_hours: float = GRACE_HOURS, dry_run: bool = False) -> Vacuumed:
    """Delete the objects that are in no table, and have not been for the grace period, by the storage's clock.

    One that was merged or dropped counts from then, any other from when it was written. Run it after
    `recovery.recover`: what that could publish is published. Raises: `UsageError` for too short a grace.
    """
    if not grace_hours >= SHORTEST_GRACE_HOURS:
        raise UsageError(
            f"grace_hours is {grace_hours:g}: give at least {SHORTEST_GRACE_HOURS:g}, for those who read now."
        )
    objects = writer.objects
    before = objects.clock() - 3600 * grace_hours
    retired = _retired_since(objects)
    unseen: dict[str, int] = {}
    for name in ("parts", "segments", "media"):  # a parts object vouches for its segments, so it goes first
        seen = snapshot(writer.table(name)).keys()
        written = objects.written(f"{name}/data")
        unseen |= {
            f"{name}/{path}": size
            for path, size in stored(objects, name).items()
            if path not in seen and max(written.get(f"{name}/{path}", before), retired.get(path, 0.0)) < before
        }
    if not dry_run:
        for path in unseen:
            writer.lease.check(now=True)  # no commit follows that a fence could stop
            objects.delete(path)
        objects.sweep(before)
        _forget_retirements(writer)
        for name in TABLES:
            writer.shorten_log(name)
    return Vacuumed(len(unseen), sum(unseen.values()))


def finish_retirements(writer: Writer) -> set[str]:
    """Finish those that a killed writer began; returns every path that is retired and not yet deleted.

    A record that was written by somebody who only slept, and was no longer the writer, is not obeyed.
    """
    written = writer.objects.written(FOLDER)
    retirements = _retirements(writer.objects)
    for retirement in retirements:
        if retirement.done not in written:
            if written[retirement.record] <= writer.lease.ended_at(retirement.epoch):
                _apply(writer, retirement)
            writer.objects.create(retirement.done, b"")
    # Merged, and not in the tables: a twin of rows that are there, or were dropped since.
    merged = {retirement.merged for retirement in retirements if retirement.merged}
    return merged | {path for retirement in retirements for path in retirement.old}


def stored(objects: ObjectStore, name: str) -> dict[str, int]:
    """The objects that stand in the data folder of a table, published or not: path relative to the table → bytes."""
    return {path.removeprefix(f"{name}/"): size for path, size in objects.list(f"{name}/data").items()}


def _retire(writer: Writer, old: list[str], merged: str | None) -> None:
    retirement = Retirement(uuid.uuid4().hex, writer.lease.epoch, tuple(old), merged)
    writer.lease.check(now=True)
    writer.objects.create(retirement.record, json.dumps(asdict(retirement)).encode())
    _apply(writer, retirement)
    writer.objects.create(retirement.done, b"")


def _apply(writer: Writer, retirement: Retirement) -> None:
    """Both tables, in an order in which the views, which join them by shard, show every row once at any moment.

    Nothing takes the place of shards of which one is gone: its rows stand in another by now, or were dropped.
    """
    known = snapshot(writer.table("parts")).keys()
    if retirement.merged and not known & {retirement.merged} and not known >= set(retirement.old):
        return
    merged = describe(writer.objects, retirement.merged) if retirement.merged else None
    if merged and merged["segments_path"]:
        writer.add("segments", [shard_action(merged, "segments")])

    def swap(known: dict[str, int]) -> Actions:
        leaving = [path for path in retirement.old if path in known]
        coming = [shard_action(merged, "parts")] if merged and merged["parts_path"] not in known else []
        return [*coming, *remove_actions(leaving, known)]

    writer.commit("parts", swap)
    writer.remove("segments", retirement.old)


@dataclass(frozen=True)
class _Shard:
    path: str
    bytes: int  # of both objects
    part_ids: frozenset[str]


def _groups(writer: Writer) -> Iterator[list[str]]:
    """Small shards that together make one of about MERGED_BYTES, at least two at a time."""
    segments = snapshot(writer.table("segments"))
    by_generation: defaultdict[str, list[_Shard]] = defaultdict(list)
    for path, size in sorted(snapshot(writer.table("parts")).items()):
        both = size + segments.get(path, 0)
        if both < SMALL_BYTES:
            by_generation[_generation(path)].append(_Shard(path, both, _part_ids(writer.objects, path)))
    for small in by_generation.values():
        yield from (group for group in _filled(small) if len(group) > 1)


def _filled(small: list[_Shard]) -> Iterator[list[str]]:
    """Paths in their order, in groups of at most MERGED_BYTES.

    Two attempts at one part never meet in a group: the views tell them apart by the shard.
    """
    group: list[str] = []
    total, part_ids = 0, set[str]()
    for shard in small:
        if total + shard.bytes > MERGED_BYTES or part_ids & shard.part_ids:
            yield group
            group, total, part_ids = [], 0, set()
        group.append(shard.path)
        total += shard.bytes
        part_ids |= shard.part_ids
    yield group


def _part_ids(objects: ObjectStore, path: str) -> frozenset[str]:
    rows = pq.read_table(pa.BufferReader(objects.read(f"parts/{path}")), columns=["part_id"])
    return frozenset(rows["part_id"].to_pylist())


def _merge(objects: ObjectStore, group: list[str]) -> str:
    """Store the rows of several shards as one, invisible as yet; returns its path."""
    rows = {name: _rows(objects, name, group) for name in ("segments", "parts")}
    content = {name: parquet_bytes(table) for name, table in rows.items() if table is not None}
    digest = hashlib.sha256(b"".join(content.values())).hexdigest()[:SHARD_NAME_LENGTH]
    path = f"data/{_generation(group[0])}/{digest}.parquet"
    for name, data in content.items():
        objects.create(f"{name}/{path}", data)
    return path


def _rows(objects: ObjectStore, name: str, group: Iterable[str]) -> pa.Table | None:
    paths = [f"{name}/{path}" for path in group]
    there = [path for path in paths if name == "parts" or objects.exists(path)]
    if not there:
        return None
    found = objects.read_many(there)
    return pa.concat_tables(pq.read_table(pa.BufferReader(found[path])) for path in there)


def _retirements(objects: ObjectStore) -> list[Retirement]:
    paths = sorted(path for path in objects.list(FOLDER) if path.endswith(".json"))
    found: list[dict[str, Any]] = [json.loads(data) for data in objects.read_many(paths).values()] if paths else []
    return [Retirement(**fields | {"old": tuple(fields["old"])}) for fields in found]


def _retired_since(objects: ObjectStore) -> dict[str, float]:
    """When each retired shard left the tables, in seconds of the storage's clock."""
    written = objects.written(FOLDER)
    since: dict[str, float] = {}
    for retirement in _retirements(objects):
        for path in retirement.old:
            since[path] = max(since.get(path, 0.0), written[retirement.done])
    return since


def _forget_retirements(writer: Writer) -> None:
    """Delete the records of retired shards of which no object is left."""
    left = stored(writer.objects, "parts").keys()
    for retirement in _retirements(writer.objects):
        if not left & set(retirement.old):
            writer.objects.delete(retirement.record)
            writer.objects.delete(retirement.done)


def _generation(path: str) -> str:
    return path.split("/")[1]
