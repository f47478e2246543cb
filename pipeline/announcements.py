"""What a slice tells the publisher: groups of prepared shards, each group one object, numbered from 0.

    DEST/submissions/EPOCH/SLICE-ATTEMPT/00000000.json     a list of `records.SHARD` rows

They go through the storage and not through Ray, so what was said survives whoever said it, and neither side waits for
the other. A message and no result: once it is published nobody needs it. It refuses to know what a shard holds.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.objects import ObjectStore

FOLDER = "submissions"


class Announcements:
    """One end of the line between a slice and its publisher: who puts and who takes each have one of their own.

    folder: relative to the destination, and of one attempt at one slice. Raises: `DestinationError` when the storage
    refuses.
    """

    def __init__(self, objects: ObjectStore, folder: str) -> None:
        self.folder = folder
        self._objects = objects
        self._next = 0

    def put(self, shards: list[dict[str, Any]]) -> None:
        """Tell that these `records.SHARD` rows are prepared: both objects of each are stored."""
        self._objects.create(self._path(), json.dumps(shards).encode())
        self._next += 1

    def take(self) -> list[dict[str, Any]]:
        """All that was put since the last time."""
        shards: list[dict[str, Any]] = []
        while True:
            try:
                shards += json.loads(self._objects.read(self._path()))
            except FileNotFoundError:
                return shards
            self._next += 1

    def _path(self) -> str:
        return f"{self.folder}/{self._next:08d}.json"


def forget(objects: ObjectStore) -> None:
    """Delete every announcement of a destination: for the publisher, when it recovers, and when all is published."""
    for path in objects.list(FOLDER):
        objects.delete(path)
