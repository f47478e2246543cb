"""`earwitness status`: how far a destination is, from its tables alone; no run needs to be alive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from jobs import console
from pipeline import catalog
from pipeline.store import Store

_COUNTS = """
    SELECT count(*) AS files, count(*) FILTER (complete) AS done, count(*) FILTER (status = 'pending') AS pending,
        count(*) FILTER (parts_failed > 0) AS failed,
        count(*) FILTER (NOT complete AND parts_failed = 0 AND status <> 'pending') AS half_done,
        coalesce(sum(hours), 0) AS hours, coalesce(sum(segments), 0)::BIGINT AS segments,
        coalesce(sum(bytes) FILTER (complete), 0)::BIGINT AS bytes_done,
        coalesce(sum(bytes) FILTER (NOT complete AND parts_failed = 0), 0)::BIGINT AS bytes_left
    FROM files"""
_SINCE = """
    SELECT coalesce(sum("end" - "start"), 0) AS seconds, max(committed_at) AS last_commit
    FROM parts WHERE committed_at >= TIMESTAMPTZ '{started}'"""


@dataclass(frozen=True)
class Status:
    """Files and hours of one destination. `seconds_left` is None where there is nothing to tell it by."""

    files: int
    done: int
    half_done: int
    pending: int
    failed: int
    hours: float
    segments: int
    speed: float | None  # times real time, in the latest run
    seconds_left: float | None
    last_commit: str | None


def status(dest: str) -> Status:
    """Read the status of the tables at `dest`; the speed is that of the latest run, from its start to its last commit.

    Raises: `DestinationError` when there are none.
    """
    store = Store.open(dest)
    counts = catalog.query(store, _COUNTS).to_pylist()[0]
    runs = store.runs()
    speed = last_commit = None
    if runs:
        started = datetime.fromisoformat(runs[-1]["started_at"])
        latest = catalog.query(store, _SINCE.format(started=started.isoformat())).to_pylist()[0]
        last_commit = latest["last_commit"]
        speed = latest["seconds"] / (last_commit - started).total_seconds() if last_commit else None
    done, left = counts.pop("bytes_done"), counts.pop("bytes_left")
    seconds_left = counts["hours"] * 3600 * left / done if done else None
    return Status(
        **counts,
        speed=speed,
        seconds_left=seconds_left / speed if speed and seconds_left else None,
        last_commit=last_commit.isoformat(timespec="seconds") if last_commit else None,
    )


def show_status(dest: str, as_json: bool) -> None:
    """Print the status of `dest` in four lines, or as one line of JSON."""
    found = status(dest)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    speed = f", {found.speed:.1f} × real time" if found.speed else ""
    left = f", {console.duration(found.seconds_left)} left" if found.seconds_left else ""
    console.out.print(
        f"files     {found.done} of {found.files} done, {found.half_done} half done, "
        f"{found.pending} pending, {found.failed} failed\n"
        f"audio     {console.duration(found.hours * 3600)}{speed}{left}\n"
        f"segments  {found.segments:,}\n"
        f"last      {found.last_commit or 'never'}"
    )
