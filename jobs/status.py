"""`earwitness status`: how far a destination is, from its tables alone; no run needs to be alive."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from duckdb import DuckDBPyConnection

from jobs import console
from pipeline import catalog
from pipeline.store import Store

_COUNTS = """
    SELECT count(*) AS files, count(*) FILTER (complete) AS done,
        count(*) FILTER (NOT complete AND parts_failed = 0 AND status <> 'pending') AS half_done,
        count(*) FILTER (status = 'pending') AS pending, count(*) FILTER (parts_failed > 0) AS failed,
        count(*) FILTER (quarantined) AS quarantined,
        coalesce(sum(hours), 0) AS hours, coalesce(sum(segments), 0)::BIGINT AS segments
    FROM files"""
# The audio of what is not done, by the bytes per second of what is; a half done file has some of it behind it.
_LEFT = """
    SELECT coalesce(sum(bytes) FILTER (left_over), 0) * sum(seconds) FILTER (complete) / sum(bytes) FILTER (complete)
        - coalesce(sum(seconds) FILTER (left_over), 0) AS seconds
    FROM (SELECT *, NOT complete AND parts_failed = 0 AS left_over FROM files)"""
_LATEST = """
    SELECT sum("end" - "start") FILTER (committed_at >= TIMESTAMPTZ '{started}') AS seconds,
        max(committed_at) AS last_commit
    FROM parts WHERE same_as IS NULL"""


@dataclass(frozen=True)
class Status:
    """Files and hours of one destination. `seconds_left` is None where there is nothing to tell it by."""

    files: int
    done: int
    half_done: int
    pending: int
    failed: int
    quarantined: int  # of those: failed so often that runs leave them alone
    hours: float
    segments: int
    speed: float | None  # times real time, in the latest run
    seconds_left: float | None
    last_commit: str | None  # ISO 8601, UTC


def status(dest: str) -> Status:
    """Read the status of the tables at `dest`; the speed is that of the latest run, from its start to its last commit.

    Raises: `DestinationError` when there are none.
    """
    store = Store.open(dest)
    latest_run = store.latest_run()
    started = datetime.fromisoformat(latest_run["started_at"]) if latest_run else datetime.max.replace(tzinfo=UTC)
    with closing(catalog.connect(store)) as connection:
        counts = _row(connection, _COUNTS)
        audio_left = _row(connection, _LEFT)["seconds"] or 0.0
        latest = _row(connection, _LATEST.format(started=started.isoformat()))
    last = latest["last_commit"]
    speed = latest["seconds"] / (last - started).total_seconds() if latest["seconds"] else None
    return Status(
        **counts,
        speed=speed,
        seconds_left=audio_left / speed if speed and audio_left > 0 else None,
        last_commit=last.astimezone(UTC).isoformat(timespec="seconds") if last else None,
    )


def show_status(dest: str, as_json: bool) -> None:
    """Print the status of `dest` in four lines, or as one line of JSON."""
    found = status(dest)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    speed = f", {console.times(found.speed)} real time in the latest run" if found.speed else ""
    left = f", about {console.duration(found.seconds_left)} left" if found.seconds_left else ""
    stored = f"{found.last_commit[:16].replace('T', ' ')} UTC" if found.last_commit else "nothing yet"
    console.out.print(
        f"files     {found.done:,} of {found.files:,} done, {found.half_done:,} half done, "
        f"{found.pending:,} pending, {found.failed:,} failed, {found.quarantined:,} of them quarantined\n"
        f"audio     {console.duration(found.hours * 3600)}{speed}{left}\n"
        f"segments  {found.segments:,}\n"
        f"stored    {stored}",
        soft_wrap=True,
    )


def _row(connection: DuckDBPyConnection, query: str) -> dict[str, Any]:
    (row,) = catalog.select(connection, query).to_pylist()
    return dict(row)
