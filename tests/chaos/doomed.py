"""A run in one process that ends, or falls asleep, at one storage operation: the same code as ever, but for Ray.

    python -m tests.chaos.doomed        a zygote: orders in, pids and endings out, one JSON object a line

The zygote imports everything and starts no thread; each order is a fork of it, which takes milliseconds where a new
interpreter takes seconds. In the fork the driver runs as always (`jobs.transcribe.execute`): it lists, takes the lease,
recovers, plans, publishes. Only the graph is another: the stages before the sink are replayed from `rehearsal.py`, and
the sink is called in turn. Operations are counted where they leave our code: methods of `ObjectStore` and of
`DeltaTable`, and below a folder also the system calls behind them.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

import jobs.transcribe
import pipeline.run
from model.errors import EarwitnessError
from pipeline.job import Model
from pipeline.lease import LEASE_SECONDS
from pipeline.objects import PATIENCE_SECONDS, ObjectStore
from pipeline.sink import PrepareShard
from pipeline.writer import Writer
from tests.chaos import rehearsal

HANG_SECONDS = 100  # after which a child is taken to hang, tells where, and dies by SIGALRM
LOOK_SECONDS = 0.02
OURS = [name for name, method in vars(ObjectStore).items() if callable(method) and not name.startswith("_")]
DELTA = ["__init__", "update_incremental", "create", "create_write_transaction", "is_deltatable"]
SYSTEM = ["link", "unlink", "rename", "replace", "mkdir"]


@dataclass(frozen=True)
class Order:
    """One run: over `archive`, replayed from `rehearsed`, to `to`; disturbed at operation `at`, counted from 0."""

    archive: str
    rehearsed: str
    to: str
    outcome: str  # a file for the `Outcome`, as JSON
    model: dict[str, Any]
    at: int | None = None  # None: undisturbed
    when: str = "before"  # or after
    signal: int = signal.SIGKILL
    until: str | None = None  # instead of a signal: the run waits for this file, while its lease goes on beating
    clock_seconds: float = 0.0  # by which the clock of this process is ahead
    lease_seconds: float = LEASE_SECONDS
    patience_seconds: float = PATIENCE_SECONDS
    largest_file: int | None = None  # bytes, RLIMIT_FSIZE
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended that was not killed: its summary, or what it raised."""

    operations: list[str]
    error: str | None = None  # class
    said: str | None = None
    exit_code: int = 0
    trace: str | None = None


class Tripwire:
    """Counts operations, and signals its own process before or after the one that was ordered."""

    def __init__(self, order: Order) -> None:
        self.passed: list[str] = []
        self._order = order
        self._lock = threading.Lock()  # the lease beats on a thread of its own

    def around(self, owner: Any, name: str, where: str = "") -> Any:
        """A patch of the callable `owner.name` that makes it an operation, or only where an argument starts so."""
        found = vars(owner)[name]
        inner: Callable[..., Any] = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found

        @functools.wraps(inner)
        def counted(*args: Any, **options: Any) -> Any:
            if not any(str(argument).startswith(where) for argument in args):
                return inner(*args, **options)
            number = self._count(f"{getattr(owner, '__name__', owner)}.{name}")
            self._trip(number, "before")
            try:
                return inner(*args, **options)
            finally:
                self._trip(number, "after")

        return patch.object(owner, name, type(found)(counted) if inner is not found else counted)

    def _count(self, operation: str) -> int:
        with self._lock:
            self.passed.append(operation)
            return len(self.passed) - 1

    def _trip(self, number: int, when: str) -> None:
        if (number, when) != (self._order.at, self._order.when):
            return
        if self._order.until is None:
            os.kill(os.getpid(), self._order.signal)
            return
        while not os.path.exists(self._order.until):
            time.sleep(LOOK_SECONDS)


def run(order: Order, tripwire: Tripwire) -> None:
    """One run in this process, as ordered."""
    os.environ.update(order.env)
    request = jobs.transcribe.Request((order.archive,), order.to, rehearsal.CONFIG)
    rows = pq.read_table(order.rehearsed).to_pylist()
    with _plain(rows, order), _wired(tripwire, order), _shifted(order.clock_seconds), _limited(order.largest_file):
        jobs.transcribe.execute(request, jobs.transcribe.Watcher())


@contextmanager
def _plain(rows: list[dict[str, Any]], order: Order) -> Iterator[None]:
    """No Ray: its session is empty, nobody counts, and the graph is the sink called in turn."""

    def plain_flow(manifest: list[pa.Table], job: Any, *_: Any) -> _Shards:
        sink = PrepareShard(job.destination)
        return _Shards(sink(batch) for batch in rehearsal.replay(rows, manifest))

    with (
        patch.object(jobs.transcribe, "ray_session", _no_ray),
        patch.object(jobs.transcribe.Tally, "start", lambda: None),
        patch.object(pipeline.run.Register, "start", lambda owners, deadline: _NoRegister()),
        patch.object(Writer, "open", functools.partial(Writer.open, lease_seconds=order.lease_seconds)),
        patch("pipeline.writer.PATIENCE_SECONDS", order.patience_seconds),
        patch("pipeline.sink.PATIENCE_SECONDS", order.patience_seconds),
        patch.object(jobs.transcribe.Model, "of", lambda config: Model(**order.model)),
        patch.object(pipeline.run, "flow", plain_flow),
    ):
        yield


@contextmanager
def _no_ray(address: str | None) -> Iterator[None]:
    yield


class _NoRegister:
    """What a run asks of the register when all is read: no file came too late."""

    def turned_away(self) -> int:
        return 0


class _Shards:
    """What a run asks of a Dataset."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return self._tables


@contextmanager
def _wired(tripwire: Tripwire, order: Order) -> Iterator[None]:
    patches = [tripwire.around(ObjectStore, name) for name in OURS] + [tripwire.around(DeltaTable, n) for n in DELTA]
    if not order.to.startswith("s3://"):
        patches += [tripwire.around(os, name, order.to) for name in SYSTEM]
    with _all(patches):
        yield


@contextmanager
def _shifted(seconds: float) -> Iterator[None]:
    """A wall clock that is wrong by so much: everything of Python's that is not told by the storage."""
    now, now_ns = time.time, time.time_ns
    with _all(
        [
            patch.object(time, "time", lambda: now() + seconds),
            patch.object(time, "time_ns", lambda: now_ns() + int(seconds * 1e9)),
        ]
        if seconds
        else []
    ):
        yield


@contextmanager
def _limited(largest_file: int | None) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: to whoever writes it, much like a disk that is full."""
    if largest_file is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _all(patches: list[Any]) -> Iterator[None]:
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


def _child(order: Order) -> None:
    """Never returns."""
    faulthandler.enable()
    signal.alarm(HANG_SECONDS)
    tripwire = Tripwire(order)
    error: BaseException | None = None
    try:
        run(order, tripwire)
    except BaseException as raised:  # whatever it is, the test wants to see it
        error = raised
    Path(order.outcome).write_text(json.dumps(asdict(_outcome(tripwire, error))))
    os._exit(0)


def _outcome(tripwire: Tripwire, error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome(tripwire.passed)
    trace = "".join(traceback.format_exception(error))
    code = error.exit_code if isinstance(error, EarwitnessError) else 1
    return Outcome(tripwire.passed, type(error).__name__, str(error), code, trace)


def main() -> None:
    """Fork for each order on standard input, wait for each pid that is asked about."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], os.WUNTRACED)
            print(json.dumps(status), flush=True)
            continue
        order = Order(**asked)
        pid = os.fork()
        if pid == 0:
            _child(order)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
