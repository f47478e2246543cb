"""What a job is told, and what it tells."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from jobs import orders
from jobs.orders import Order, SliceOrder, failure, parse_event, read, reporting_failure, written
from model.errors import DestinationError, EarwitnessError, LeaseError, ModelError, SourceError, UsageError
from model.options import DecodeOptions
from pipeline.config import Config, ReadOptions, RunOptions
from pipeline.job import Model
from pipeline.placement import Placement
from pipeline.run import Bounds

CONFIG = Config(
    "tiny.en",
    DecodeOptions(initial_prompt='It\'s "quoted"; $HOME\n', temperatures=(0.0, 0.4), language="de"),
    ReadOptions(part_seconds=math.inf),
    RunOptions(gpus=300),
)
ORDER = Order(
    ("s3://archive/a b", "/data/'x'"), "s3://tables/t", CONFIG, 8, Bounds(12.5, datetime(2026, 1, 31, 6, tzinfo=UTC))
)
SLICE = SliceOrder(CONFIG, Model("base", "0" * 64, 80), Placement(1, 0.0, 1.0, 4, 64, 4), "/t", "f", "board", 1 << 30)


@pytest.mark.parametrize("order", [ORDER, replace(ORDER, bounds=Bounds(math.inf)), SLICE])
def test_an_order_is_read_as_it_was_written(order: Order | SliceOrder) -> None:
    assert read(type(order), written(order)) == order


@pytest.mark.parametrize("text", ["", "{", "{}", '{"sources": 3}', written(SLICE)])
def test_an_order_of_another_version_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="install the same version of earwitness there as here"):
        read(Order, text)


def test_the_name_follows_from_what_is_asked_for_and_not_from_how() -> None:
    assert orders.MARK == "earwitness" and ORDER.name.startswith("earwitness-") and len(ORDER.name) == 23
    assert replace(ORDER, sources=ORDER.sources[::-1], gpus_per_job=1, bounds=Bounds(math.inf)).name == ORDER.name
    others = [
        replace(ORDER, sources=ORDER.sources[:1]),
        replace(ORDER, to="s3://tables/u"),
        replace(ORDER, config=replace(CONFIG, model="base")),
    ]
    assert len({order.name for order in (ORDER, *others)}) == 4


def test_events_are_found_among_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    orders.event(orders.PROGRESS, share=0.5, line="half")
    line = capsys.readouterr().out
    assert parse_event(line) == {"earwitness": "progress", "share": 0.5, "line": "half"}
    for other in ("", "Traceback", "{", '{"a": 1}', "[]", "{'earwitness': 1}"):
        assert parse_event(other) is None


@pytest.mark.parametrize("kind", [UsageError, SourceError, DestinationError, LeaseError, ModelError, EarwitnessError])
def test_an_error_there_is_the_same_error_here(kind: type[EarwitnessError], capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise kind("It went wrong.")

    assert reporting_failure(work) == kind.exit_code
    told = parse_event(capsys.readouterr().out)
    assert told is not None
    again = failure(told)
    assert type(again) is kind and str(again) == "It went wrong."


def test_work_that_is_done_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert reporting_failure(lambda: None) == 0
    assert capsys.readouterr().out == ""
