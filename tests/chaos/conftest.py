"""What the tests under fire share: the archive, its rehearsal, a process that forks runs, and a run undisturbed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest

from infra.s3_server import S3Server
from jobs.samples import fetch_samples
from model.errors import ModelError, SourceError
from pipeline.job import Model
from tests.chaos import oracle
from tests.chaos.doomed import Order
from tests.chaos.oracle import Holdings
from tests.chaos.proxy import Proxy, faulty
from tests.chaos.rehearsal import CONFIG, make_archive, rehearse
from tests.chaos.zygote import Zygote, zygote

Orders = Callable[[str], Order]
EVERYWHERE = os.environ.get("EARWITNESS_CHAOS") == "1"  # else a bounded sample
SEED = int(os.environ.get("EARWITNESS_CHAOS_SEED", "20261122"))


@pytest.fixture(scope="session")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Orders:
    """Makes the order of an undisturbed run to a destination: always over the same archive."""
    root = tmp_path_factory.mktemp("chaos")
    try:
        samples, model = fetch_samples(), Model.of(CONFIG)
    except (SourceError, ModelError) as error:
        pytest.skip(str(error))
    archive = make_archive(samples, root / "archive")
    rehearsed = rehearse(archive, model, root / "rehearsed.parquet")
    numbers = itertools.count()

    def order(to: str) -> Order:
        outcome = root / f"outcome-{next(numbers)}.json"
        return Order(str(archive), str(rehearsed), to, str(outcome), asdict(model))

    return order


@pytest.fixture(scope="session")
def forked(s3: S3Server) -> Iterator[Zygote]:
    """Forks runs; its environment points at the S3 server."""
    with zygote() as started:
        yield started


@pytest.fixture(scope="session")
def undisturbed(orders: Orders, forked: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Holdings:
    """The rows that every disturbed run must come to."""
    order = orders(str(tmp_path_factory.mktemp("undisturbed") / "tables"))
    outcome = forked.run(replace(order))
    assert outcome is not None and outcome.error is None, outcome
    expected = oracle.plainly(order.to)
    assert oracle.complaints(order.to, expected) == []
    assert all(expected.tables.values())
    return expected


@pytest.fixture(scope="session")
def proxy(s3: S3Server) -> Iterator[Proxy]:
    """A proxy in front of the S3 server."""
    with faulty(s3.endpoint) as started:
        yield started
