"""The two kinds of storage that a destination can be: a folder, and an S3 bucket reached by s3fs.

Each says how an object is created once and how it is replaced; all else they share is in `fs`, one of fsspec's file
systems. They refuse to know what is stored, and turn no error into a sentence: `objects.py` does.

A create is conditional, so of two writers of one key exactly one wins. An answer that gets lost leaves open who won;
reading back and comparing settles it. Streaming to the final key is no option: fsspec's `open(…, "wb")` publishes what
was written so far when the block is left by an exception.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

import fsspec

from model.errors import DestinationError

CREATE_ATTEMPTS = 5  # S3 answers 409 while another conditional write is under way, 503 while it scales: both mean again
BACKOFF_SECONDS = 0.1  # doubled after each attempt, with jitter
# Three layers try again: botocore, s3fs around it (5 times), and `create`. That a server is gone was said after 24 s
# when all had their defaults, and after 2 s so.
RETRIES = {"mode": "standard", "total_max_attempts": 2}
DELTA_RETRIES = "4"
MANY = "1000"  # retries that end by the time they take
DEFAULT_REGION = "us-east-1"
HIDDEN = "."  # names that start with it are never listed: unfinished files, probes, what a desktop leaves behind
SCRATCH = f"{HIDDEN}earwitness-"  # our own of them
# What deltalake decodes, cuts off or refuses in the address of a table.
_NO_FOLDER = r"%[0-9A-Fa-f]{2}|[\\\x00-\x1f\x7f]"
NO_NAMES = {"file": re.compile(_NO_FOLDER), "s3": re.compile(_NO_FOLDER + "|[#?]|//")}


class ObjectExists(Exception):
    """The key already holds other bytes; whoever created it first stays."""


class Storage(Protocol):
    """What `objects.py` asks of either kind. Keys start with `root`."""

    root: str
    address: str  # the same place for a process in any working directory
    advice: str  # to who is refused
    hint: str  # to who cannot reach it
    fs: Any
    failures: tuple[type[Exception], ...]  # what it raises when it fails

    def create(self, key: str, data: bytes) -> None: ...
    def replace(self, key: str, data: bytes) -> None: ...
    def exists(self) -> bool: ...
    def table_uri(self, name: str) -> str: ...
    def delta_options(self, patience: float) -> dict[str, str]: ...


def storage_at(url: str) -> Storage:
    """The storage of a url: a local path, file:// or s3://bucket/prefix. Raises: `DestinationError` for any other."""
    protocol, separator, place = url.partition("://")
    if not separator:
        protocol, place = "file", url
    if protocol not in NO_NAMES or not place.strip("/ "):
        raise DestinationError(f"The destination {url!r} cannot hold tables: give a folder or s3://BUCKET/PREFIX.")
    storage = Folder(place) if protocol == "file" else Bucket(place)
    if found := NO_NAMES[protocol].search(storage.root):
        raise DestinationError(
            f"The destination {url!r} cannot hold tables, since {found.group()!r} means something else in the address "
            f"of a table: choose another name."
        )
    return storage


def scratch() -> str:
    """A name that nobody else has, and no listing shows."""
    return f"{SCRATCH}{uuid.uuid4().hex}"


class Folder:
    """A folder on a disk of this machine, or one that all machines share."""

    advice = "make the folder writable or choose another"
    hint = ""
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, path: str) -> None:
        self.root = self.address = os.path.abspath(path)
        self.fs = fsspec.filesystem("file", skip_instance_cache=True)

    def create(self, key: str, data: bytes) -> None:
        """Temporary file + fsync + link + fsync of the folder: `link` fails where the name is taken."""
        target = Path(key)
        _make_folder(target.parent)
        unfinished = target.parent / scratch()
        try:
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, target)
            _sync_folder(target.parent)
        except FileExistsError:
            if target.read_bytes() != data:
                raise ObjectExists(key) from None
        finally:
            unfinished.unlink(missing_ok=True)

    def replace(self, key: str, data: bytes) -> None:
        """Temporary file + rename, so that a reader sees the old bytes or the new ones."""
        target = Path(key)
        _make_folder(target.parent)
        unfinished = target.parent / scratch()
        try:
            unfinished.write_bytes(data)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Always: what is missing is made by the first object."""
        return True

    def table_uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def delta_options(self, patience: float) -> dict[str, str]:
        """Nothing: deltalake needs no telling how to reach a disk."""
        return {}


class Bucket:
    """A prefix of an S3 bucket, or of what speaks its language and honours If-None-Match."""

    advice = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights they give"
    hint = "; check the AWS_* variables"

    def __init__(self, place: str) -> None:
        self.root = place.rstrip("/")
        self.address = f"s3://{self.root}"
        told = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # a user's own settings win
        options = dict(use_listings_cache=False, config_kwargs={"retries": RETRIES} | told)
        try:
            self.fs = fsspec.filesystem("s3", skip_instance_cache=True, **options)
        except ImportError as error:
            raise DestinationError(
                f"The destination {self.address} needs s3fs, which is not installed: pip install 'earwitness[s3]'."
            ) from error
        # Before there is an answer, botocore raises errors of its own.
        self.failures: tuple[type[Exception], ...] = (
            OSError,
            importlib.import_module("botocore.exceptions").BotoCoreError,
        )

    def create(self, key: str, data: bytes) -> None:
        """A conditional put, repeated while the storage is busy; who won is settled by reading back."""
        for attempt in range(CREATE_ATTEMPTS):
            try:
                self.fs.pipe_file(key, data, mode="create")
                return
            except PermissionError:
                raise
            except self.failures:
                # A conflict, or an answer that got lost after the write: only reading back tells.
                if self._holds(key, data):
                    return
                if attempt + 1 == CREATE_ATTEMPTS:
                    raise
            time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))

    def replace(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(key, data)

    def exists(self) -> bool:
        """Whether there is such a bucket.

        By listing: some servers create the bucket of a mistyped name at the first write, and s3fs takes a refusal for
        absence when asked whether the bucket exists.
        """
        try:
            self.fs.find(f"{self.bucket}/{HIDDEN}probe")
        except FileNotFoundError:
            return False
        return True

    @property
    def bucket(self) -> str:
        return self.root.partition("/")[0]

    def table_uri(self, name: str) -> str:
        return f"{self.address}/{name}"

    def delta_options(self, patience: float) -> dict[str, str]:
        """deltalake commits by conditional put and needs no lock table; it finds profiles and instance roles itself."""
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
        if patience:
            found |= {"max_retries": MANY, "retry_timeout": f"{patience:g}s", "backoff_config.max_backoff": "1s"}
        return {name: value for name, value in found.items() if value}

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether the key holds these bytes; False when there is no such key. Raises: `ObjectExists`."""
        try:
            stored = self.fs.cat_file(key)
        except FileNotFoundError:
            return False
        if stored != data:
            raise ObjectExists(key)
        return True


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
