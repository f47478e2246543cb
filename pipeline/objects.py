"""Objects under one destination, each created once and never changed: a folder, or a prefix of an S3 bucket.

It refuses to know what the objects mean: tables are `store.py`, their rows `sink.py`; and how a storage keeps its
promises: `storage.py`. Credentials are never held here nor travel with a pickled `ObjectStore`: each process reads its
own standard AWS_* environment.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from model.errors import DestinationError
from pipeline.storage import HIDDEN, SCRATCH, Folder, ObjectExists, scratch, storage_at

T = TypeVar("T")
# A server that restarts, or a network that is gone for a moment, is no reason to end a job of a week. Longer than this
# the lease of the one who writes has run out as well (`lease.py`).
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = (0.2, 1.0)  # between two attempts


class ObjectStore:
    """Create-once objects under `url`: a local path, file:// or s3://bucket/prefix.

    Paths are relative to the url and use "/". patience: seconds for which a bucket that does not answer is asked again:
    none to say at once what is wrong with a url, `PATIENCE_SECONDS` in the middle of a run. Raises: `DestinationError`
    for a url of another kind, and from every method when the storage refuses or cannot be reached.
    """

    def __init__(self, url: str, patience: float = 0.0) -> None:
        self._storage = storage_at(str(url))
        self.patience = patience
        self.url = str(url).rstrip("/")
        self._fs, self._root = self._storage.fs, self._storage.root

    @property
    def is_local(self) -> bool:
        return isinstance(self._storage, Folder)

    @property
    def address(self) -> str:
        """The same place for a process in any working directory."""
        return self._storage.address

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str, float]]:
        return ObjectStore, (self.address, self.patience)  # the other process connects by its own environment

    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, once: repeating the same bytes is success.

        Raises: `ObjectExists` when the key holds other bytes.
        """
        self._patiently(f"write {path}", lambda: self._storage.create(f"{self._root}/{path}", data))

    def replace(self, path: str, data: bytes) -> None:
        """Store `data` under `path` whatever was there: for heartbeats, which are no results."""
        self._patiently(f"write {path}", lambda: self._storage.replace(f"{self._root}/{path}", data))

    def modified_at(self, path: str) -> float:
        """When the object was written, in seconds of the storage's own clock. Raises: `FileNotFoundError`."""
        written: datetime = self._patiently(f"look for {path}", lambda: self._fs.modified(f"{self._root}/{path}"))
        return written.timestamp()

    def clock(self) -> float:
        """What time it is for the storage: machines may disagree, objects of one storage do not. Seconds since 1970."""
        path = scratch()
        self.replace(path, b"now")
        try:
            return self.modified_at(path)
        finally:
            self.delete(path)

    def read(self, path: str) -> bytes:
        """The bytes under `path`. Raises: `FileNotFoundError`."""
        data: bytes = self._patiently(f"read {path}", lambda: self._fs.cat_file(f"{self._root}/{path}"))
        return data

    def exists(self, path: str) -> bool:
        return bool(self._patiently(f"look for {path}", lambda: self._fs.exists(f"{self._root}/{path}")))

    def list(self, prefix: str = "") -> dict[str, int]:
        """Every object below the folder `prefix`: path → bytes."""
        found = self._find(prefix).items()
        return {path: int(info["size"]) for path, info in found if not _name(path).startswith(HIDDEN)}

    def written(self, prefix: str = "") -> dict[str, float]:
        """Every object below the folder `prefix`: path → when it was written, as `modified_at` has it."""
        found = self._find(prefix).items()
        return {path: _seconds(info) for path, info in found if not _name(path).startswith(HIDDEN)}

    def sweep(self, before: float) -> None:
        """Delete what killed writers left unfinished before a time of the storage's clock."""
        for path, info in self._find("").items():
            if _name(path).startswith(SCRATCH) and _seconds(info) < before:
                self.delete(path)

    def is_empty(self) -> bool:
        """Whether nothing but hidden names stands directly under the destination."""
        try:
            found = self._patiently("list it", lambda: self._fs.ls(self._root, detail=True))
        except FileNotFoundError:
            return True
        names = [info["name"].removeprefix(self._root).strip("/") for info in found]
        return all(name == "" or name.startswith(HIDDEN) for name in names)

    def delete(self, path: str) -> None:
        """Remove one object; a missing one is no error."""
        with suppress(FileNotFoundError):
            self._patiently(f"delete {path}", lambda: self._fs.rm_file(f"{self._root}/{path}"))

    def probe(self) -> None:
        """Find out, once at start-up, whether this storage keeps the promise that everything else rests on.

        Raises: `DestinationError` when it lets one key be created twice, refuses to write, or does not exist.
        """
        self._require_bucket()
        path = scratch()
        self.create(path, b"first")
        try:
            self.create(path, b"second")
        except ObjectExists:
            return
        finally:
            self.delete(path)
        raise DestinationError(
            f"The storage of {self.url} lets one key be created twice, so two writers could overwrite each other: "
            "use a folder, or an S3 server that honours If-None-Match."
        )

    def table_uri(self, name: str) -> str:
        """Where the Delta table `name` stands, in the form that deltalake takes."""
        return self._storage.table_uri(name)

    @property
    def storage_options(self) -> dict[str, str]:
        """What deltalake needs to reach the tables, read from the environment of this process."""
        return self._storage.delta_options(self.patience)

    def open(self, path: str) -> Any:
        """A seekable binary file over one object, for readers that want parts of a large one."""
        return self._patiently(f"read {path}", lambda: self._fs.open(f"{self._root}/{path}", "rb"))

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Several whole objects at once: path → bytes; on S3 the requests run side by side."""
        keys = [f"{self._root}/{path}" for path in paths]
        # Not `cat`, to which a "[" or a "*" in the name of the destination would be a pattern.
        found = self._patiently(f"read {paths[0]}", lambda: self._fs.cat_ranges(keys, None, None, on_error="raise"))
        return dict(zip(paths, found, strict=True))

    def _find(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What the storage knows of each object below a folder, by path."""
        folder = f"{self._root}/{prefix}".rstrip("/")
        try:
            found = self._patiently(f"list {prefix or 'it'}", lambda: self._fs.find(folder, detail=True))
        except FileNotFoundError:
            return {}
        return {name[len(self._root) + 1 :]: info for name, info in found.items() if not _is_folder(info)}

    def _require_bucket(self) -> None:
        if not self._patiently("look for its bucket", self._storage.exists):
            bucket = self._root.partition("/")[0]
            raise DestinationError(f"The bucket {bucket} does not exist: create it, or correct {self.url}.")

    def _patiently(self, action: str, operation: Callable[[], T]) -> T:
        """What `operation` comes to, tried again for `patience` seconds; each of ours may be repeated.

        Raises: `FileNotFoundError` as it is, and whatever else a storage can raise as one sentence.
        """
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise DestinationError(
                    f"The destination {self.url} refuses to {action} ({_reason(error)}): {self._storage.advice}."
                ) from error
            except self._storage.failures as error:
                if self.is_local or time.monotonic() > deadline:  # a disk that is full stays full
                    raise DestinationError(
                        f"The destination {self.url} cannot be used to {action}: {_reason(error)}{self._storage.hint}."
                    ) from error
            time.sleep(random.uniform(*PAUSE_SECONDS))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _seconds(info: dict[str, Any]) -> float:
    written: datetime | float = info["LastModified"] if "LastModified" in info else info["mtime"]
    return written.timestamp() if isinstance(written, datetime) else written


def _is_folder(info: dict[str, Any]) -> bool:
    # Some S3 servers keep an empty object with a "/" at the end where a folder was.
    return info["type"] != "file" or str(info.get("Key", "")).endswith("/")
