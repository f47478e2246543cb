"""Objects under one destination, each created once and never changed: a folder, or a prefix of an S3 bucket.

It refuses to know what the objects mean: tables are `store.py`, their rows `sink.py`. Credentials are never held here
nor travel with a pickled `ObjectStore`: each process reads its own standard AWS_* environment.

A create is conditional, so of two writers of one key exactly one wins. An answer that gets lost leaves open who won;
reading back and comparing settles it. Streaming to the final key is no option: fsspec's `open(…, "wb")` publishes what
was written so far when the block is left by an exception.
"""

from __future__ import annotations

import importlib
import os
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from model.errors import DestinationError

CREATE_ATTEMPTS = 5  # S3 answers 409 while another conditional write is under way, 503 while it scales: both mean again
BACKOFF_SECONDS = 0.1  # doubled after each attempt, with jitter
# Three layers try again: botocore, s3fs around it (5 times), and `create`. That a server is gone was said after 24 s
# when all had their defaults, and after 2 s so.
RETRIES = {"mode": "standard", "total_max_attempts": 2}
DELTA_RETRIES = "4"
DEFAULT_REGION = "us-east-1"
HIDDEN = "."  # names that start with it are never listed: unfinished files, probes, what a desktop leaves behind
SCRATCH = f"{HIDDEN}earwitness-"  # our own of them, which `sweep` deletes


class ObjectExists(Exception):
    """The key already holds other bytes; whoever created it first stays."""


class ObjectStore:
    """Create-once objects under `url`: a local path, file:// or s3://bucket/prefix.

    Paths are relative to the url and use "/". Raises: `DestinationError` for a url of another kind, and from every
    method when the storage refuses or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        protocol, separator, place = str(url).partition("://")
        if not separator:
            protocol, place = "file", str(url)
        if protocol not in ("file", "s3") or not place.strip("/ "):
            raise DestinationError(
                f"The destination {str(url)!r} cannot hold tables: give a folder or s3://BUCKET/PREFIX."
            )
        self.url = str(url).rstrip("/")
        self.is_local = protocol == "file"
        if self.is_local:
            self._fs = fsspec.filesystem("file", skip_instance_cache=True)
            self._root = os.path.abspath(self.url.removeprefix("file://"))
            self._failures: tuple[type[Exception], ...] = (OSError,)
        else:
            self._fs, self._failures = _s3_filesystem(self.url)
            self._root = self.url.removeprefix("s3://")

    @property
    def address(self) -> str:
        """The same place for a process in any working directory."""
        return self._root if self.is_local else self.url

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self.address,)  # the other process builds its own connection from its own environment

    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, once: repeating the same bytes is success.

        Raises: `ObjectExists` when the key holds other bytes.
        """
        with self._explained(f"write {path}"):
            if self.is_local:
                self._create_local(Path(self._root, path), data)
            else:
                self._create_remote(f"{self._root}/{path}", data)

    def replace(self, path: str, data: bytes) -> None:
        """Store `data` under `path` whatever was there: for heartbeats, which are no results."""
        with self._explained(f"write {path}"):
            if self.is_local:
                self._replace_local(Path(self._root, path), data)
            else:
                self._fs.pipe_file(f"{self._root}/{path}", data)

    def modified_at(self, path: str) -> float:
        """When the object was written, in seconds of the storage's own clock. Raises: `FileNotFoundError`."""
        with self._explained(f"look for {path}"):
            written: datetime = self._fs.modified(f"{self._root}/{path}")
            return written.timestamp()

    def clock(self) -> float:
        """What time it is for the storage: machines may disagree, objects of one storage do not. Seconds since 1970."""
        path = _scratch()
        self.replace(path, b"now")
        try:
            return self.modified_at(path)
        finally:
            self.delete(path)

    def read(self, path: str) -> bytes:
        """The bytes under `path`. Raises: `FileNotFoundError`."""
        with self._explained(f"read {path}"):
            data: bytes = self._fs.cat_file(f"{self._root}/{path}")
            return data

    def exists(self, path: str) -> bool:
        with self._explained(f"look for {path}"):
            return bool(self._fs.exists(f"{self._root}/{path}"))

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
        with self._explained("list it"):
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return True
        names = [info["name"].removeprefix(self._root).strip("/") for info in found]
        return all(name == "" or name.startswith(HIDDEN) for name in names)

    def delete(self, path: str) -> None:
        """Remove one object; a missing one is no error."""
        with self._explained(f"delete {path}"):
            try:
                self._fs.rm_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return

    def probe(self) -> None:
        """Find out, once at start-up, whether this storage keeps the promise that everything else rests on.

        Raises: `DestinationError` when it lets one key be created twice, refuses to write, or does not exist.
        """
        if not self.is_local:
            self._require_bucket()
        path = _scratch()
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
        return f"{self._root}/{name}" if self.is_local else f"s3://{self._root}/{name}"

    @property
    def storage_options(self) -> dict[str, str]:
        """What deltalake needs to reach the tables, read from the AWS_* environment of this process.

        deltalake commits by conditional put and needs no lock table; it finds profiles and instance roles by itself.
        """
        return {} if self.is_local else _s3_options()

    def open(self, path: str) -> Any:
        """A seekable binary file over one object, for readers that want parts of a large one."""
        with self._explained(f"read {path}"):
            return self._fs.open(f"{self._root}/{path}", "rb")

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Several whole objects at once: path → bytes; on S3 the requests run side by side."""
        with self._explained(f"read {paths[0]}"):
            found = self._fs.cat([f"{self._root}/{path}" for path in paths])
        return {name[len(self._root) + 1 :]: data for name, data in found.items()}

    def _find(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What the storage knows of each object below a folder, by path."""
        with self._explained(f"list {prefix or 'it'}"):
            try:
                found = self._fs.find(f"{self._root}/{prefix}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(self._root) + 1 :]: info for name, info in found.items() if not _is_folder(info)}

    def _create_local(self, target: Path, data: bytes) -> None:
        """Temporary file + fsync + link + fsync of the folder: `link` fails where the name is taken."""
        _make_folder(target.parent)
        unfinished = target.parent / _scratch()
        try:
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, target)
            _sync_folder(target.parent)
        except FileExistsError:
            if target.read_bytes() != data:
                raise ObjectExists(str(target)) from None
        finally:
            unfinished.unlink(missing_ok=True)

    def _replace_local(self, target: Path, data: bytes) -> None:
        _make_folder(target.parent)
        unfinished = target.parent / _scratch()
        try:
            unfinished.write_bytes(data)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _create_remote(self, key: str, data: bytes) -> None:
        for attempt in range(CREATE_ATTEMPTS):
            try:
                self._fs.pipe_file(key, data, mode="create")
                return
            except PermissionError:
                raise
            except self._failures:
                # A conflict, or an answer that got lost after the write: only reading back tells.
                if self._holds(key, data):
                    return
                if attempt + 1 == CREATE_ATTEMPTS:
                    raise
            time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether the key holds these bytes; False when there is no such key. Raises: `ObjectExists`."""
        try:
            stored = self._fs.cat_file(key)
        except FileNotFoundError:
            return False
        if stored != data:
            raise ObjectExists(key)
        return True

    def _require_bucket(self) -> None:
        # By listing: some servers create the bucket of a mistyped name at the first write, and s3fs takes a refusal
        # for absence when asked whether the bucket exists.
        bucket = self._root.partition("/")[0]
        with self._explained("look for its bucket"):
            try:
                self._fs.find(f"{bucket}/{HIDDEN}probe")
            except FileNotFoundError:
                raise DestinationError(
                    f"The bucket {bucket} does not exist: create it, or correct {self.url}."
                ) from None

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn what a storage can raise into one sentence; a missing object stays `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise DestinationError(
                f"The destination {self.url} refuses to {action} ({_reason(error)}): {self._advice()}."
            ) from error
        except self._failures as error:
            hint = "" if self.is_local else "; check the AWS_* variables"
            raise DestinationError(
                f"The destination {self.url} cannot be used to {action}: {_reason(error)}{hint}."
            ) from error

    def _advice(self) -> str:
        if self.is_local:
            return "make the folder writable or choose another"
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights they give"


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")


def _scratch() -> str:
    return f"{SCRATCH}{uuid.uuid4().hex}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _seconds(info: dict[str, Any]) -> float:
    written: datetime | float = info["LastModified"] if "LastModified" in info else info["mtime"]
    return written.timestamp() if isinstance(written, datetime) else written


def _is_folder(info: dict[str, Any]) -> bool:
    # Some S3 servers keep an empty object with a "/" at the end where a folder was.
    return info["type"] != "file" or str(info.get("Key", "")).endswith("/")


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _s3_filesystem(url: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """An s3fs of this process's environment, and what it raises: `OSError`, or botocore's own before an answer."""
    told = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # a user's own settings win
    options = dict(use_listings_cache=False, config_kwargs={"retries": RETRIES} | told)
    try:
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True, **options)
    except ImportError as error:
        raise DestinationError(
            f"The destination {url} needs s3fs, which is not installed: pip install 'earwitness[s3]'."
        ) from error
    botocore_error: type[Exception] = importlib.import_module("botocore.exceptions").BotoCoreError
    return filesystem, (OSError, botocore_error)


def _s3_options() -> dict[str, str]:
    env = os.environ
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
    found = {
        "aws_endpoint_url": endpoint,
        "aws_access_key_id": env.get("AWS_ACCESS_KEY_ID", ""),
        "aws_secret_access_key": env.get("AWS_SECRET_ACCESS_KEY", ""),
        "aws_session_token": env.get("AWS_SESSION_TOKEN", ""),
        "aws_region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or DEFAULT_REGION,
        "aws_allow_http": "true" if endpoint.startswith("http://") else "",
        "aws_conditional_put": "etag",
        "max_retries": DELTA_RETRIES,
    }
    return {name: value for name, value in found.items() if value}
