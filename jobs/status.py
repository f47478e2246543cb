"""`earwitness status`: how far a destination is, from its tables alone; no run needs to be alive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from jobs import console
from pipeline import catalog
from pipeline.store import Store

# Speed is taken over the commits of the last hour that had any: what a run is doing, not what the archive once did.
_COUNTS = """
    SELECT count(*) AS files, count(*) FILTER (complete) AS done, count(*) FILTER (status = 'pending') AS pending,
        count(*) FILTER (parts_failed > 0) AS failed,
        count(*) FILTER (NOT complete AND parts_failed = 0 AND status <> 'pending') AS half_done,
        coalesce(sum(hours), 0) AS hours, coalesce(sum(segments), 0)::BIGINT AS segments,
        coalesce(sum(bytes) FILTER (complete), 0)::BIGINT AS bytes_done,
        coalesce(sum(bytes) FILTER (NOT complete AND parts_failed = 0), 0)::BIGINT AS bytes_left
    FROM files"""
_SPEED = """
    SELECT sum("end" - "start") AS seconds, epoch(max(committed_at)) - epoch(min(committed_at)) AS elapsed,
        max(committed_at) AS last_commit
    FROM parts WHERE committed_at > (SELECT max(committed_at) FROM parts) - INTERVAL 1 HOUR"""


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
    speed: float | None  # times real time, over the last hour of commits
    seconds_left: float | None
    last_commit: str | None


def status(dest: str) -> Status:
    """Read the status of the tables at `dest`. Raises: `DestinationError` when there are none."""
    store = Store.open(dest)
    counts = catalog.query(store, _COUNTS).to_pylist()[0]
    recent = catalog.query(store, _SPEED).to_pylist()[0]
    speed = recent["seconds"] / recent["elapsed"] if recent["elapsed"] else None
    done, left = counts.pop("bytes_done"), counts.pop("bytes_left")
    hours_left = counts["hours"] * left / done if done else None
    return Status(
        **counts,
        speed=speed,
        seconds_left=hours_left * 3600 / speed if speed and hours_left is not None else None,
        last_commit=str(recent["last_commit"]) if recent["last_commit"] else None,
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
