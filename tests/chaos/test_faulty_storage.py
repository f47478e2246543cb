"""Each fault of a storage, at each verb: a run ends complete, or in one sentence, and the next run completes it.

Never a traceback, never a hang. Clients wait shorter here than they do by default, so that a stall takes seconds.
EARWITNESS_CHAOS=1 strikes at many requests of each verb instead of one.
"""

from __future__ import annotations

import random
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from model.errors import DestinationError
from tests.chaos import oracle
from tests.chaos.conftest import EVERYWHERE, SEED, Orders
from tests.chaos.doomed import Order
from tests.chaos.oracle import Holdings
from tests.chaos.proxy import VERBS, Call, Fault, Proxy
from tests.chaos.zygote import Zygote
from tests.conftest import BUCKET

FAULTS = (Fault.UNAVAILABLE, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.SHORT_BODY, Fault.STALL)
PATIENCE = 2.0  # seconds, with a storage that does not come back
BURST = 3  # refusals in a row
DEPARTURES = 12 if EVERYWHERE else 1
POSITIONS = 12 if EVERYWHERE else 1
# No object of a run is so large that it would be put in pieces, and deletions go one by one.
NEVER_SENT = {"POST"}
SENT = sorted(set(VERBS) - NEVER_SENT)
# All of each, or so many that every fault and every verb has its turn twice.
CASES = [
    (fault, verb)
    for row, fault in enumerate(FAULTS)
    for column, verb in enumerate(SENT)
    if EVERYWHERE or (column - row) % len(SENT) in (0, 2)
]
PATIENT = '{"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}'  # what fsspec reads for s3fs
SENTENCE = re.compile(r"[A-Z][^\n]+\.")

pytestmark = pytest.mark.timeout(3600 if EVERYWHERE else 120)


@pytest.fixture(scope="module")
def requests(orders: Orders, forked: Zygote, proxy: Proxy) -> Counter[str]:
    """How many requests of each verb a run makes."""
    proxy.expect(lambda call: None)
    outcome = forked.run(_through(proxy, orders(_bucket())))
    assert outcome is not None and outcome.error is None, outcome
    return Counter(call.verb for call in proxy.calls)


def test_a_run_sends_every_verb_but_one(requests: Counter[str]) -> None:
    assert set(VERBS) - requests.keys() == NEVER_SENT


@pytest.mark.parametrize(("fault", "verb"), CASES, ids=[f"{fault.value}-{verb}" for fault, verb in CASES])
def test_a_fault_is_survived_or_told_in_one_sentence(
    fault: Fault,
    verb: str,
    requests: Counter[str],
    orders: Orders,
    forked: Zygote,
    proxy: Proxy,
    undisturbed: Holdings,
) -> None:
    chance = random.Random(f"{SEED} {verb} {fault.value}")
    failures = []
    for position in chance.sample(range(requests[verb]), min(POSITIONS, requests[verb])):
        order = orders(_bucket())
        rule = Burst(verb, position, fault, BURST if fault is Fault.UNAVAILABLE else 1)
        proxy.expect(rule)
        told = list(_unsound_ending(forked, _through(proxy, order)))
        assert proxy.struck, f"nothing happened to {verb} {position}"
        failures += [f"{verb} {position}: {complaint}" for complaint in [*told, *_resumed(forked, order, undisturbed)]]
    assert failures == []


def test_a_storage_that_goes_away_for_good_ends_the_run_in_one_sentence(
    requests: Counter[str], orders: Orders, forked: Zygote, proxy: Proxy, undisturbed: Holdings
) -> None:
    for position in random.Random(SEED).sample(range(requests.total()), DEPARTURES):
        order = replace(orders(_bucket()), patience_seconds=PATIENCE)
        proxy.expect(lambda call, last=position: Fault.LOST_REQUEST if call.number >= last else None)  # type: ignore[misc]
        outcome = forked.run(_through(proxy, order))
        proxy.expect(lambda call: None)
        assert outcome is not None
        assert outcome.exit_code == DestinationError.exit_code and SENTENCE.fullmatch(outcome.said or ""), outcome
        assert list(_resumed(forked, order, undisturbed)) == []


class Burst:
    """A rule: from the `position`-th request of a verb on, `length` of them meet a fault."""

    def __init__(self, verb: str, position: int, fault: Fault, length: int) -> None:
        self._verb, self._fault = verb, fault
        self._numbers = range(position, position + length)
        self._seen = 0

    def __call__(self, call: Call) -> Fault | None:
        if call.verb != self._verb:
            return None
        self._seen += 1
        return self._fault if self._seen - 1 in self._numbers else None


def _unsound_ending(forked: Zygote, order: Order) -> Iterator[str]:
    outcome = forked.run(order)
    assert outcome is not None, "nobody killed it"
    if outcome.error is None:
        return
    if outcome.exit_code == 1:
        yield f"it raised {outcome.trace}"
    elif not SENTENCE.fullmatch(outcome.said or ""):
        yield f"it ended in more or less than one sentence: {outcome.said!r}"


def _resumed(forked: Zygote, order: Order, undisturbed: Holdings) -> Iterator[str]:
    outcome = forked.run(order)
    assert outcome is not None
    if outcome.error is not None:
        yield f"the next run raised {outcome.trace}"
    else:
        yield from oracle.complaints(order.to, undisturbed)


def _through(proxy: Proxy, order: Order) -> Order:
    return replace(order, env=proxy.env() | {"FSSPEC_S3": PATIENT})


def _bucket() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
