"""How far a destination is, counted on tables whose every number is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.status import status
from pipeline.config import ReadOptions
from pipeline.records import MEDIA
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import Writer
from tests.writers import WriterAt

Call = Callable[..., Any]  # gives `Done` of conftest.py
Results = Callable[..., pa.Table]

BYTES = {"done": 300, "half": 300, "waiting": 600, "broken": 5000}  # the done one tells 0.6 s of audio per byte


def start_run(store: Store, ago: timedelta) -> None:
    started = datetime.now(UTC) - ago
    run = json.dumps({"started_at": started.isoformat()}).encode()
    store.objects.create(f"runs/{started:%Y%m%dT%H%M%SZ}-x.json", run)


@pytest.fixture
def tables(tmp_path: Path, results: Results, writer_at: WriterAt) -> Writer:
    """A run of an hour ago: one file done (180 s), one half done (120 s), one waiting, one broken."""
    store = writer_at(str(tmp_path / "tables"))
    seen = {"seen_at": datetime.now(UTC)}
    media = [{"media_id": name, "uri": f"s3://archive/{name}.mp3", "bytes": size} for name, size in BYTES.items()]
    store.add_media(pa.Table.from_pylist([row | seen for row in media], schema=MEDIA))
    start_run(store, timedelta(hours=1))
    broken = results("broken", parts=1, status="rejected", error="too long", segment_rows=None, end=0.0)
    for batch in (results("done", parts=3), results("half", parts=3).slice(0, 2), broken):
        store.publish([prepare(store.objects, batch)])
    return store


def test_every_file_is_counted_once(tables: Store) -> None:
    found = status(tables.objects.url)
    assert (found.files, found.done, found.half_done, found.pending, found.failed) == (4, 1, 1, 1, 1)
    assert found.hours == pytest.approx(300 / 3600)
    assert found.segments == 5 * 3


def test_what_failed_too_often_is_counted(tables: Writer, results: Results) -> None:
    for attempt in range(2, ReadOptions().retries + 3):
        failed = results("broken", parts=1, status="timeout", attempts=attempt, segment_rows=None)
        tables.publish([prepare(tables.objects, failed)])
    found = status(tables.objects.url)
    assert (found.failed, found.quarantined) == (1, 1)


def test_speed_and_time_left(tables: Store) -> None:
    """Left is all of `waiting` (600 bytes: 360 s) and what is missing of `half` (300 bytes: 180 s, less 120 s)."""
    found = status(tables.objects.url)
    assert found.speed == pytest.approx(300 / 3600, rel=0.01)
    assert found.seconds_left == pytest.approx((360 + 60) / (300 / 3600), rel=0.01)
    assert found.last_commit and found.last_commit.endswith("+00:00")
    assert datetime.now(UTC) - datetime.fromisoformat(found.last_commit) < timedelta(minutes=1)


def test_a_copy_costs_no_time(tables: Writer, results: Results) -> None:
    """The same bytes under another name count as hours of the archive, not as work."""
    before = status(tables.objects.url)
    copy = results(
        "waiting", parts=1, same_as="done", status="same", part_id="copy", segment_rows=None, start=0.0, end=0.0
    )
    tables.publish([prepare(tables.objects, copy)])
    after = status(tables.objects.url)
    assert (after.done, after.pending) == (2, 0)
    assert after.hours == pytest.approx(before.hours + 180 / 3600)
    assert after.speed == pytest.approx(before.speed, rel=0.01)


def test_only_the_latest_run_tells_the_speed(tables: Store, results: Results) -> None:
    start_run(tables, timedelta(seconds=0))
    before = status(tables.objects.url)
    assert before.speed is None and before.seconds_left is None and before.last_commit
    tables.publish([prepare(tables.objects, results("half", parts=3).slice(2, 1))])
    after = status(tables.objects.url)
    assert after.speed and after.speed > 1, "60 seconds in a moment"
    assert (after.done, after.half_done) == (2, 0)


def test_when_all_is_done_nothing_is_left(tmp_path: Path, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(str(tmp_path / "tables"))
    start_run(store, timedelta(minutes=1))
    store.publish([prepare(store.objects, results("a"))])
    found = status(store.objects.url)
    assert (found.files, found.done, found.seconds_left) == (1, 1, None)


def test_before_the_first_run(tmp_path: Path, earwitness: Call, writer_at: WriterAt) -> None:
    url = writer_at(str(tmp_path / "tables")).objects.url
    lines = earwitness("status", url).out.splitlines()
    assert lines == [
        "files     0 of 0 done, 0 half done, 0 pending, 0 failed, 0 of them quarantined",
        "audio     0 s",
        "segments  0",
        "stored    nothing yet",
    ]


def test_four_lines_for_people(tables: Store, earwitness: Call) -> None:
    done = earwitness("status", tables.objects.url)
    files, audio, segments, stored = done.out.splitlines()
    assert files == "files     1 of 4 done, 1 half done, 1 pending, 1 failed, 0 of them quarantined"
    assert audio == "audio     5 min, 0.1 × real time in the latest run, about 84 min left"
    assert segments == "segments  15"
    assert datetime.now(UTC) - datetime.fromisoformat(stored.removeprefix("stored").strip(" UTC") + "Z") < timedelta(
        minutes=2
    )
    assert (done.code, done.err) == (0, "")


def test_one_line_for_machines(tables: Store, earwitness: Call) -> None:
    done = earwitness("status", tables.objects.url, "--json")
    (line,) = done.out.splitlines()
    assert json.loads(line) == vars(status(tables.objects.url))
