"""Runs for tests: the archive they read, one run planned and done, and the command line in a process to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.cluster import Machines
from model.transcript import Transcript
from pipeline import catalog
from pipeline.config import Config, ReadOptions, RunOptions
from pipeline.job import Job, Model
from pipeline.placement import place
from pipeline.run import Run, Summary
from pipeline.store import Store
from pipeline.tally import Counts
from pipeline.writer import Writer

TINY = "tiny.en"
THREADS = 2
PART_SECONDS = 5.0
CONFIG = Config(
    model=TINY,
    read=ReadOptions(part_seconds=PART_SECONDS),
    run=RunOptions(parts_per_shard=2, publish_seconds=0.5, precision="float32"),
)
STATUSES = {
    "counting.wav": "ok",
    "cut_short.wav": "truncated",
    "empty.wav": "no_audio",
    "hello_world.wav": "ok",
    "long.wav": "ok",
    "quick_brown_fox.wav": "ok",
    "shopping_list.mp3": "no_audio",
}
FAILED = [name for name, status in STATUSES.items() if status == "no_audio"]
PATIENCE_SECONDS = 60.0

PARTS = """
    SELECT part_id, parse_filename(uri) AS file, "index", start, "end", is_last, part_seconds, status, error, attempts,
        sha256, decoded_seconds, segments, windows, tokens, generation FROM parts ORDER BY file, "index" """
SEGMENTS = """
    SELECT part_id, parse_filename(uri) AS file, segment_index, start, "end", text, tokens, temperature, generation
    FROM segments ORDER BY file, start"""

Rows = list[dict[str, Any]]
Alone = Callable[[str, np.ndarray], Transcript]


@contextmanager
def planned(source: str | Path, to: str | Path, machines: Machines, config: Config = CONFIG) -> Iterator[Run]:
    """A run whose writer holds the lease until the block ends."""
    placed = place(config.run, machines.resources, machines.nodes, machines.cores_per_node)
    job = Job(config, Model.of(config), placed, str(to))
    with Writer.open(str(to)) as writer:
        yield Run.prepare([str(source)], writer, job)


@dataclass(frozen=True)
class Done:
    """What a run left behind."""

    store: Store
    summary: Summary
    counts: Counts
    folder: Path

    @property
    def parts(self) -> Rows:
        return ask(self.store, PARTS)

    @property
    def segments(self) -> Rows:
        return ask(self.store, SEGMENTS)

    def parts_of(self, file: str) -> Rows:
        return [row for row in self.parts if row["file"] == file]


def ask(store: Store, sql: str) -> Rows:
    return catalog.query(store, sql).to_pylist()


@contextmanager
def command_line(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`earwitness` in a process of its own; at the end of the block it and all that it started are killed at once."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [sys.executable, "-c", "from jobs.cli import main; main()", *arguments],
            env=os.environ | {"RAY_TMPDIR": scratch},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _kill_family(process.pid)
            process.wait(PATIENCE_SECONDS)


def _kill_family(pid: int) -> None:
    """Ray puts processes into groups and sessions of their own, so they are found by their parents.

    All are stopped before any is killed: else some would start others, or lose their parent, in between.
    """
    stopped: set[int] = set()
    while new := _family(pid) - stopped:
        stopped |= new
        for member in new:
            _signal(member, signal.SIGSTOP)
    for member in stopped:
        _signal(member, signal.SIGKILL)


def _family(pid: int) -> set[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone in this moment
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    family, unseen = set(), [pid]
    while unseen:
        family.add(member := unseen.pop())
        unseen += children.get(member, [])
    return family


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
