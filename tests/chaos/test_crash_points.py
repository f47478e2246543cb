"""A run is killed at each operation of its storage, and run again: the tables are as if nothing had happened.

On local disk operations are counted in the process (`doomed.py`), on S3 as requests on the wire (`proxy.py`), so that
those of deltalake are among them. A kill beside a read, or after a write, is a kill before the next write: the storage
is the same. So by default runs are killed before each write on local disk, and around a seeded sample of them on S3.
EARWITNESS_CHAOS=1 kills before and after every operation, reads as well.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import oracle
from tests.chaos.conftest import EVERYWHERE, SEED, Orders
from tests.chaos.doomed import Order
from tests.chaos.oracle import Holdings
from tests.chaos.proxy import CHANGING, Call, Fault, Proxy
from tests.chaos.zygote import Zygote
from tests.conftest import BUCKET

# Of our own methods, those that only look.
LOOKING = ("read", "read_many", "open", "exists", "list", "is_empty", "modified_at", "probe", "table_uri")
READS = {f"ObjectStore.{name}" for name in LOOKING} | {
    f"DeltaTable.{name}" for name in ("__init__", "is_deltatable", "update_incremental")
}
S3_SAMPLE = 8
ATTEMPTS = 5  # to kill a run at a request that it may not come to
TWICE_KILLED = 200 if EVERYWHERE else 6

pytestmark = pytest.mark.timeout(3600 if EVERYWHERE else 240)


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], str]:
    """Makes destinations on local disk that nothing was stored under yet."""
    return lambda: str(tmp_path / uuid.uuid4().hex / "tables")


def test_killed_at_any_operation_on_local_disk(
    place: Callable[[], str], orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    whole = forked.run(orders(place()))
    assert whole is not None and whole.error is None, whole
    changing = [number for number, operation in enumerate(whole.operations) if operation not in READS]
    points = [(number, "before") for number in changing] + [(changing[-1], "after")]
    if EVERYWHERE:
        points = [(number, when) for number in range(len(whole.operations)) for when in ("before", "after")]
    assert len(points) > 60
    failures = []
    for number, when in points:
        order = replace(orders(place()), at=number, when=when)
        assert forked.run(order) is None, f"it outlived operation {number}, {whole.operations[number]}"
        failures += _told(f"killed {when} {number}, {whole.operations[number]}", _resumed(forked, order, undisturbed))
    assert failures == []


def test_killed_again_while_it_resumes(
    place: Callable[[], str], orders: Orders, forked: Zygote, undisturbed: Holdings
) -> None:
    whole = forked.run(orders(place()))
    assert whole is not None
    chance, failures, killed = random.Random(SEED), [], 0
    for _ in range(TWICE_KILLED):
        order = orders(place())
        for _ in range(2):
            point = chance.randrange(len(whole.operations)), chance.choice(["before", "after"])
            # A resumed run has fewer operations: the point may lie behind its end.
            killed += forked.run(replace(order, at=point[0], when=point[1])) is None
            failures += _told(f"killed {point[1]} {point[0]}", _visible(order, undisturbed))
        failures += _told("killed twice", _resumed(forked, order, undisturbed))
    assert failures == []
    assert killed > 1.2 * TWICE_KILLED, "hardly any run was killed twice"


def test_killed_at_any_request_on_s3(orders: Orders, forked: Zygote, proxy: Proxy, undisturbed: Holdings) -> None:
    proxy.expect(lambda call: None)
    whole = forked.run(replace(orders(_bucket()), env=proxy.env()))
    assert whole is not None and whole.error is None, whole
    calls = [call for call in proxy.calls if EVERYWHERE or call.verb in CHANGING]
    points = [(call, fault) for call in calls for fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)]
    assert len(points) > 50
    if not EVERYWHERE:
        points = random.Random(SEED).sample(points, S3_SAMPLE)
    failures = []
    for call, fault in points:
        order = _killed_on_the_wire(forked, proxy, lambda: replace(orders(_bucket()), env=proxy.env()), call, fault)
        assert order is not None, f"it outlived request {call}"
        failures += _told(f"{fault.value}, {call}", _resumed(forked, order, undisturbed))
    assert failures == []


def _killed_on_the_wire(
    forked: Zygote, proxy: Proxy, make: Callable[[], Order], call: Call, fault: Fault
) -> Order | None:
    """What was ordered of a run that was killed at a request of this number; None if each outlived it.

    Commits and heartbeats go by the clock, so a run may make fewer requests than the one before: then at its last.
    """
    number = call.number
    for _ in range(ATTEMPTS):
        order = make()
        proxy.expect(lambda call, last=number: fault if call.number == last else None)  # type: ignore[misc]
        proxy.victim = forked.start(order)
        if forked.ending(proxy.victim, order) is None:
            return order
        assert not proxy.struck, f"it lived on after {proxy.struck}"
        number = len(proxy.calls) - 1
    return None


def _resumed(forked: Zygote, order: Order, undisturbed: Holdings) -> Iterator[str]:
    """What is wrong after one more run that nothing disturbs."""
    outcome = forked.run(replace(order, at=None, env={}))
    assert outcome is not None
    if outcome.error is not None:
        yield f"the next run raised {outcome.trace}"
    else:
        yield from oracle.complaints(order.to, undisturbed)


def _visible(order: Order, undisturbed: Holdings) -> Iterator[str]:
    """What a user sees between two runs: nothing that should not be there, and nothing twice."""
    if not Path(order.to, "media", "_delta_log").exists():
        return  # killed before it was a destination
    shown = oracle.shown(order.to)
    if strange := undisturbed.missing(shown):
        yield f"{strange} rows are shown that no run should make"
    if doubled := shown.doubled():
        yield f"{doubled} rows are shown twice"


def _told(what: str, complaints: Iterator[str]) -> list[str]:
    return [f"{what}: {complaint}" for complaint in complaints]


def _bucket() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
