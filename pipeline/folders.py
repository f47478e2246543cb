"""Temporary folders that tell whether their owner lives: locked as long as it does, swept away when it is gone.

A process that is killed removes nothing, and a number of a process says little where containers share a disk; a lock
ends with whoever holds it. It refuses to know what is in a folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked_folder(prefix: str, place: str | None = None) -> Iterator[Path]:
    """A fresh folder in `place`, or where temporary files are, that no sweep takes until the block ends.

    It is not removed at the end: what its owner leaves, the next sweep takes.
    """
    lock, folder = _locked(prefix, place)
    try:
        yield folder
    finally:
        os.close(lock)


def sweep(prefix: str, place: str | None = None) -> int:
    """Remove the folders of owners that are gone; returns how many. Those of the living are never touched."""
    removed = 0
    for folder in Path(place or tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, another user's, or no folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            removed += 1
        except OSError:  # locked: its owner lives; or on a disk that knows no locks, where nobody can tell
            continue
        finally:
            os.close(lock)
    return removed


def _locked(prefix: str, place: str | None) -> tuple[int, Path]:
    """A descriptor that holds the lock on a fresh folder, and the folder.

    Between the two, a sweep may take the folder for a dead one's; then there is another.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return lock, folder  # no locks on this disk: no sweep will get one either
        if folder.exists():
            return lock, folder
        os.close(lock)
