"""One destination: three Delta tables, the marker that says it is ours, and the configuration of every run.

    DEST/earwitness.json                                     the marker: format version
    DEST/segments/  _delta_log/  data/GENERATION/SHARD.parquet
    DEST/parts/     _delta_log/  data/GENERATION/SHARD.parquet    the ledger
    DEST/media/     _delta_log/  data/BATCH.parquet
    DEST/runs/UTC-ID.json                                    one Config per run

Workers prepare shards (`sink.py`); one committer publishes them here, segments first, then parts. The parts commit is
the moment of visibility: a segment whose part is not in the ledger is never shown. Every object has a name that follows
from its content, and a name is added once, so publishing again after any crash changes nothing. deltalake does not
enforce application transactions (measured with 1.6.6); the names do that work here.

It refuses to know how rows come about, and who may write: one writer per destination is the caller's promise.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from model.errors import DestinationError
from pipeline.config import Config
from pipeline.objects import ObjectExists, ObjectStore
from pipeline.records import MEDIA, PARTS, SEGMENTS
from pipeline.sink import SHARD_ID_LENGTH, describe, parquet_bytes

FORMAT = 2  # of the layout above and the columns of the tables; any other is refused
MARKER = "earwitness.json"
TABLES = {"segments": SEGMENTS, "parts": PARTS, "media": MEDIA}
COMMIT_ATTEMPTS = 5
KEY = ("part_id", "attempts")  # of a row in the ledger
DONE = ("media_id", "index", "is_last", "status", "attempts", "part_seconds")


class Store:
    """The tables of one destination, opened by `Store.open`.

    Any number of processes may read while one commits. Raises: `DestinationError` when the storage refuses.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    @classmethod
    def open(cls, dest: str, create: bool = False) -> Store:
        """The store at `dest`; with `create`, a new or empty destination becomes one.

        Raises: `DestinationError` when there is none, or when the place holds something else or a newer format.
        """
        objects = ObjectStore(dest)
        known = _check_marker(objects)
        if not known and not create:
            raise DestinationError(
                f"{dest} holds no transcripts: run `earwitness transcribe SOURCE --to {dest}` first."
            )
        if create:
            objects.probe()
            if not known:
                _claim(objects)
            for name, schema in TABLES.items():
                _create_table(objects, name, schema)
        return cls(objects)

    @classmethod
    def find(cls, dest: str) -> Store | None:
        """The store at `dest`, or None when the place is new or empty. Writes nothing. Raises: as `open`."""
        objects = ObjectStore(dest)
        return cls(objects) if _check_marker(objects) else None

    def table(self, name: str) -> DeltaTable:
        """The newest snapshot of one of the three tables."""
        try:
            return DeltaTable(self.objects.table_uri(name), storage_options=self.objects.storage_options)
        except TableNotFoundError as error:
            raise DestinationError(
                f"{self.objects.url} lacks its table {name}: run `earwitness transcribe` on it again."
            ) from error
        except (OSError, DeltaError) as error:
            raise _unusable(self.objects, f"table {name}", error) from error

    def publish(self, shards: list[dict[str, Any]]) -> None:
        """Make prepared shards visible: `shards` are `records.SHARD` rows. Repeating it changes nothing."""
        self._require_seen(shards)
        spoken = [shard for shard in shards if shard["segments_path"] is not None]
        self._add("segments", [_action(shard, "segments") for shard in spoken])
        self._add("parts", [_action(shard, "parts") for shard in shards])

    def _require_seen(self, shards: list[dict[str, Any]]) -> None:
        """A folder of the same name on another machine takes what workers write there, and is not this one."""
        for shard in shards if self.objects.is_local else ():
            if not self.objects.exists(f"parts/{shard['parts_path']}"):
                raise DestinationError(
                    f"A worker stored results in its own {self.objects.url}, which this machine does not see: give a "
                    f"folder that all machines share, or s3://BUCKET/PREFIX."
                )

    def recover(self) -> int:
        """Finish what a killed run had prepared, clear away what it had not; returns how many shards rolled forward.

        A shard that overlaps the ledger is dropped whole: its parts were stored by a twin, or are done again.
        """
        published = set(snapshot(self.table("parts")))
        prepared = sorted(_objects(self.objects, "parts") - published)
        forward = self._without_overlap(prepared)
        self.publish([describe(self.objects, path) for path in forward])
        self._drop([path for path in prepared if path not in forward])
        committed = snapshot(self.table("segments"))
        for path in _objects(self.objects, "segments") - published.union(forward, committed):
            self.objects.delete(f"segments/{path}")
        return len(forward)

    def done_parts(self, generation: str) -> pa.Table:
        """The ledger of one generation for the planner, one row per part, its latest attempt: the columns `DONE`."""
        rows = self._read("parts", DONE, f"generation = '{generation}'").sort_by("attempts")
        keys = ["media_id", "index", "part_seconds"]
        rest = [name for name in DONE if name not in keys]
        latest = rows.group_by(keys, use_threads=False).aggregate([(name, "last") for name in rest])
        return latest.rename_columns([*keys, *rest]).select([*DONE])

    def add_media(self, media: pa.Table) -> int:
        """Add the `records.MEDIA` rows whose media_id is not known yet; returns how many those were."""
        known = self._read("media", ["media_id"])["media_id"].combine_chunks()
        new = media.select(MEDIA.names).cast(MEDIA).filter(pc.invert(pc.is_in(media["media_id"], known)))
        new = new.group_by("media_id", use_threads=False).aggregate([(n, "first") for n in MEDIA.names[1:]])
        if new.num_rows == 0:
            return 0
        new = new.rename_columns(MEDIA.names).cast(MEDIA).sort_by("media_id")
        name = hashlib.sha256("\n".join(new["media_id"].to_pylist()).encode()).hexdigest()[:SHARD_ID_LENGTH]
        path, data = f"data/{name}.parquet", parquet_bytes(new)
        try:
            self.objects.create(f"media/{path}", data)
        except ObjectExists:  # a run that died before its commit saw the same media at another time
            data = self.objects.read(f"media/{path}")
        self._add("media", [_add_action(path, len(data), new.num_rows, None)])
        return int(new.num_rows)

    def add_run(self, config: Config, generation: str) -> str:
        """Keep the Config of a run as `runs/UTC-ID.json`; returns that name without folder and suffix."""
        started = datetime.now(UTC)
        name = f"{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        run = {"run": name, "started_at": started.isoformat(), "generation": generation, "config": asdict(config)}
        text = json.dumps(_json_safe(run), indent=2, allow_nan=False)
        self.objects.create(f"runs/{name}.json", text.encode())
        return name

    def latest_run(self) -> dict[str, Any] | None:
        """What `add_run` kept last; None when nothing ever ran."""
        paths = self.objects.list("runs")
        return json.loads(self.objects.read(max(paths))) if paths else None

    def runs(self) -> list[dict[str, Any]]:
        """What `add_run` kept, oldest first."""
        return [json.loads(self.objects.read(path)) for path in sorted(self.objects.list("runs"))]

    def _read(self, name: str, columns: Sequence[str], condition: str = "true") -> pa.Table:
        """Some columns of one table. deltalake's own engine: 1.2 s for 2,000 objects, its pyarrow dataset took 5 s."""
        wanted = ", ".join(f'"{column}"' for column in columns)
        engine = QueryBuilder().register(name, self.table(name))
        try:
            rows = pa.table(engine.execute(f"SELECT {wanted} FROM {name} WHERE {condition}").read_all())
        except Exception as error:  # deltalake's engine has no class of its own for an object that cannot be read
            raise _unusable(self.objects, f"table {name}", error) from error
        return rows.cast(pa.schema([TABLES[name].field(column) for column in columns]))

    def _add(self, name: str, actions: list[AddAction]) -> None:
        """Commit the actions whose path the table does not have; after a lost answer, look before trying again."""
        for attempt in range(COMMIT_ATTEMPTS):
            table = self.table(name)
            known = snapshot(table)
            new = [action for action in actions if action.path not in known]
            if not new:
                return
            try:
                table.create_write_transaction(new, mode="append", schema=table.schema())
                return
            except (OSError, DeltaError) as error:
                if attempt + 1 == COMMIT_ATTEMPTS:
                    raise _unusable(self.objects, f"table {name}", error) from error

    def _without_overlap(self, prepared: list[str]) -> list[str]:
        """The prepared paths whose parts, at their attempt, are neither in the ledger nor in a path before."""
        if not prepared:
            return []
        seen = _keys(self._read("parts", KEY))
        kept = []
        for path in prepared:
            keys = _keys(pq.read_table(pa.BufferReader(self.objects.read(f"parts/{path}")), columns=[*KEY]))
            if not keys & seen:
                kept.append(path)
                seen |= keys
        return kept

    def _drop(self, paths: list[str]) -> None:
        """Give up prepared shards; segments a crash left committed are taken back, their objects stay for readers."""
        table = self.table("segments")
        committed = snapshot(table)
        now = _milliseconds()
        removals = [RemoveAction(path, True, now, committed[path]) for path in paths if path in committed]
        if removals:
            table.create_write_transaction(removals, mode="append", schema=table.schema())
        for path in paths:
            if path not in committed:
                self.objects.delete(f"segments/{path}")
            self.objects.delete(f"parts/{path}")  # last: while it stands, recovery comes back to this shard


def snapshot(table: DeltaTable) -> dict[str, int]:
    """The objects of one snapshot: path relative to the table → bytes."""
    actions = pa.table(table.get_add_actions(flatten=True))
    return dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))


def _check_marker(objects: ObjectStore) -> bool:
    """Whether the destination is ours; False when it is new or empty."""
    try:
        marker = objects.read(MARKER)
    except FileNotFoundError:
        if objects.is_empty():
            return False
        raise DestinationError(
            f"{objects.url} holds other files and no {MARKER}: choose a new or an empty folder as the destination."
        ) from None
    try:
        found = json.loads(marker)["format"]
    except (ValueError, TypeError, KeyError):
        raise DestinationError(
            f"{objects.url}/{MARKER} is damaged: restore it, or choose another destination."
        ) from None
    if found != FORMAT:
        raise DestinationError(
            f"{objects.url} has format {found}, this earwitness reads format {FORMAT}: use the version that wrote it."
        )
    return True


def _claim(objects: ObjectStore) -> None:
    # The same bytes from everyone, so that two first runs may both claim it; and before any table, so that a crash
    # in between leaves a place that is recognised as ours.
    objects.create(MARKER, json.dumps({"format": FORMAT, "written_by": "earwitness"}).encode())


def _create_table(objects: ObjectStore, name: str, schema: pa.Schema) -> None:
    uri, options = objects.table_uri(name), objects.storage_options
    try:
        if not DeltaTable.is_deltatable(uri, options):
            # Without retries: of two creators the second would commit its own metadata as version 1.
            once = CommitProperties(max_commit_retries=0)
            DeltaTable.create(uri, schema, name=name, storage_options=options, commit_properties=once)
    except (OSError, DeltaError) as error:
        if not DeltaTable.is_deltatable(uri, options):  # else another process was faster
            raise _unusable(objects, f"table {name}", error) from error


def _action(shard: dict[str, Any], name: str) -> AddAction:
    path: str = shard[f"{name}_path"]
    return _add_action(path, shard[f"{name}_bytes"], shard[f"{name}_rows"], path.split("/")[1])


def _add_action(path: str, size: int, rows: int, generation: str | None) -> AddAction:
    stats: dict[str, Any] = {"numRecords": rows}
    if generation is not None:  # so that every Delta reader skips the files of other generations
        same = {"generation": generation}
        stats |= {"minValues": same, "maxValues": same, "nullCount": {"generation": 0}}
    return AddAction(path, size, {}, _milliseconds(), True, json.dumps(stats))


def _objects(objects: ObjectStore, name: str) -> set[str]:
    """The objects that stand in the data folder of a table, published or not, by path relative to the table."""
    return {path.removeprefix(f"{name}/") for path in objects.list(f"{name}/data")}


def _keys(rows: pa.Table) -> set[tuple[str, int]]:
    return set(zip(*(rows[name].to_pylist() for name in KEY), strict=True))


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _unusable(objects: ObjectStore, what: str, error: Exception) -> DestinationError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DestinationError(f"The {what} of {objects.url} cannot be used: {reason}.")


def _json_safe(value: Any) -> Any:
    """JSON has no infinity; TOML writes it "inf", and so does this."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
