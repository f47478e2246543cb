"""The one writer of a destination: publishes what workers prepared, and keeps the media and the runs.

Workers prepare shards (`sink.py`); the writer publishes them, segments first, then parts. Every object has a name that
follows from its content, and a name is added once, so publishing again after any crash changes nothing. deltalake does
not enforce application transactions (measured with 1.6.6); the names do that work here.

A lease says who the writer is. A process that sleeps through the end of its lease and wakes up in front of a commit is
stopped by a fence: a new writer commits its epoch to every table before anything else, each commit is made for exactly
the version that was looked at, and a version that shows a higher epoch is never committed to.

Nothing is ever deleted here: what is not published is not seen, and `upkeep.py` clears it away later. It refuses to
know how rows come about, and what a killed run left (`recovery.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from model.errors import DestinationError, LeaseError
from pipeline.config import Config
from pipeline.lease import LEASE_SECONDS, Holder, Lease
from pipeline.objects import PATIENCE_SECONDS, ObjectStore
from pipeline.records import MEDIA, RUNS
from pipeline.sink import SHARD_NAME_LENGTH, parquet_bytes
from pipeline.store import FORMAT, MARKER, TABLES, Store, is_ours, is_table, snapshot, unusable

Actions = list[AddAction | RemoveAction]
EPOCH = "earwitness"  # name of Delta's transaction identifier whose version is the epoch of the last writer
MEDIA_ROWS = 1 << 20  # in one object of the table of media
COMMIT_ATTEMPTS = 6
BACKOFF_SECONDS = 0.1  # doubled after each attempt, with jitter
# Of two who commit to one version exactly one wins, and the other looks again; else deltalake would move its commit
# behind the other's, unseen, and a fence would be no fence.
NEVER_REBASED = 0


class Writer(Store):
    """A store that this process alone may change, made by `Writer.open`; a context manager that gives the lease back.

    Raises: `LeaseError` once another has taken over; `DestinationError` when the storage refuses.
    """

    def __init__(self, objects: ObjectStore, lease: Lease) -> None:
        super().__init__(objects)
        self.lease = lease
        self._tables: dict[str, DeltaTable] = {}

    @classmethod
    def open(
        cls,
        dest: str,
        lease_seconds: float = LEASE_SECONDS,
        on_wait: Callable[[Holder, float], None] = lambda holder, seconds: None,
    ) -> Writer:
        """The writer of the store at `dest`; a new or empty destination becomes one.

        lease_seconds, on_wait: as `Lease.take` has them.

        Raises: `LeaseError` while another process writes; `DestinationError` when the place holds something else or
        another format, or its storage does not keep the promises that all rests on.
        """
        objects = ObjectStore(dest)
        known = is_ours(objects)
        objects.probe()
        if not known:
            # The same bytes from everyone, so that two first runs may both claim it; and before any table, so that a
            # crash in between leaves a place that is recognised as ours.
            objects.create(MARKER, json.dumps({"format": FORMAT, "written_by": "earwitness"}).encode())
        lease = Lease.take(objects, lease_seconds, on_wait)
        try:
            writer = cls(ObjectStore(dest, PATIENCE_SECONDS), lease)
            for name, schema in TABLES.items():
                _create_table(objects, name, schema)
                writer._fence(name)
        except BaseException:
            lease.release()
            raise
        return writer

    def close(self) -> None:
        """Give the lease back; nothing can be written any more."""
        self.lease.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def publish(self, shards: list[dict[str, Any]]) -> None:
        """Make prepared shards visible: `shards` are `records.SHARD` rows. Repeating it changes nothing."""
        self._require_seen(shards)
        spoken = [shard for shard in shards if shard["segments_path"] is not None]
        self.add("segments", [shard_action(shard, "segments") for shard in spoken])
        self.add("parts", [shard_action(shard, "parts") for shard in shards])

    def add_media(self, media: pa.Table) -> None:
        """Add `records.MEDIA` rows that the table lacks, as the planner finds them; repeating it changes nothing.

        Of what is added twice, as a version of an object that comes back, the later `seen_at` counts.
        """
        rows = media.select(MEDIA.names).cast(MEDIA).sort_by("media_id")
        actions = []
        for first in range(0, rows.num_rows, MEDIA_ROWS):
            data = parquet_bytes(rows.slice(first, MEDIA_ROWS))
            path = f"data/{hashlib.sha256(data).hexdigest()[:SHARD_NAME_LENGTH]}.parquet"
            self.objects.create(f"media/{path}", data)
            actions.append(add_action(path, len(data), min(MEDIA_ROWS, rows.num_rows - first), None))
        if actions:
            self.add("media", actions)

    def add_run(self, config: Config, generation: str) -> str:
        """Keep the Config of a run as `runs/RUN_ID.json`; returns that id."""
        started = datetime.now(UTC)
        name = run_id(started)
        run = {"run": name, "started_at": started.isoformat(), "generation": generation, "config": asdict(config)}
        text = json.dumps(_json_safe(run), indent=2, allow_nan=False)
        self.objects.create(f"runs/{name}.json", text.encode())
        return name

    def add_history(self, row: dict[str, Any]) -> None:
        """Add one `records.RUNS` row to the table of runs."""
        data = parquet_bytes(pa.Table.from_pylist([row], schema=RUNS))
        path = f"data/{row['run_id']}.parquet"
        self.objects.create(f"history/{path}", data)
        self.add("history", [add_action(path, len(data), 1, row["generation"])])

    def add(self, name: str, actions: list[AddAction]) -> None:
        """Commit the actions whose path the table does not have."""
        self.commit(name, lambda known: [action for action in actions if action.path not in known])

    def remove(self, name: str, paths: Iterable[str]) -> None:
        """Take objects out of a table; they stay in the storage, for who reads an older version."""
        gone = sorted(paths)
        self.commit(name, lambda known: remove_actions([path for path in gone if path in known], known))

    def commit(self, name: str, choose: Callable[[dict[str, int]], Actions]) -> None:
        """One commit of what `choose` makes of the snapshot (path → bytes); none if that is nothing.

        After a lost answer, or a commit by a program that does not know our lease, it looks before it tries again.
        """
        for attempt in range(COMMIT_ATTEMPTS):
            self.lease.check()
            table = self._current(name)
            actions = choose(snapshot(table))
            if not actions or self._committed(table, name, actions, last=attempt + 1 == COMMIT_ATTEMPTS):
                return
            time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))

    def shorten_log(self, name: str) -> None:
        """Let readers start from a checkpoint, and drop the log that is older than Delta's own retention."""
        table = self._current(name)
        try:
            table.create_checkpoint()
            table.cleanup_metadata()
        except (OSError, DeltaError) as error:
            raise unusable(self.objects, f"table {name}", error) from error

    def _committed(self, table: DeltaTable, name: str, actions: Actions, last: bool) -> bool:
        epoch = Transaction(EPOCH, self.lease.epoch)
        exactly = CommitProperties(max_commit_retries=NEVER_REBASED, app_transactions=[epoch])
        try:
            table.create_write_transaction(actions, mode="append", schema=table.schema(), commit_properties=exactly)
        except (OSError, DeltaError) as error:
            if last:
                raise unusable(self.objects, f"table {name}", error) from error
            return False
        return True

    def _fence(self, name: str) -> None:
        """Commit this writer's epoch, so that no version without it can be committed to by those before."""
        for attempt in range(COMMIT_ATTEMPTS):
            table = self._current(name)
            if table.transaction_version(EPOCH) == self.lease.epoch:
                return
            if self._committed(table, name, [], last=attempt + 1 == COMMIT_ATTEMPTS):
                return

    def _current(self, name: str) -> DeltaTable:
        """The newest version of a table. Raises: `LeaseError` when a later writer has put up its fence."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = self.table(name)
        else:
            try:
                table.update_incremental()
            except (OSError, DeltaError) as error:
                raise unusable(self.objects, f"table {name}", error) from error
        if (table.transaction_version(EPOCH) or 0) > self.lease.epoch:
            raise LeaseError(
                f"{self.objects.url} has been taken over by a later run: this one published nothing since, and ends."
            )
        return table

    def _require_seen(self, shards: list[dict[str, Any]]) -> None:
        """A folder of the same name on another machine takes what workers write there, and is not this one."""
        for shard in shards if self.objects.is_local else ():
            if not self.objects.exists(f"parts/{shard['parts_path']}"):
                raise DestinationError(
                    f"A worker stored results in its own {self.objects.url}, which this machine does not see: give a "
                    f"folder that all machines share, or s3://BUCKET/PREFIX."
                )


def run_id(started: datetime) -> str:
    """A name that sorts by the start of a run, and that no other run has."""
    return f"{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def add_action(path: str, size: int, rows: int, generation: str | None) -> AddAction:
    """What adds one object of so many bytes and rows to a table."""
    stats: dict[str, Any] = {"numRecords": rows}
    if generation is not None:  # so that every Delta reader skips the files of other generations
        same = {"generation": generation}
        stats |= {"minValues": same, "maxValues": same, "nullCount": {"generation": 0}}
    return AddAction(path, size, {}, _milliseconds(), True, json.dumps(stats))


def remove_actions(paths: Iterable[str], sizes: dict[str, int]) -> list[RemoveAction]:
    """What takes objects out of a table."""
    now = _milliseconds()
    return [RemoveAction(path, True, now, sizes[path]) for path in paths]


def _create_table(objects: ObjectStore, name: str, schema: pa.Schema) -> None:
    if is_table(objects, name):
        return
    uri, options = objects.table_uri(name), objects.storage_options
    once = CommitProperties(max_commit_retries=NEVER_REBASED)  # else a second creator commits its own as version 1
    try:
        DeltaTable.create(uri, schema, name=name, storage_options=options, commit_properties=once)
    except (OSError, DeltaError) as error:
        if not is_table(objects, name):  # else the answer got lost, or another process was faster
            raise unusable(objects, f"table {name}", error) from error


def shard_action(shard: dict[str, Any], name: str) -> AddAction:
    path: str = shard[f"{name}_path"]
    return add_action(path, shard[f"{name}_bytes"], shard[f"{name}_rows"], path.split("/")[1])


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _json_safe(value: Any) -> Any:
    """JSON has no infinity; TOML writes it "inf", and so does this."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
