"""A read-only file system that holds exactly the objects of one Delta snapshot, for DuckDB to read through.

Paths are `earwitness://TABLE/…`. Small objects are fetched whole and many at a time, because an archive is thousands of
small files and each costs a round trip. Objects never change, so nothing is asked twice. It refuses to know SQL, and to
open anything for writing or outside the snapshot.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import fsspec

from model.errors import DestinationError
from pipeline.objects import ObjectStore
from pipeline.records import SCHEMA_VERSION

PROTOCOL = "earwitness"
SMALL_BYTES = 4 << 20  # larger objects are read in pieces, by seeking
AHEAD_FILES = 64  # fetched together, in the order in which a scan wants them
AHEAD_BYTES = 16 << 20
CACHE_BYTES = 128 << 20
UNCHANGED_SINCE = datetime(2000, 1, SCHEMA_VERSION, tzinfo=UTC)  # one time for all: objects are created once


class SnapshotFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The objects of `sizes` (path → bytes) read from `objects`, and `extra` ones that exist in memory only.

    Raises: `PermissionError` for any other path, and for any mode but "rb"; `DestinationError` for a lost object.
    """

    protocol = PROTOCOL
    cachable = False  # fsspec would hand out one instance for two snapshots

    def __init__(self, objects: ObjectStore, sizes: Mapping[str, int], extra: Mapping[str, bytes]) -> None:
        super().__init__()
        self._objects = objects
        self._extra = extra
        self._sizes = dict(sizes) | {path: len(data) for path, data in extra.items()}
        self._order = sorted(sizes)
        self._position = {path: i for i, path in enumerate(self._order)}
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()  # DuckDB reads with several threads

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{PROTOCOL}://")

    def glob(self, path: str, **_: Any) -> list[str]:
        pattern = self._strip_protocol(path)
        return sorted(name for name in self._sizes if fnmatchcase(name, pattern))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._known(path)
        return {"name": name, "size": self._sizes[name], "type": "file"}

    def modified(self, path: str) -> datetime:
        self._known(path)
        return UNCHANGED_SINCE

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        name = self._known(path)
        if mode != "rb":
            raise PermissionError(f"{path} can only be read")
        if name in self._extra:
            return io.BytesIO(self._extra[name])
        try:
            if self._sizes[name] > SMALL_BYTES:
                return self._objects.open(name)
            return io.BytesIO(self._small(name))
        except FileNotFoundError:
            raise DestinationError(
                f"An object of the tables is missing ({self._objects.table_uri(name)} or one beside it): restore it, "
                "or transcribe to a new destination."
            ) from None

    def _known(self, path: str) -> str:
        name = self._strip_protocol(path)
        if name not in self._sizes:
            raise PermissionError(f"{path} is not in the snapshot")
        return name

    def _small(self, name: str) -> bytes:
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
            fetched = self._objects.read_many(self._ahead(name))
            self._cache.update(fetched)
            self._cached_bytes += sum(map(len, fetched.values()))
            while self._cached_bytes > CACHE_BYTES:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= len(oldest)
            return fetched[name]

    def _ahead(self, name: str) -> list[str]:
        """`name` and the small objects after it that are not here yet."""
        start = self._position[name]
        table = name.partition("/")[0]
        wanted: list[str] = []
        total = 0
        for path in self._order[start : start + AHEAD_FILES]:
            total += self._sizes[path]
            if wanted and (total > AHEAD_BYTES or path.partition("/")[0] != table):
                break
            if self._sizes[path] <= SMALL_BYTES and path not in self._cache:
                wanted.append(path)
        return wanted
