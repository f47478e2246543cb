"""What an archive holds: objects listed and fetched from any url that fsspec reads, local paths included.

A uri is `protocol://path` with the path exactly as the storage has it: nothing is url-encoded, so a name may hold
spaces, `#`, `%`, `?`, `*` or a newline. It refuses to know what is inside an object.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from model.errors import MediaError, SourceError
from pipeline.entries import GLOB_CHARACTERS, entries
from pipeline.objects import PATIENCE_SECONDS, PAUSE_SECONDS
from pipeline.records import MEDIA

LISTING = pa.schema([MEDIA.field(name) for name in ("uri", "version", "bytes", "modified_at")])
LISTED_AT_ONCE = 65_536  # objects turned into columns together

COPY_BYTES = 4 << 20
CHANGED = "It has changed since it was listed: the next run will read it."
# What storages raise: OSError, and what the clients that are in use have besides (no credentials, an HTTP 503).
_CLIENT_ERRORS = (
    ("builtins", "OSError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
_UNANSWERED = (
    ("builtins", "ConnectionError"),
    ("builtins", "TimeoutError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("aiohttp", "ClientConnectionError"),
)
_EXPIRED = "FileExpired"  # s3fs's answer to 412, by its name: s3fs is an extra, and may be missing

# Bytes that a second of audio typically takes, picture included. Only sizes are known before reading, so hours are an
# estimate, good to a factor of two or three: enough to choose a part length.
PCM_BYTES_PER_SECOND = 32_000.0  # 16 kHz, 16 bit, mono
TYPICAL_BYTES_PER_SECOND = {
    **dict.fromkeys((".wav", ".w64", ".aif", ".aiff", ".au", ".caf"), PCM_BYTES_PER_SECOND),
    **dict.fromkeys((".flac", ".wv"), PCM_BYTES_PER_SECOND / 2),
    **dict.fromkeys((".mp3", ".mp2", ".m4a", ".m4b", ".aac", ".wma", ".mka"), 12_000.0),
    **dict.fromkeys((".ogg", ".oga", ".opus", ".g722"), 8_000.0),
    **dict.fromkeys((".amr", ".gsm"), 1_600.0),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".asf"), 200_000.0),
    **dict.fromkeys((".ts", ".mts", ".mpg", ".mpeg", ".vob"), 400_000.0),
    **dict.fromkeys((".3gp", ".3g2"), 30_000.0),
}
UNKNOWN_BYTES_PER_SECOND = 16_000.0
MEDIA_SUFFIXES = frozenset(TYPICAL_BYTES_PER_SECOND)

# A window that is not the last of its part is left behind where its last segment ends, typically at 27 of its 30
# seconds. A part a little longer than its windows costs one more, nearly empty: parts of 40 seconds run at 0.7 of the
# speed of parts of 30.
WINDOW_SECONDS = 30.0
WINDOW_ADVANCE_SECONDS = 27.0
MOST_PLANNED_WINDOWS = 11  # 300 seconds: long enough to lose little context, short enough to lose little work
PARTS_PER_SLOT = 3  # at least, so that the last ones to finish leave few slots empty

# Where the file systems of fsspec put what changes with the content, and the time of the last change.
_VERSION_FIELDS = ("ETag", "generation", "etag", "VersionId", "version_id", "ContentMD5", "md5Hash")
_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class MediaObject:
    """One object of the archive at one version."""

    media_id: str  # 32 hex digits, from the three fields below
    uri: str
    version: str
    bytes: int
    modified_at: datetime | None


def media_id(uri: str, version: str, size: int) -> str:
    """The name of one object at one version, 32 hex digits; `plan_sql.py` has it as SQL."""
    return hashlib.sha256("\0".join((uri, version, str(size))).encode()).hexdigest()[:32]


def list_media(sources: Sequence[str]) -> Iterator[MediaObject]:
    """Every media object of the sources, each once: sources in their order, objects by name.

    A source is a file, which is always taken, or a folder or glob, of which audio and video are taken by suffix, hidden
    names left out, and linked folders not followed. Raises: `SourceError` when a source, or any folder in it, cannot be
    listed; only a glob passes over what it may not look into, as a shell does.
    """
    for uri, info in _listed(sources):
        version, size = _version(info), _size(info)
        yield MediaObject(media_id(uri, version, size), uri, version, size, _modified_at(info))


def listing(sources: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """What `list_media` gives, as batches of LISTING: an archive of millions is never held as objects."""
    objects = _listed(sources)
    while batch := list(itertools.islice(objects, LISTED_AT_ONCE)):
        uris = [uri for uri, _ in batch]
        columns = (uris, *([of(info) for _, info in batch] for of in (_version, _size, _modified_at)))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=LISTING)


def roots(sources: Sequence[str]) -> tuple[str, ...]:
    """How the uris below each source begin: with the source and a "/"; of a glob, up to its first special character."""
    return tuple(_root(*_split(source)) for source in sources)


def fetch(uri: str, version: str, target: Path) -> str:
    """Copy one listed object to a local file; returns the sha256 of what was copied, 64 hex digits.

    A server that does not answer is asked again for PATIENCE_SECONDS: it may be restarting, and that is no fault of the
    object. Raises: `MediaError` of status "failed" when the object is gone, cannot be read, or is no longer `version`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return _copy(uri, version, target)
        except MediaError as error:
            if not isinstance(error.__cause__, _classes(_UNANSWERED)) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(*PAUSE_SECONDS))


def estimate_seconds(uri: str, size: int) -> float:
    """Seconds of audio that an object of `size` bytes typically holds, judged by its suffix alone."""
    return size / TYPICAL_BYTES_PER_SECOND.get(_suffix(uri), UNKNOWN_BYTES_PER_SECOND)


def choose_part_seconds(audio_seconds: float, slots: int) -> float:
    """The longest part, in seconds, such that every slot of the run gets PARTS_PER_SLOT: one window, or several.

    At most MOST_PLANNED_WINDOWS, which is five minutes; slots are those of all model actors together.
    """
    fair = audio_seconds / (PARTS_PER_SLOT * max(1, slots))
    windows = 1 + int(max(0.0, fair - WINDOW_SECONDS) // WINDOW_ADVANCE_SECONDS)
    return WINDOW_SECONDS + WINDOW_ADVANCE_SECONDS * (min(windows, MOST_PLANNED_WINDOWS) - 1)


def _split(source: str) -> tuple[str, str]:
    """Protocol and path of a source; what has no protocol is a local path."""
    protocol, separator, path = source.partition("://")
    if not separator:
        return "file", os.path.abspath(os.path.expanduser(source))
    if protocol in ("file", "local"):
        return "file", os.path.abspath(path)
    return protocol, source if protocol in ("http", "https") else path


def _root(protocol: str, path: str) -> str:
    start = path if protocol in ("http", "https") else f"{protocol}://{path}"
    special = [start.find(character) for character in GLOB_CHARACTERS if character in start]
    return start[: min(special)] if special else start.rstrip("/") + "/"


def _listed(sources: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The uri and the info of every media object of the sources, each once."""
    for source in sources:
        if not source.strip():
            raise SourceError("A source is empty: give a file, a folder, a glob or a url.")
    # Within a source no name comes twice, so that only names of sources that overlap have to be remembered.
    seen: set[str] | None = set() if _overlap(roots(sources)) else None
    for source in sources:
        protocol, path = _split(source)
        with _source_errors(source):
            for info in entries(_file_system(protocol), path, source, _is_media):
                uri = _uri(protocol, str(info["name"]))
                if seen is None:
                    yield uri, info
                elif uri not in seen:
                    seen.add(uri)
                    yield uri, info


def _overlap(beginnings: Sequence[str]) -> bool:
    """Whether one place may be below another: sorted, it would stand right before one that begins with it."""
    ordered = sorted(beginnings)
    return any(later.startswith(one) for one, later in itertools.pairwise(ordered))


def _file_system(protocol: str) -> Any:
    """The file system of a protocol, made in this process: clients do not survive a fork or a pickle."""
    return fsspec.filesystem(protocol)


def _is_media(name: str) -> bool:
    return _suffix(name) in MEDIA_SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _uri(protocol: str, name: str) -> str:
    uri = name if name.startswith(f"{protocol}://") else f"{protocol}://{name}"
    # Names on a Linux disk are bytes; those that are no UTF-8 fit no table. Such an object becomes a row that says so.
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _size(info: dict[str, Any]) -> int:
    return int(info["size"] or 0)


def _version(info: dict[str, Any]) -> str:
    """What changes whenever the object does: an etag where there is one, else time of change and size."""
    for field in _VERSION_FIELDS:
        if info.get(field):
            return str(info[field]).strip('"')
    changed = _modified_at(info)
    if isinstance(info.get("mtime"), float):
        return f"{int(info['mtime'] * 1e9)}-{info['size']}"
    return f"{changed.isoformat() if changed else 'unknown'}-{info['size']}"


def _modified_at(info: dict[str, Any]) -> datetime | None:
    for field in _TIME_FIELDS:
        value = info.get(field)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def _copy(uri: str, version: str, target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in _read(uri, version):
            digest.update(chunk)
            file.write(chunk)  # a full disk here is no fault of the object, and raises as what it is
    return digest.hexdigest()


def _read(uri: str, version: str) -> Iterator[bytes]:
    """The bytes of one object, as long as it is the version that was listed.

    A file of s3fs makes every request with If-Match, on the ETag it found when it was opened. Elsewhere nobody promises
    that, so the object is looked at once more when it has been read.
    """
    with _media_errors(uri):
        protocol, path = _split(uri)
        fs = _file_system(protocol)
        info = fs.info(path)
        _require_version(info, version)
        copied = 0
        with fs.open(path, "rb") as file:
            opened = getattr(file, "details", None) or info
            _require_version(opened, version)
            while chunk := file.read(COPY_BYTES):
                copied += len(chunk)
                yield chunk
        if "IfMatch" not in getattr(file, "read_kw", ()):
            fs.invalidate_cache(path)
            _require_version(fs.info(path), version)
        if info["size"] is not None and copied != info["size"]:
            raise MediaError("failed", f"It ended after {copied} of {info['size']} bytes: it is being changed.")


def _require_version(info: dict[str, Any], version: str) -> None:
    if _version(info) != version:
        raise MediaError("failed", CHANGED)


@contextmanager
def _source_errors(source: str) -> Iterator[None]:
    """Turn what a storage can answer to a listing into one sentence."""
    try:
        yield
    except ImportError as error:
        hint = "pip install 'earwitness[s3]'" if source.startswith("s3") else str(error)
        raise SourceError(f"{source} needs a package that is not installed: {hint}.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        other = " and no server that answers" if source.startswith("http") else ""  # aiohttp tells the two alike
        raise SourceError(f"{source} does not exist: there is no such file, folder or bucket{other}.") from error
    except PermissionError as error:
        what = error.filename or source
        raise SourceError(f"{what} may not be read: check its permissions, or the credentials.") from error
    except ValueError as error:
        raise SourceError(f"{source} is not an address that can be listed: {error}.") from error
    except _classes(_CLIENT_ERRORS) as error:
        hint = "; check the AWS_* variables" if source.startswith("s3") else ""
        raise SourceError(f"{source} cannot be listed: {str(error).rstrip('.')}{hint}.") from error


@contextmanager
def _media_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        reason = f"It is gone, or on a disk that {platform.node()} does not share, or its name is not UTF-8."
        raise MediaError("failed", reason) from error
    except PermissionError as error:
        raise MediaError("failed", "It may not be read: check its permissions, or the credentials.") from error
    except _classes(_CLIENT_ERRORS) as error:
        if type(error).__name__ == _EXPIRED:
            raise MediaError("failed", CHANGED) from error
        raise MediaError("failed", f"It could not be fetched: {str(error).rstrip('.')}.") from error


def _classes(named: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    """Those of the named exceptions whose module is in use."""
    return tuple(getattr(sys.modules[module], name) for module, name in named if module in sys.modules)
