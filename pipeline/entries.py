"""What stands below a source: the files of a folder, of a glob, or of a bucket, one after the other.

Nothing of a tree or a bucket is held but the folder or the page that is looked at, for there may be millions of files.
It refuses to know which files are audio, and what becomes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fsspec.asyn import sync

from model.errors import SourceError

GLOB_CHARACTERS = frozenset("*?[")
NAMES_AT_ONCE = 1000  # fetched together of a bucket, as many as are in one page of an S3 listing

Wanted = Callable[[str], bool]


def entries(fs: Any, path: str, source: str, wanted: Wanted) -> Iterable[dict[str, Any]]:
    """fsspec's info of every file that `source` stands for, by name.

    path: that of the source, without its protocol. wanted: which files of a folder or glob are taken, by name.
    Raises: `SourceError` when there is no such file; and what the file system raises.
    """
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not GLOB_CHARACTERS.intersection(path):
            raise
        return _matches(fs, path, source, wanted)
    if info["type"] == "directory":
        return _below(fs, path, wanted)
    if info["type"] != "file":
        raise SourceError(f"{source} is neither a file nor a folder: give one of these, or a glob.")
    return [info]


def _matches(fs: Any, pattern: str, source: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    found = fs.glob(pattern, detail=True)
    if not found:
        raise SourceError(f"{source} matches nothing: give a file, a folder, or a glob that matches one.")
    root = os.path.dirname(pattern[: min(pattern.find(c) for c in GLOB_CHARACTERS if c in pattern)])
    files = {name: info for name, info in found.items() if info["type"] != "directory"}
    for name, info in found.items():
        if info["type"] == "directory":
            files |= {below["name"]: below for below in _below(fs, name, wanted)}
    return _taken(fs, root, wanted, (files[name] for name in sorted(files)))


def _below(fs: Any, folder: str, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """All that is wanted under a folder, by name; one that may not be read raises.

    Object stores list all keys below a prefix at once. Elsewhere `find` walks, and fsspec's walk leaves out, without a
    word, every folder that it cannot list; so we walk ourselves.
    """
    if not fs.async_impl:
        return _taken(fs, folder, wanted, _walk(fs, folder))
    if hasattr(fs, "_iterdir"):
        return _taken(fs, folder, wanted, _pages(fs, folder))
    found = fs.find(folder, detail=True)
    return _taken(fs, folder, wanted, (found[name] for name in sorted(found)))


def _walk(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    """The files of a tree; what is held are the entries of one folder, and of those above it."""
    waiting = [{"name": folder, "type": "directory"}]
    while waiting:
        info = waiting.pop()
        if info["type"] == "directory":
            # Names below a folder begin with its own and a "/": there it stands among files, if all are to be by name.
            inside = fs.ls(info["name"], detail=True)
            waiting += sorted(inside, key=lambda one: one["name"] + "/" * (one["type"] == "directory"), reverse=True)
        else:
            yield info


def _pages(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    """The objects of an S3 bucket below a prefix, page by page, in the order of their keys, which is by name.

    `find` of s3fs would hold all of them, a kilobyte and more each.
    """
    bucket, key, _ = fs.split_path(folder)
    objects = fs._iterdir(bucket, delimiter="", prefix=f"{key.rstrip('/')}/" if key else "")

    async def some() -> list[dict[str, Any]]:
        page = []
        async for info in objects:
            page.append(info)
            if len(page) == NAMES_AT_ONCE:
                break
        return page

    while page := sync(fs.loop, some):
        yield from page


def _taken(fs: Any, root: str, wanted: Wanted, found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is visible and wanted, links to such files resolved."""
    for info in found:
        name = info["name"]
        if wanted(name) and not _is_hidden(name, root):
            resolved = _resolve(fs, info)
            if resolved["type"] == "file":
                yield resolved


def _resolve(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """What a link leads to; a listing only knows the link. One that leads nowhere stays what it is, no file."""
    try:
        return fs.info(info["name"]) if info.get("islink") else info
    except FileNotFoundError:
        return info


def _is_hidden(name: str, root: str) -> bool:
    below = name.removeprefix(root.rstrip("/"))
    return any(step.startswith(".") for step in below.split("/"))
