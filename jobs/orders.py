"""What a job on a cluster is told, and what it tells: two kinds of orders, and events on lines of its log.

An order travels on the command line of its job, as JSON that anybody may read: it holds no credentials. An event is one
line of JSON among whatever else a log holds. It refuses to know how a log is read, and what becomes of an order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from model.errors import INTERRUPTED, EarwitnessError, UsageError
from pipeline.config import Config
from pipeline.job import Model
from pipeline.placement import Placement
from pipeline.run import Bounds
from pipeline.slices import GPUS_PER_JOB

NAME_DIGITS = 12  # of the hash in the name of a job
MARK = "earwitness"  # the key by which an event is known, and what the names of our jobs start with
WAITING, PLANNED, PROGRESS, FINISHED, FAILED = "waiting", "planned", "progress", "finished", "failed"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Order:
    """What the coordinator of an archive is told; its places are as every machine of the cluster knows them."""

    sources: tuple[str, ...]
    to: str
    config: Config
    gpus_per_job: int = GPUS_PER_JOB
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def name(self) -> str:
        """Of the job: the same for the same sources, destination and configuration, in any order and any bounds."""
        decided = {"sources": sorted(self.sources), "to": self.to, "config": asdict(self.config)}
        digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
        return f"{MARK}-{digest[:NAME_DIGITS]}"


@dataclass(frozen=True)
class SliceOrder:
    """What the job of one slice is told; the files of the slice are in its folder (`pipeline/campaign.py`)."""

    config: Config
    model: Model
    place: Placement
    to: str
    folder: str  # relative to the destination
    board: str  # name of the publisher's (`pipeline/board.py`)
    object_store_bytes: int  # of the cluster's object store that are this slice's


def written(order: Order | SliceOrder) -> str:
    """An order as one line of text. JSON of Python's kind: it knows infinity; times are ISO 8601."""
    return json.dumps(asdict(order), default=datetime.isoformat)


def read(kind: type[_T], text: str) -> _T:
    """The order that was written. Raises: `UsageError` when it is none of this version of earwitness."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise UsageError(
            "The cluster cannot read what it was told: install the same version of earwitness there as here."
        ) from error


def event(kind: str, **details: Any) -> None:
    """Tell whoever follows the log of this job."""
    print(json.dumps({MARK: kind} | details), flush=True)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on a line of a log, its kind under `MARK`; None where the line is none."""
    if not line.startswith("{"):
        return None
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and MARK in told else None


def failure(told: dict[str, Any]) -> EarwitnessError:
    """The error behind an event of the kind FAILED: of the same class, with the same sentence."""
    classes = {cls.exit_code: cls for cls in EarwitnessError.__subclasses__() if cls.exit_code > 1}
    return classes.get(told["code"], EarwitnessError)(told["sentence"])


def reporting_failure(work: Callable[[], None]) -> int:
    """Do the work of a job; an error of the user's becomes an event. Returns the exit code."""
    try:
        work()
    except EarwitnessError as error:
        event(FAILED, code=error.exit_code, sentence=str(error))
        return error.exit_code
    except KeyboardInterrupt:  # how a job is stopped
        return INTERRUPTED
    return 0
