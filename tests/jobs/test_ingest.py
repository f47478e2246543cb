"""Every night: what changed and nothing else, within bounds, and never beside another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from jobs.ingest import bounds, line, moment
from jobs.samples import fetch_samples
from model.errors import UsageError
from pipeline import catalog
from pipeline.records import RUNS
from pipeline.store import Store
from pipeline.writer import Writer

Call = Callable[..., Any]  # gives `Done` of conftest.py
NOW = datetime(2026, 3, 28, 22, 30, tzinfo=timezone(timedelta(hours=1)))


def ask(dest: Path, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.query(Store.open(str(dest)), sql).to_pylist()
    return rows


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("23:00", NOW.replace(hour=23, minute=0)),
        ("06:00", NOW.replace(day=29, hour=6, minute=0)),
        ("6:05", NOW.replace(day=29, hour=6, minute=5)),
        ("22:30", NOW.replace(day=29)),
        ("90m", NOW + timedelta(minutes=90)),
        ("1.5h", NOW + timedelta(minutes=90)),
        ("45s", NOW + timedelta(seconds=45)),
        ("2026-03-29T06:00", NOW.replace(day=29, hour=6, minute=0)),
        ("2026-03-29T06:00+00:00", datetime(2026, 3, 29, 6, tzinfo=UTC)),
    ],
)
def test_a_deadline_can_be_said_in_three_ways(given: str, meant: datetime) -> None:
    assert moment(given, NOW) == meant


@pytest.mark.parametrize("given", ["", "soon", "24:00", "6:60", "90", "-5m", "06:00:00"])
def test_what_is_no_time_is_one_sentence(given: str) -> None:
    with pytest.raises(UsageError, match="give a time as 06:00, 90m, or 2026-01-31T06:00.$"):
        moment(given, NOW)


def test_a_time_that_has_passed_is_refused() -> None:
    with pytest.raises(UsageError, match="which has passed"):
        moment("2026-03-28T22:30", NOW)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_a_night_has_hours(hours: float) -> None:
    with pytest.raises(UsageError, match="^--max-hours is .*: give a number above 0.$"):
        bounds(hours, None)


def test_the_oldest_come_first_with_or_without_a_bound() -> None:
    assert bounds(None, None).most_seconds == float("inf")
    assert bounds(2.0, None).most_seconds == 7200.0
    assert bounds(None, "1h").deadline is not None


# --- the last line ------------------------------------------------------------------------------------------------

DONE = dict(new=5, changed=2, missing=1, audio_hours=1.0, speed=41.0)
ROW = DONE | dict(failed_parts=0, remaining=0, cost_estimate=None, ended="done")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "5 new, 2 changed, 1 missing; 60 min of audio at 41.0 × real time; 0 parts failed, 0 files left."),
        (
            dict(missing=None, remaining=3, ended="deadline", cost_estimate=1.234),
            "5 new, 2 changed; 60 min of audio at 41.0 × real time; 0 parts failed, 3 files left by the deadline; "
            "cost 1.23.",
        ),
        (
            dict(failed_parts=1, remaining=1, ended="max_hours"),
            "5 new, 2 changed, 1 missing; 60 min of audio at 41.0 × real time; 1 part failed, 1 file left by "
            "--max-hours.",
        ),
        (
            dict(remaining=None, ended="interrupted"),
            "5 new, 2 changed, 1 missing; 60 min of audio at 41.0 × real time; 0 parts failed, the rest left.",
        ),
    ],
)
def test_a_night_is_one_line(changes: dict[str, Any], said: str) -> None:
    assert line(ROW | changes) == said


# --- whole --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nights(place: Path) -> tuple[str, ...]:
    (place / "night.toml").write_text("model = 'tiny.en'\n[run]\nprecision = 'float32'\nparts_per_shard = 2\n")
    return ("ingest", "archive", "--to", "tables", "--config", "night.toml")


@pytest.mark.timeout(300)
def test_exactly_what_changed_is_done(earwitness: Call, place: Path, nights: tuple[str, ...]) -> None:
    """Five new objects, two changed and one deleted, between two nights; and a third for which nothing is left."""
    archive, clips = place / "archive", sorted((fetch_samples() / "en").glob("*.wav"))
    hello, counting, fox = (next(clip for clip in clips if clip.stem == name) for name in CLIPS)
    for name in ("kept", "gone"):
        shutil.copy(fox, archive / f"{name}.wav")
    first = earwitness(*nights)
    assert (first.code, first.out.startswith("4 new, 0 changed, 0 missing; ")) == (0, True), first.err
    before = ask(place / "tables", "SELECT uri, media_id, part_id FROM all_parts ORDER BY ALL")
    texts_before = {file["file"]: file["text"] for file in ask(place / "tables", TEXTS)}

    (archive / "gone.wav").unlink()
    shutil.copy(counting, archive / "hello_world.wav")
    shutil.copy(hello, archive / "counting.wav")
    for number in range(5):
        (archive / f"new {number}.wav").write_bytes(hello.read_bytes() + bytes(2 * number))
    done = earwitness(*nights, "--json", "--cost-per-hour", "3.6")
    assert done.code == 0, done.err
    row = json.loads(done.out)
    assert list(row) == RUNS.names
    assert [row[name] for name in ("listed", "new", "changed", "missing", "pending")] == [8, 5, 2, 1, 7]
    assert (row["command"], row["ended"], row["remaining"]) == ("ingest", "done", 0)
    assert row["cost_estimate"] == pytest.approx(row["worker_seconds"] / 1000)

    texts = {file["file"]: file["text"] for file in ask(place / "tables", TEXTS)}
    assert texts["hello_world.wav"] == texts_before["counting.wav"] != texts["counting.wav"]
    assert texts["counting.wav"] == texts_before["hello_world.wav"] and "lazy dog" in texts["gone.wav"]
    assert {f"new {number}.wav" for number in range(5)} < texts.keys()
    stored = ask(place / "tables", "SELECT uri, media_id, part_id FROM all_parts ORDER BY ALL")
    assert len(stored) == len(before) + 7 and all(part in stored for part in before)

    again = earwitness(*nights)
    assert (again.code, again.out.startswith("0 new, 0 changed, 1 missing; 0 s of audio ")) == (0, True)
    commands = ask(place / "tables", "SELECT command, ended, new, parts FROM runs ORDER BY started_at")
    assert [(run["command"], run["ended"], run["new"]) for run in commands] == [
        ("ingest", "done", 4),
        ("ingest", "done", 5),
        ("ingest", "done", 0),
    ]
    assert [run["parts"] for run in commands] == [4, 7, 0]


CLIPS = ("hello_world", "counting", "quick_brown_fox")
TEXTS = "SELECT parse_filename(uri) AS file, string_agg(text, ' ' ORDER BY start) AS text FROM segments GROUP BY uri"


def test_beside_another_run_a_night_says_who_that_is(earwitness: Call, place: Path, nights: tuple[str, ...]) -> None:
    with Writer.open(str(place / "tables")) as other:
        done = earwitness(*nights)
    assert (done.code, done.out) == (6, "")
    (sentence,) = done.err.splitlines()
    assert f"is being written by process {other.lease.holder.pid} on " in sentence
    assert ask(place / "tables", "FROM runs") == []


@pytest.mark.timeout(240)
def test_what_a_bound_leaves_is_done_by_the_next_night(earwitness: Call, place: Path, nights: tuple[str, ...]) -> None:
    """The older file in a night of a second of audio; then nothing, for the deadline is there before the first file."""
    done = earwitness(*nights, "--max-hours", "0.0001")
    assert done.code == 0 and done.out.rstrip().endswith("0 parts failed, 1 file left by --max-hours.")
    late = earwitness(*nights, "--deadline", "0s")
    assert late.code == 0 and late.out.rstrip().endswith("0 parts failed, 1 file left by the deadline.")
    rows = ask(place / "tables", "SELECT ended, pending, remaining, parts FROM runs ORDER BY started_at")
    assert [tuple(row.values()) for row in rows] == [("max_hours", 1, 1, 1), ("deadline", 1, 1, 0)]
    assert len(ask(place / "tables", "SELECT uri FROM files WHERE status = 'pending'")) == 1
