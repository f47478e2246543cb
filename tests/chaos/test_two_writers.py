"""Two drivers of one destination, one of them asleep, in another time, or out of disk: one writes, and nothing is lost.

A driver is a fork of `doomed.py`, stopped or held up at one of its operations.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import DestinationError, LeaseError
from tests.chaos import oracle
from tests.chaos.conftest import EVERYWHERE, SEED, Orders
from tests.chaos.doomed import Order
from tests.chaos.oracle import Holdings
from tests.chaos.zygote import Zygote
from tests.conftest import BUCKET

SHORT_LEASE = 1.0  # of a driver that is asleep, for another has to wait for its end
LONG_LEASE = 12.0  # of a driver that lives, on a machine so busy that its heart may skip a beat
SLEEPERS = 300 if EVERYWHERE else 4
SENTENCE = re.compile(r"[A-Z/][^\n]+\.|s3://[^\n]+\.")
HOUR = 3600.0
PATIENCE_SECONDS = 20.0

pytestmark = pytest.mark.timeout(3600 if EVERYWHERE else 180)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes destinations that nothing was stored under yet, on local disk and on the S3 server."""
    if request.param == "local":
        return lambda: str(tmp_path / uuid.uuid4().hex / "tables")
    request.getfixturevalue("s3")
    return lambda: f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.mark.parametrize("clock_seconds", [0.0, HOUR, -HOUR])
def test_a_second_driver_is_refused_while_the_first_goes_on(
    place: Callable[[], str], clock_seconds: float, orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    """Whatever time the second believes it is."""
    first = replace(orders(place()), lease_seconds=LONG_LEASE)
    operations = _operations(forked, replace(first, to=place()))
    end = Path(f"{first.outcome}-refused")
    slow = replace(first, at=operations.index("DeltaTable.create_write_transaction"), until=str(end))
    pid = forked.start(slow)
    _wait_for_a_lease(first.to)
    second = replace(orders(first.to), lease_seconds=LONG_LEASE, clock_seconds=clock_seconds)
    refused = forked.run(second)
    end.touch()
    outcome = forked.ending(pid, slow)
    assert refused is not None and refused.exit_code == LeaseError.exit_code, refused
    assert SENTENCE.fullmatch(refused.said or "") and f"process {pid} " in (refused.said or ""), refused.said
    assert outcome is not None and outcome.error is None, outcome
    assert oracle.complaints(first.to, undisturbed) == []


def test_a_driver_that_slept_through_the_end_of_its_lease_changes_nothing(
    place: Callable[[], str], orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    """Stopped anywhere; another takes over and finishes; then the first wakes up."""
    example = replace(orders(place()), lease_seconds=SHORT_LEASE)
    operations = _operations(forked, example)
    begun = operations.index("DeltaTable.create_write_transaction")  # before, it has no lease or changes no table
    points = [(number, when) for number in range(begun, len(operations)) for when in ("before", "after")]
    failures, refused = [], 0
    for number, when in random.Random(SEED).sample(points, min(SLEEPERS, len(points))):
        order = replace(orders(place()), lease_seconds=SHORT_LEASE)
        sleeper = replace(order, at=number, when=when, signal=signal.SIGSTOP)
        told = list(_woken_too_late(forked, sleeper, order, undisturbed))
        refused += told == [LeaseError.__name__]
        failures += [f"asleep {when} {number}, {operations[number]}: {t}" for t in told if t != LeaseError.__name__]
    assert failures == []
    assert refused >= SLEEPERS / 3, "hardly any of them found out"


def _woken_too_late(forked: Zygote, sleeper: Order, order: Order, undisturbed: Holdings) -> Iterator[str]:
    """What is wrong; the name of LeaseError stands for an ending by it, which is right."""
    pid = forked.start(sleeper)
    if not os.WIFSTOPPED(forked.wait(pid)):
        return  # a heart that beat more or less often: this time, the operation had another number
    second = forked.run(replace(order, outcome=f"{order.outcome}-second"))
    before = _commits(order.to)
    os.kill(pid, signal.SIGCONT)
    first = forked.ending(pid, sleeper)
    assert first is not None
    if second is None or second.error is not None:
        yield f"the second driver raised {second and second.trace}"
    if first.error is not None and (first.error != LeaseError.__name__ or not SENTENCE.fullmatch(first.said or "")):
        yield f"the sleeper raised {first.trace}"
    if _commits(order.to) != before:
        yield "the sleeper committed after it woke"
    yield from oracle.complaints(order.to, undisturbed)
    if first.error == LeaseError.__name__:
        yield LeaseError.__name__


@pytest.mark.parametrize("clock_seconds", [HOUR, -HOUR])
def test_a_wrong_clock_changes_nothing(
    tmp_path: Path, clock_seconds: float, orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    """Killed by the one time, finished by the other: on disk, for S3 refuses whoever is a quarter of an hour off."""
    order = orders(str(tmp_path / "tables"))
    operations = _operations(forked, orders(str(tmp_path / "whole")))
    middle = len(operations) // 2
    assert forked.run(replace(order, at=middle, clock_seconds=clock_seconds)) is None
    outcome = forked.run(replace(order, clock_seconds=-clock_seconds))
    assert outcome is not None and outcome.error is None, outcome
    assert oracle.complaints(order.to, undisturbed) == []


@pytest.mark.parametrize("largest_file", [64, 300, 1500, 2500, 4000])
def test_a_file_that_may_not_grow_ends_the_run_in_one_sentence(
    tmp_path: Path, largest_file: int, orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    order = orders(str(tmp_path / "tables"))
    outcome = forked.run(replace(order, largest_file=largest_file))
    assert outcome is not None
    assert outcome.exit_code == DestinationError.exit_code and SENTENCE.fullmatch(outcome.said or ""), outcome
    resumed = forked.run(order)
    assert resumed is not None and resumed.error is None, resumed
    assert oracle.complaints(order.to, undisturbed) == []


@pytest.mark.parametrize("kibibytes", [16, 48, 80, 112])  # a run needs 136
def test_a_full_disk_ends_the_run_in_one_sentence(
    tmp_path: Path, kibibytes: int, orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if _mount(disk, f"size={kibibytes}k") != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        order = orders(str(disk / "tables"))
        outcome = forked.run(order)
        assert outcome is not None and outcome.exit_code == DestinationError.exit_code, outcome
        assert SENTENCE.fullmatch(outcome.said or ""), outcome.said
        assert _mount(disk, "remount,size=16m") == 0
        resumed = forked.run(order)
        assert resumed is not None and resumed.error is None, resumed
        assert oracle.complaints(order.to, undisturbed) == []
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _mount(folder: Path, options: str) -> int:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode


def _operations(forked: Zygote, order: Order) -> list[str]:
    outcome = forked.run(order)
    assert outcome is not None and outcome.error is None, outcome
    return outcome.operations


def _wait_for_a_lease(to: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if any(path.endswith(".beat") for path in oracle.objects(to, "lease")):
            return
        time.sleep(0.05)
    raise AssertionError("nobody took the lease")


def _commits(to: str) -> set[str]:
    return {f"{name}/{path}" for name in oracle.COLUMNS for path in oracle.objects(to, f"{name}/_delta_log")}
