"""What is seen of `earwitness compact`, `drop` and `vacuum`: one line on what was done, or would be.

Each is the writer of the destination while it works, and finishes what a killed run left before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.console import count, out, waiting
from pipeline import upkeep
from pipeline.recovery import recover
from pipeline.store import Store
from pipeline.writer import Writer


def compact(dest: str) -> None:
    """Merge small shards. Raises: `DestinationError`, `LeaseError`."""
    with _writer(dest) as writer:
        fewer = upkeep.compact(writer)
    out.print(f"{count(fewer, 'shard')} fewer." if fewer else "Nothing to merge: no two shards are small.")


def drop(dest: str, generation: str) -> None:
    """Take a generation out of the tables. Raises: `UsageError` if it is unknown; `DestinationError`, `LeaseError`."""
    with _writer(dest) as writer:
        gone = upkeep.drop(writer, generation)
    out.print(f"{count(gone, 'shard')} of {generation} dropped; `earwitness vacuum {dest}` deletes them for good.")


def vacuum(dest: str, grace_hours: float, dry_run: bool) -> None:
    """Delete what is in no table. Raises: `UsageError` for too short a grace; `DestinationError`, `LeaseError`."""
    with _writer(dest) as writer:
        deleted = upkeep.vacuum(writer, grace_hours, dry_run)
    done = "would be deleted" if dry_run else "deleted"
    out.print(f"{count(deleted.objects, 'object')}, {deleted.bytes:,} bytes, {done}.")


@contextmanager
def _writer(dest: str) -> Iterator[Writer]:
    Store.open(dest)  # where there is none, none is made
    with Writer.open(dest, on_wait=waiting) as writer:
        recover(writer)
        yield writer
