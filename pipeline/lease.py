"""Who may write to a destination: a lease with a heartbeat, which passes on when its holder falls silent.

    DEST/lease/00000007.json     epoch 7 and who took it, created once
    DEST/lease/00000007.beat     rewritten by that holder as long as it lives

Of all who create the same next epoch one wins; that is the whole election. Claims stay for ever, one for each run, so
a number is never taken twice. A holder is given up when its heartbeat is old by the clock of the *storage*, never by
that of any machine, or when it was a process of this machine and is gone. A holder that was only asleep finds out at
its next heartbeat; and until then the fence that `writer.py` puts into every table stops its commits. It refuses to
know what is written under a lease.
"""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from model.errors import DestinationError, LeaseError
from pipeline.objects import ObjectStore
from pipeline.storage import ObjectExists

FOLDER = "lease"
LEASE_SECONDS = 30.0  # of silence after which a holder is given up
BEATS_PER_LEASE = 6
LOOKS_PER_LEASE = 30  # of somebody who waits for a heartbeat
RELEASED = b"released"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """Who took an epoch. `machine`, `pid` and `born` name one process of one boot of one (virtual) machine."""

    host: str
    machine: str
    pid: int
    born: str
    taken_at: str  # for people: UTC, by the holder's own clock
    seconds: float  # of silence after which others may give it up
    token: str  # makes two claims of one process differ

    @classmethod
    def this_process(cls, seconds: float) -> Holder:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(platform.node(), _machine(), os.getpid(), _born(os.getpid()), now, seconds, uuid.uuid4().hex)

    @property
    def is_gone(self) -> bool:
        """Whether it was a process that this one would see, and does not. Of other machines nothing is known."""
        return bool(self.machine) and self.machine == _machine() and self.born != _born(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.taken_at}"


class Lease:
    """The right to write to one destination, made by `take`; a context manager that gives it back.

    Raises: `LeaseError` from `take` while another holder is alive, from `check` once another has taken over.
    """

    def __init__(self, objects: ObjectStore, epoch: int, holder: Holder) -> None:
        self.epoch = epoch
        self.holder = holder
        self._objects = objects
        self._last_beat = time.monotonic()
        self._lost = False
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat_until_the_end, name="lease", daemon=True)
        self._beats.start()

    @classmethod
    def take(
        cls,
        objects: ObjectStore,
        seconds: float = LEASE_SECONDS,
        on_wait: Callable[[Holder, float], None] = lambda holder, seconds: None,
    ) -> Lease:
        """The next lease of a destination, once its last holder has given it back, is gone, or silent for too long.

        seconds: of silence after which others may give this one up. on_wait: told once, before waiting, whose heartbeat
        is awaited and for how many seconds at most; who lives is found out at its next heartbeat.
        """
        epochs = _epochs(objects)
        if epochs:
            _require_free(objects, epochs[-1], on_wait)
        epoch, holder = (epochs[-1] if epochs else 0) + 1, Holder.this_process(seconds)
        try:
            objects.create(_claim(epoch), json.dumps(asdict(holder)).encode())
        except ObjectExists:
            raise _held(objects, _read_holder(objects, epoch)) from None
        objects.replace(_beat(epoch), b"0")
        return cls(objects, epoch, holder)

    def check(self, now: bool = False) -> None:
        """Make sure that this is still the holder; costs a request only when the heart has not beaten for long.

        now: ask the storage in any case, as before a deletion, which no fence would stop.
        """
        if now or time.monotonic() - self._last_beat >= self.holder.seconds:
            self._beat()
        if self._lost:
            raise _held(self._objects, _read_holder(self._objects, self.epoch + 1), "has been taken over")

    def ended_at(self, epoch: int) -> float:
        """When the next holder after `epoch` took over, by the storage's clock; infinity while there is none."""
        try:
            return self._objects.modified_at(_claim(epoch + 1))
        except FileNotFoundError:
            return math.inf

    def release(self) -> None:
        """Give it back, so that the next writer need not wait; a lease that is lost stays lost."""
        self._ended.set()
        self._beats.join()
        if not self._lost:
            with suppress(DestinationError):  # a storage that is gone: the lease runs out by itself
                self._objects.replace(_beat(self.epoch), RELEASED)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat_until_the_end(self) -> None:
        while not self._ended.wait(self.holder.seconds / BEATS_PER_LEASE) and not self._lost:
            with suppress(DestinationError):  # storage that is away for a while; `check` tells when it matters
                self._beat()

    def _beat(self) -> None:
        with self._beating:
            if self._objects.exists(_claim(self.epoch + 1)):
                self._lost = True
                return
            self._objects.replace(_beat(self.epoch), uuid.uuid4().hex.encode())
            self._last_beat = time.monotonic()


def _require_free(objects: ObjectStore, epoch: int, on_wait: Callable[[Holder, float], None]) -> None:
    """Return once the holder of `epoch` is done, gone or silent for too long. Raises: `LeaseError` at its next beat."""
    holder = _read_holder(objects, epoch)
    seen = _read_beat(objects, epoch)
    if seen == RELEASED or holder.is_gone:
        return
    remaining = holder.seconds - _age(objects, epoch)
    if remaining <= 0:
        return
    on_wait(holder, remaining)
    deadline = time.monotonic() + remaining
    while time.monotonic() < deadline:
        time.sleep(min(holder.seconds / LOOKS_PER_LEASE, max(0.0, deadline - time.monotonic())))
        now = _read_beat(objects, epoch)
        if now == RELEASED or holder.is_gone:
            return
        if now != seen:
            raise _held(objects, holder)


def _age(objects: ObjectStore, epoch: int) -> float:
    """Seconds since the last sign of life, by the storage's clock."""
    now = objects.clock()
    try:
        return now - objects.modified_at(_beat(epoch))
    except FileNotFoundError:  # it died between its claim and its first beat
        return now - objects.modified_at(_claim(epoch))


def _epochs(objects: ObjectStore) -> list[int]:
    names = (Path(path) for path in objects.list(FOLDER))
    return sorted(int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdigit())


def _claim(epoch: int) -> str:
    return f"{FOLDER}/{epoch:08d}.json"


def _beat(epoch: int) -> str:
    return f"{FOLDER}/{epoch:08d}.beat"


def _read_holder(objects: ObjectStore, epoch: int) -> Holder:
    try:
        fields: dict[str, Any] = json.loads(objects.read(_claim(epoch)))
        return Holder(**fields)
    except (FileNotFoundError, ValueError, TypeError):
        raise DestinationError(
            f"{objects.url}/{_claim(epoch)} is missing or damaged: delete the folder {FOLDER} if nobody writes there."
        ) from None


def _read_beat(objects: ObjectStore, epoch: int) -> bytes | None:
    try:
        return objects.read(_beat(epoch))
    except FileNotFoundError:
        return None


def _held(objects: ObjectStore, holder: Holder, how: str = "is being written") -> LeaseError:
    return LeaseError(f"{objects.url} {how} by {holder}: wait until that run ends, or stop it.")


def _machine() -> str:
    """Names one boot and one space of process numbers, as a container has its own; empty where that is unknown."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When the process of this number started, in ticks since the boot; empty when there is none, or it is a zombie."""
    try:
        # The name of a program, in parentheses, may hold anything; the fields after it are numbers and one letter.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
