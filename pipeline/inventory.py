"""What an archive holds: objects listed and fetched from any url that fsspec reads, local paths included.

A uri is `protocol://path` with the path exactly as the storage has it: nothing is url-encoded, so a name may hold
spaces, `#`, `%`, `?`, `*` or a newline. It refuses to know what is inside an object.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from model.errors import MediaError, SourceError

COPY_BYTES = 4 << 20
CHANGED = "It has changed since it was listed: the next run will read it."
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
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

_GLOB_CHARACTERS = frozenset("*?[")
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


def list_media(sources: Sequence[str]) -> Iterator[MediaObject]:
    """Every media object of the sources, each once: sources in their order, objects by name.

    A source is a file, which is always taken, or a folder or glob, of which audio and video are taken by suffix, hidden
    names left out, and linked folders not followed. Raises: `SourceError` when a source, or any folder in it, cannot be
    listed; only a glob passes over what it may not look into, as a shell does.
    """
    seen = set()
    for source in sources:
        if not source.strip():
            raise SourceError("A source is empty: give a file, a folder, a glob or a url.")
        with _source_errors(source):
            protocol, path = _split(source)
            found = _entries(_file_system(protocol), path, source)
        for info in found:
            media = _media_object(protocol, info)
            if media.uri not in seen:
                seen.add(media.uri)
                yield media


def fetch(uri: str, version: str, target: Path) -> str:
    """Copy one listed object to a local file; returns the sha256 of what was copied, 64 hex digits.

    Raises: `MediaError` of status "failed" when the object is gone, cannot be read, or is no longer `version`.
    """
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in _read(uri, version):
            digest.update(chunk)
            file.write(chunk)  # a full disk here is no fault of the object, and raises as what it is
    return digest.hexdigest()


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


def _file_system(protocol: str) -> Any:
    """The file system of a protocol, made in this process: clients do not survive a fork or a pickle."""
    return fsspec.filesystem(protocol)


def _entries(fs: Any, path: str, source: str) -> list[dict[str, Any]]:
    """Info of every file that `source` stands for, by name."""
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not _GLOB_CHARACTERS.intersection(path):
            raise
        return _matches(fs, path, source)
    if info["type"] == "directory":
        return _below(fs, path)
    if info["type"] != "file":
        raise SourceError(f"{source} is neither a file nor a folder: give one of these, or a glob.")
    return [info]


def _matches(fs: Any, pattern: str, source: str) -> list[dict[str, Any]]:
    found = fs.glob(pattern, detail=True)
    if not found:
        raise SourceError(f"{source} matches nothing: give a file, a folder, or a glob that matches one.")
    root = os.path.dirname(pattern[: min(pattern.find(c) for c in _GLOB_CHARACTERS if c in pattern)])
    files = [info for info in found.values() if info["type"] != "directory"]
    for name, info in found.items():
        if info["type"] == "directory":
            files += _below(fs, name)
    by_name = {info["name"]: info for info in files}
    return _only_media(fs, root, by_name)


def _below(fs: Any, folder: str) -> list[dict[str, Any]]:
    """All media under a folder; one that may not be read raises.

    Object stores list all keys below a prefix at once. Elsewhere `find` walks, and fsspec's walk leaves out, without a
    word, every folder that it cannot list; so we walk ourselves.
    """
    return _only_media(fs, folder, fs.find(folder, detail=True) if fs.async_impl else _walk(fs, folder))


def _walk(fs: Any, folder: str) -> dict[str, dict[str, Any]]:
    found = {}
    folders = [folder]
    while folders:
        for info in fs.ls(folders.pop(), detail=True):
            if info["type"] == "directory":
                folders.append(info["name"])
            else:
                found[info["name"]] = info
    return found


def _only_media(fs: Any, root: str, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Visible audio and video, links to such files resolved, by name."""
    names = (name for name in sorted(found) if _suffix(name) in MEDIA_SUFFIXES and not _is_hidden(name, root))
    resolved = (_resolve(fs, found[name]) for name in names)
    return [info for info in resolved if info["type"] == "file"]


def _resolve(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """What a link leads to; a listing only knows the link. One that leads nowhere stays what it is, no file."""
    try:
        return fs.info(info["name"]) if info.get("islink") else info
    except FileNotFoundError:
        return info


def _is_hidden(name: str, root: str) -> bool:
    below = name.removeprefix(root.rstrip("/"))
    return any(step.startswith(".") for step in below.split("/"))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _media_object(protocol: str, info: dict[str, Any]) -> MediaObject:
    name = str(info["name"])
    uri = name if name.startswith(f"{protocol}://") else f"{protocol}://{name}"
    # Names on a Linux disk are bytes; those that are no UTF-8 fit no table. Such an object becomes a row that says so.
    uri = uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    version, size = _version(info), int(info["size"] or 0)
    media_id = hashlib.sha256("\0".join((uri, version, str(size))).encode()).hexdigest()[:32]
    return MediaObject(media_id, uri, version, size, _modified_at(info))


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
    except _storage_failures() as error:
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
    except _storage_failures() as error:
        if type(error).__name__ == _EXPIRED:
            raise MediaError("failed", CHANGED) from error
        raise MediaError("failed", f"It could not be fetched: {str(error).rstrip('.')}.") from error


def _storage_failures() -> tuple[type[Exception], ...]:
    """What storages raise: OSError, and what the clients that are in use have besides (no credentials, an HTTP 503)."""
    return (OSError, *(getattr(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules))
