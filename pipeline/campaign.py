"""Many jobs and one publisher: a planned run cut into slices, of which each is prepared by a job of its own.

    manifest ──split──▶ slices ──one job each──▶ prepared shards ──announced──▶ published here

Only the publisher has the lease, and only it knows the tables. A slice that ends before its work is done is started
again with what is left of it, which is told by what it announced; what it prepared and did not announce stays
unpublished and is done again, at most one group of shards. It refuses to know how a job is started (`SliceJobs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import EarwitnessError
from pipeline.announcements import FOLDER, Announcements, forget
from pipeline.objects import ObjectStore
from pipeline.records import MANIFEST
from pipeline.run import Run
from pipeline.sink import parquet_bytes
from pipeline.slices import split

ATTEMPTS = 3  # at one slice: a driver may run short of memory, or lose its machine, more than once in a long night
MANIFEST_NAME = "manifest.parquet"
SHORTEST_POLL_SECONDS = 0.2
READ_AT_ONCE = 64  # objects
Shards = list[dict[str, Any]]

# A file is done when its last part is, and all before it, in an earlier run or in this one. A part that failed in this
# run is done as well: it is for the next run to try again.
_LEFT = """
SELECT manifest.* REPLACE (list_sort(list_distinct(list_concat(coalesce(done_parts, []), coalesce(done, []))))
    AS done_parts)
FROM manifest LEFT JOIN (
    SELECT media_id, list("index") AS done, max("index") FILTER (is_last) AS last FROM published GROUP BY media_id
) AS stored USING (media_id)
WHERE coalesce(len(list_filter(list_distinct(list_concat(coalesce(done_parts, []), coalesce(done, []))),
    lambda i: i <= coalesce(last, parts_total - 1))) <= coalesce(last, parts_total - 1), true)
ORDER BY position
"""


@dataclass(frozen=True)
class Ended:
    """How the job of a slice ended: well, by an error of the user's that others would meet as well, or otherwise."""

    well: bool
    error: EarwitnessError | None = None


class SliceJobs(Protocol):
    """How jobs are started, watched and stopped. A job prepares the slice in `folder` and announces there."""

    def start(self, folder: str) -> None: ...
    def ended(self, folder: str) -> Ended | None: ...
    def stop(self, folder: str) -> None: ...


@dataclass
class _Slice:
    """One slice while it is worked on."""

    number: int
    manifest: pa.Table
    line: Announcements
    attempt: int = 1
    published: list[str] = field(default_factory=list)  # paths of parts objects, of this attempt


class Campaign:
    """A planned run spread over the jobs of its slices; a context manager that leaves no job behind.

    waves: what `Run.execute` publishes. Raises: the user's error that ended a slice; `EarwitnessError` when a slice
    has ended without success ATTEMPTS times; `DestinationError` when the storage refuses.
    """

    def __init__(self, run: Run, jobs: SliceJobs, count: int) -> None:
        assert run.writer is not None, "slices need a publisher"
        self._objects: ObjectStore = run.writer.objects
        self._jobs = jobs
        self._root = f"{FOLDER}/{run.writer.lease.epoch:08d}"
        self._poll_seconds = max(SHORTEST_POLL_SECONDS, run.job.config.run.publish_seconds)
        self._manifests = split(run.plan.manifest, count)
        self._open: list[_Slice] = []

    def __enter__(self) -> Campaign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._open:
            self._jobs.stop(part.line.folder)
        if error is None:
            forget(self._objects)

    @property
    def slices_left(self) -> int:
        return len(self._open)

    def waves(self) -> Iterator[Shards]:
        """Groups of prepared shards of all slices, until every slice is done."""
        for number, manifest in enumerate(self._manifests):
            self._start(_Slice(number, manifest, self._line(number, 1)))
        while self._open:
            turn = time.monotonic()
            # Looked at before it is listened to: what a job said, it said before its end.
            ends = [(part, self._jobs.ended(part.line.folder)) for part in self._open]
            if shards := self._announced():
                yield shards
            for part, end in ends:
                if end is not None:
                    self._close(part, end)
            if self._open:
                time.sleep(max(0.0, turn + self._poll_seconds - time.monotonic()))

    def _announced(self) -> Shards:
        announced: Shards = []
        for part in self._open:
            said = part.line.take()
            part.published += [shard["parts_path"] for shard in said]
            announced += said
        return announced

    def _close(self, part: _Slice, end: Ended) -> None:
        self._open.remove(part)
        if end.error is not None:
            raise end.error
        if end.well:
            return
        rows = remaining(part.manifest, _published_parts(self._objects, part.published))
        if not rows.num_rows:
            return
        if part.attempt == ATTEMPTS:
            raise EarwitnessError(
                f"Slice {part.number} of the archive ended {ATTEMPTS} times before it was done: see its log by "
                f"`earwitness jobs logs`, and submit the same again to go on."
            )
        attempt = part.attempt + 1
        self._start(_Slice(part.number, rows, self._line(part.number, attempt), attempt))

    def _start(self, part: _Slice) -> None:
        self._objects.create(f"{part.line.folder}/{MANIFEST_NAME}", parquet_bytes(part.manifest))
        self._jobs.start(part.line.folder)
        self._open.append(part)

    def _line(self, number: int, attempt: int) -> Announcements:
        return Announcements(self._objects, f"{self._root}/{number:04d}-{attempt}")


def read_manifest(objects: ObjectStore, folder: str) -> pa.Table:
    """The `records.MANIFEST` rows of a slice, in the job that prepares it."""
    return pq.read_table(pa.BufferReader(objects.read(f"{folder}/{MANIFEST_NAME}"))).cast(MANIFEST)


def remaining(manifest: pa.Table, published: pa.Table) -> pa.Table:
    """What is left to read of a manifest once some of its parts are stored: rows of `records.MANIFEST`, in their order.

    published: the columns media_id, index and is_last of parts of this run.
    """
    with duckdb.connect() as connection:
        connection.register("manifest", manifest.append_column("position", pa.array(range(manifest.num_rows))))
        connection.register("published", published)
        return connection.sql(_LEFT).to_arrow_table().select(MANIFEST.names).cast(MANIFEST)


def _published_parts(objects: ObjectStore, paths: list[str]) -> pa.Table:
    """The identity of every part in the given objects of the ledger."""
    columns = ["media_id", "index", "is_last"]
    schema = pa.schema([("media_id", pa.string()), ("index", pa.int32()), ("is_last", pa.bool_())])
    tables = [schema.empty_table()]
    for group in range(math.ceil(len(paths) / READ_AT_ONCE)):
        wanted = [f"parts/{path}" for path in paths[group * READ_AT_ONCE : (group + 1) * READ_AT_ONCE]]
        found = objects.read_many(wanted).values()
        tables += [pq.read_table(pa.BufferReader(data), columns=columns).cast(schema) for data in found]
    return pa.concat_tables(tables)
