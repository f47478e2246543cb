"""`earwitness ingest`: what is new or changed, every night, within the hours of a night.

The work is that of `jobs/transcribe.py`, with bounds: the oldest objects first, so many hours of audio at most, and no
object begun behind a deadline. What is left is done by the next night, and one line says what this one came to.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.console import count, duration, out, times
from jobs.progress import Progressing
from jobs.transcribe import Watcher
from model.errors import UsageError
from pipeline.lease import Holder
from pipeline.run import SECONDS_PER_HOUR, Bounds, Summary

_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([hms])")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def bounds(max_hours: float | None, deadline: str | None) -> Bounds:
    """What a night may do. With neither, everything; the oldest objects come first all the same.

    Raises: `UsageError` when there is no such time, or when it has passed.
    """
    if max_hours is not None and not max_hours > 0:
        raise UsageError(f"--max-hours is {max_hours:g}: give a number above 0.")
    until = None if deadline is None else moment(deadline, datetime.now().astimezone())
    return Bounds(math.inf if max_hours is None else max_hours, until)


def moment(given: str, now: datetime) -> datetime:
    """The time that is meant by `06:00`, the next one by the clock of this machine, by `90m`, or by an ISO 8601 date.

    Raises: `UsageError` when it is none of them, or has passed.
    """
    if clock := _CLOCK.fullmatch(given):
        today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return today if today > now else today + timedelta(days=1)
    if span := _SPAN.fullmatch(given):
        return now + timedelta(seconds=float(span[1]) * _UNITS[span[2]])
    try:
        found = datetime.fromisoformat(given)
    except ValueError:
        raise UsageError(f"--deadline is {given!r}: give a time as 06:00, 90m, or 2026-01-31T06:00.") from None
    found = found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
    if found <= now:
        raise UsageError(f"--deadline is {given!r}, which has passed: give a time to come.")
    return found


class Nightly(Progressing):
    """Shows a night to whoever reads its log: plan and progress, and one line at the end."""

    def waiting(self, holder: Holder, seconds: float) -> None:
        """Nothing: either the night begins soon, or an error says who has the tables."""

    def finished(self, summary: Summary) -> None:
        """Nothing: the line is that of the row."""

    def recorded(self, row: dict[str, Any]) -> None:
        out.print(line(row), markup=False, soft_wrap=True)


class Json(Watcher):
    """Says nothing until the end, then the row of the table of runs as one line of JSON."""

    def recorded(self, row: dict[str, Any]) -> None:
        times = {name: value.astimezone(UTC).isoformat() for name, value in row.items() if isinstance(value, datetime)}
        print(json.dumps(row | times))


def line(row: dict[str, Any]) -> str:
    """What a night came to, in one line: what was found, done, lost and left, and what it cost."""
    found = f"{row['new']:,} new, {row['changed']:,} changed"
    if row["missing"] is not None:
        found += f", {row['missing']:,} missing"
    done = f"{duration(row['audio_hours'] * SECONDS_PER_HOUR)} of audio at {times(row['speed'])} real time"
    left = "the rest" if row["remaining"] is None else count(row["remaining"], "file")
    rest = f"{count(row['failed_parts'], 'part')} failed, {left} left"
    if row["remaining"]:
        rest += " by the deadline" if row["ended"] == "deadline" else " by --max-hours"
    cost = "" if row["cost_estimate"] is None else f"; cost {row['cost_estimate']:,.2f}"
    return f"{found}; {done}; {rest}{cost}."
