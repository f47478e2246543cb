"""The lease: one holder, found dead or alive by its heartbeat, on local disk and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import DestinationError, LeaseError
from pipeline.lease import FOLDER, Holder, Lease
from pipeline.objects import ObjectStore

SHORT = 1.5  # seconds; S3 tells times in whole ones
_HOLD = """
import sys, time
from pipeline.lease import Lease
from pipeline.objects import ObjectStore
lease = Lease.take(ObjectStore(sys.argv[1]), float(sys.argv[2]))
print("taken", flush=True)
time.sleep(120)
"""


@contextmanager
def _holding(destination: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease, and does nothing else."""
    command = [sys.executable, "-c", _HOLD, destination, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "taken\n"
            yield process
        finally:
            process.kill()


def test_epochs_count_up_and_a_released_lease_is_free_at_once(destination: str) -> None:
    objects = ObjectStore(destination)
    started = time.monotonic()
    for epoch in (1, 2, 3):
        with Lease.take(objects) as lease:
            lease.check()
            assert lease.epoch == epoch
    assert time.monotonic() - started < 10, "nobody waited for a heartbeat"


def test_a_living_holder_is_found_out_at_its_next_heartbeat(destination: str) -> None:
    objects = ObjectStore(destination)
    told: list[tuple[Holder, float]] = []
    with Lease.take(objects, 6.0) as lease:
        started = time.monotonic()
        with pytest.raises(LeaseError, match=rf"is being written by process {os.getpid()} on \S+, since "):
            Lease.take(objects, on_wait=lambda holder, seconds: told.append((holder, seconds)))
        assert time.monotonic() - started < 4
        lease.check()
    assert [(holder.token, 0 < seconds <= 6) for holder, seconds in told] == [(lease.holder.token, True)]


def test_of_many_who_want_it_one_gets_it(destination: str) -> None:
    def take(_: int) -> Lease | None:
        try:
            return Lease.take(ObjectStore(destination), 6.0)
        except LeaseError:
            return None

    with ThreadPoolExecutor(8) as pool:
        taken = [lease for lease in pool.map(take, range(8)) if lease]
    assert [lease.epoch for lease in taken] == [1]
    taken[0].release()


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with _holding(str(tmp_path), 60.0):
        pass
    started = time.monotonic()
    with Lease.take(ObjectStore(str(tmp_path))) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - started < 5


def test_a_holder_on_another_machine_is_given_up_when_it_is_silent(
    destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = ObjectStore(destination)
    _claimed_elsewhere(objects, seconds=3.0)
    started = time.monotonic()
    with Lease.take(objects) as lease:
        assert lease.epoch == 2
    assert 1 <= time.monotonic() - started < 10


def test_a_wrong_clock_of_either_machine_does_not_matter(destination: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ObjectStore(destination)
    with Lease.take(objects, 6.0) as lease:
        for hours in (-24, 24):
            with monkeypatch.context() as patch:
                now = time.time
                patch.setattr(time, "time", lambda now=now, hours=hours: now() + 3600 * hours)
                with pytest.raises(LeaseError, match="is being written"):
                    Lease.take(objects)
        lease.check()


def test_a_stopped_holder_loses_it_and_finds_out_when_it_wakes(tmp_path: Path) -> None:
    with _holding(str(tmp_path), SHORT) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with Lease.take(ObjectStore(str(tmp_path)), SHORT) as lease:
            assert lease.epoch == 2
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(2 * SHORT)
            lease.check()


def test_who_lost_it_is_told_by_whom(destination: str) -> None:
    objects = ObjectStore(destination)
    sleeper = Lease.take(objects, 60.0)
    objects.create(f"{FOLDER}/00000002.json", _claim(_elsewhere(60.0)))
    sleeper._last_beat -= 60.0  # it has not beaten for as long
    with pytest.raises(LeaseError, match="has been taken over by process 1 on elsewhere"):
        sleeper.check()
    sleeper.release()
    assert not objects.exists(f"{FOLDER}/00000002.beat"), "what belongs to the other is left alone"


def test_a_storage_that_is_away_for_a_while_ends_nothing(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "archive"))
    with Lease.take(objects, SHORT) as lease:
        (tmp_path / "archive").rename(tmp_path / "away")
        (tmp_path / "archive").touch()  # a file in the place of the folder: nothing can be written
        time.sleep(SHORT)
        with pytest.raises(DestinationError):
            lease.check()
        (tmp_path / "archive").unlink()
        (tmp_path / "away").rename(tmp_path / "archive")
        lease.check()


def test_a_damaged_claim_says_what_to_do(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path))
    objects.create(f"{FOLDER}/00000001.json", b"{}")
    with pytest.raises(DestinationError, match="00000001.json is missing or damaged: delete the folder lease if"):
        Lease.take(objects)


def _claimed_elsewhere(objects: ObjectStore, seconds: float) -> None:
    objects.create(f"{FOLDER}/00000001.json", _claim(_elsewhere(seconds)))
    objects.replace(f"{FOLDER}/00000001.beat", b"1")


def _elsewhere(seconds: float) -> Holder:
    return replace(Holder.this_process(seconds), host="elsewhere", machine="another boot", pid=1, born="1")


def _claim(holder: Holder) -> bytes:
    return json.dumps(vars(holder)).encode()
