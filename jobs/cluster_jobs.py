"""`earwitness jobs`: what this project has running on a cluster, and what ran there: listed, stopped, read.

A job here is that of a coordinator; its slices belong to it. Only jobs that say that they are ours are touched. It
refuses to know how a job is started (`submit.py`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from jobs import console, orders
from jobs.orders import MARK, parse_event
from jobs.ray_jobs import ENDED, RayJobs
from jobs.slice_jobs import COORDINATOR, SLICE
from model.errors import UsageError

WHAT = pa.schema([(name, pa.string()) for name in ("job", "what", "status", "started", "progress")])


def show_jobs(address: str, as_json: bool) -> None:
    """Print every job of ours, newest first: what it transcribes to where, how it is, and how far."""
    jobs = RayJobs.at(address)
    rows = [_row(jobs, job) for job in reversed(jobs.all(**{MARK: COORDINATOR}))]
    if as_json:
        print(json.dumps(rows))
    else:
        console.show(pa.Table.from_pylist(rows, schema=WHAT))


def stop(address: str, name: str) -> None:
    """End a job and its slices; returns when they have ended. Raises: `UsageError` when it is no job of ours."""
    jobs = RayJobs.at(address)
    if _ours(jobs, name).status in ENDED:
        console.out.print(f"{name} had ended before.")
        return
    jobs.interrupt(name)
    slices = [job.submission_id for job in _slices(jobs, name) if job.status not in ENDED]
    for member in slices:
        jobs.interrupt(member)
    for member in (name, *slices):
        jobs.wait(member)
    console.out.print(f"{name} is stopped; what was stored stays, and the same submit goes on from there.")


def show_logs(address: str, name: str) -> None:
    """Print all that a job and its slices have printed. Raises: `UsageError` when it is no job of ours."""
    jobs = RayJobs.at(address)
    members = [_ours(jobs, name), *_slices(jobs, name)]
    for job in members:
        if len(members) > 1:
            console.out.print(f"── {job.submission_id}: {job.status.lower()}")
        console.out.print(console.harmless(jobs.log(job.submission_id)), markup=False, soft_wrap=True, end="")


def _ours(jobs: RayJobs, name: str) -> Any:
    job = jobs.find(name)
    if (job.metadata or {}).get(MARK) != COORDINATOR:
        raise UsageError(
            f"{name} is no job of earwitness: `earwitness jobs list --address {jobs.address}` names those there are."
        )
    return job


def _slices(jobs: RayJobs, name: str) -> list[Any]:
    return jobs.all(**{MARK: SLICE, "coordinator": name})


def _row(jobs: RayJobs, job: Any) -> dict[str, str]:
    note = job.metadata
    started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
    return {
        "job": job.submission_id,
        "what": f"{note['sources']} → {note['to']}, {note['model']}",
        "status": job.status.lower(),
        "started": f"{started:%Y-%m-%d %H:%M} UTC",
        "progress": _progress(jobs.log(job.submission_id)),
    }


def _progress(log: str) -> str:
    """The last thing that a job told of itself."""
    for line in reversed(log.splitlines()):
        event = parse_event(line)
        if event is not None:
            return _told(event)
    return ""


def _told(event: dict[str, Any]) -> str:
    if event[MARK] == orders.FINISHED:
        summary = event["summary"]
        return f"{console.count(summary['parts'], 'part')}, {console.duration(summary['audio_seconds'])}"
    text: str = event.get("line") or event.get("sentence") or ""
    return text
