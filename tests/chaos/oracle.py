"""What a destination must hold, said without the code that filled it.

The tables are read twice: plainly, by deltalake and pyarrow as any other program would, and through the views that
users query. Both must give the rows of an undisturbed run, and what lies below them must be sound. It refuses to know
stages, stores and leases; of `pipeline` only the views are asked, because they are what users see.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from deltalake import DeltaTable

from pipeline import catalog
from pipeline.store import Store

# What must be equal: what was said, where, and what came of each part. Not who did it, when, and how long it took.
PARTS = (
    *("part_id", "media_id", "uri", "index", "start", "end", "is_last", "status", "error", "sha256"),
    *("decoded_seconds", "segments", "generation"),
)
SEGMENTS = ("media_id", "part_id", "uri", "segment_index", "start", "end", "text", "language", "tokens", "generation")
MEDIA = ("media_id", "uri", "version", "bytes")
COLUMNS = {"parts": PARTS, "segments": SEGMENTS, "media": MEDIA}
RETRIED = ("failed", "timeout")
KEYS = {"parts": ("part_id",), "segments": ("part_id", "segment_index"), "media": ("media_id",)}

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Holdings:
    """Canonical rows of the three tables, sorted: table → rows, in the order of `COLUMNS`."""

    tables: dict[str, list[Row]]

    def missing(self, other: Holdings) -> int:
        """Rows of `other` that are not here."""
        return sum(len(set(rows) - set(self.tables[name])) for name, rows in other.tables.items())

    def settled(self) -> Holdings:
        """Without the parts that only say that a run failed at them: they stay in the ledger beside the next try."""
        status = PARTS.index("status")
        parts = [row for row in self.tables["parts"] if row[status] not in RETRIED]
        return Holdings(self.tables | {"parts": parts})

    def doubled(self) -> int:
        """Rows whose key was there before."""
        return sum(number - 1 for name in KEYS for number in _keys(self, name).values())


def plainly(dest: str) -> Holdings:
    """What any Delta reader finds at `dest`: a folder or s3://BUCKET/PREFIX, reached by the AWS_* environment."""
    return Holdings({name: _canonical(name, _table(dest, name).to_pyarrow_table()) for name in COLUMNS})


def shown(dest: str) -> Holdings:
    """What the views show."""
    store = Store.open(dest)
    return Holdings({name: _canonical(name, catalog.query(store, f"FROM {name}")) for name in COLUMNS})


def complaints(dest: str, expected: Holdings, retried: bool = False) -> list[str]:
    """All that is wrong with `dest`, one sentence each; none when it is as if nothing had ever happened.

    retried: a run may have failed at a part, as long as another did not.
    """
    plain, views = plainly(dest), shown(dest)
    plain = plain.settled() if retried else plain
    said = [f"plainly, {sentence}" for sentence in _differences(plain, expected)]
    said += [f"in the views, {sentence}" for sentence in _differences(views, expected)]
    said += [f"plainly, {sentence}" for sentence in _twice(plain)]
    return [*said, *_unsound(plain), *_damaged(dest)]


def orphans(dest: str) -> int:
    """Objects of the tables that no commit ever named: invisible, and left to `vacuum`."""
    return sum(len(_stored(dest, name).keys() - _added(dest, name).keys()) for name in COLUMNS)


def _differences(found: Holdings, expected: Holdings) -> Iterable[str]:
    for name, rows in expected.tables.items():
        lost, strange = (Counter(rows) - Counter(found.tables[name])), (Counter(found.tables[name]) - Counter(rows))
        if lost:
            yield f"{lost.total()} rows of {name} are lost, as {next(iter(lost))}"
        if strange:
            yield f"{strange.total()} rows of {name} should not be there, as {next(iter(strange))}"


def _twice(found: Holdings) -> Iterable[str]:
    for name in KEYS:
        for key, number in _keys(found, name).items():
            if number > 1:
                yield f"{name} holds {key} {number} times"


def _unsound(found: Holdings) -> Iterable[str]:
    """Every segment has its part, and every part as many segments as it says."""
    counts = Counter(row[SEGMENTS.index("part_id")] for row in found.tables["segments"])
    said = {row[PARTS.index("part_id")]: row[PARTS.index("segments")] for row in found.tables["parts"]}
    for part in counts.keys() - said.keys():
        yield f"{counts[part]} segments belong to part {part}, which is not in the ledger"
    for part, number in said.items():
        if counts[part] != number:
            yield f"part {part} says that it has {number} segments, and has {counts[part]}"


def _damaged(dest: str) -> Iterable[str]:
    """Every path that a commit added exists, with the size that the commit says."""
    for name in COLUMNS:
        stored = _stored(dest, name)
        for path, size in _added(dest, name).items():
            if stored.get(path) != size:
                yield f"{name}/{path} should have {size} bytes, and has {stored.get(path)}"


def _keys(found: Holdings, name: str) -> Counter[Row]:
    places = [COLUMNS[name].index(column) for column in KEYS[name]]
    return Counter(tuple(row[place] for place in places) for row in found.tables[name])


def _canonical(name: str, table: pa.Table) -> list[Row]:
    rows = table.select(COLUMNS[name]).to_pylist()
    tuples = (tuple(tuple(v) if isinstance(v, list) else v for v in row.values()) for row in rows)
    return sorted(tuples, key=repr)


def _table(dest: str, name: str) -> DeltaTable:
    # A server that was killed a moment ago says "InternalError" of what it has not found again yet.
    patient = {"max_retries": "1000", "retry_timeout": "60s"}
    options = {"aws_allow_http": "true", **patient} if dest.startswith("s3://") else {}
    return DeltaTable(f"{dest}/{name}", storage_options=options)


def _added(dest: str, name: str) -> dict[str, int]:
    actions = pa.table(_table(dest, name).get_add_actions(flatten=True)).to_pylist()
    return {action["path"]: action["size_bytes"] for action in actions}


def objects(dest: str, folder: str) -> dict[str, int]:
    """Every object below a folder of `dest`: path relative to that folder → bytes."""
    protocol, place = dest.split("://") if "://" in dest else ("file", os.path.abspath(dest))
    options = {"use_listings_cache": False} if protocol == "s3" else {}
    found = fsspec.filesystem(protocol, skip_instance_cache=True, **options).find(f"{place}/{folder}", detail=True)
    return {path.removeprefix(f"{place}/{folder}/"): info["size"] for path, info in found.items()}


def _stored(dest: str, name: str) -> dict[str, int]:
    """The objects that stand in the data folder of a table: path relative to the table → bytes."""
    return {f"data/{path}": size for path, size in objects(dest, f"{name}/data").items()}
