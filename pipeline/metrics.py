"""What a run tells Prometheus while it goes on, through Ray: what was stored, and how full the engines are.

The sinks count what they store, once for each shard, and the engines what they do, once for each part and every few
seconds while they wait: nothing is counted for each token. Where nobody collects (a run on one machine), a report is a
microsecond spent on nothing.

Nothing depends on it, and it refuses to know who looks: the tables are the truth. Ray puts `ray_` before the names and
adds labels for the machine and the process; the dashboard is `infra/grafana/earwitness.json`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:  # it brings torch, which no sink needs
    from model.engine import Counters


@dataclass(frozen=True)
class Measure:
    """A sum that only grows, so that any two moments can be compared, and machines be added up."""

    name: str
    description: str
    labels: tuple[str, ...]

    @property
    def exported(self) -> str:
        """What Prometheus calls it."""
        return f"ray_{self.name}_total"


AUDIO_SECONDS = Measure("earwitness_audio_seconds", "Seconds of audio in the parts that were stored.", ("model",))
WINDOWS = Measure("earwitness_windows", "Windows of 30 seconds that have a verdict.", ("model",))
WINDOWS_RETRIED = Measure("earwitness_windows_retried", "Windows that needed a higher temperature.", ("model",))
PARTS = Measure("earwitness_parts", "Parts that were stored, by what reading them came to.", ("status",))
STAGE_SECONDS = Measure(
    "earwitness_stage_seconds", "Seconds that stages spent; parts overlap in transcribe.", ("stage",)
)
SLOT_TURNS = Measure("earwitness_slot_turns", "Tokens that the slots could have sampled.", ("model",))
SLOT_TURNS_TAKEN = Measure("earwitness_slot_turns_taken", "Tokens that occupied slots did sample.", ("model",))
ENGINE_SECONDS = Measure("earwitness_engine_seconds", "Seconds of the engines, busy or idle.", ("model", "state"))

MEASURES = (
    AUDIO_SECONDS,
    WINDOWS,
    WINDOWS_RETRIED,
    PARTS,
    STAGE_SECONDS,
    SLOT_TURNS,
    SLOT_TURNS_TAKEN,
    ENGINE_SECONDS,
)
MEASURED_STAGES = ("fetch", "decode", "mel", "transcribe")  # each a column of `records.RESULT`; the sink adds store
IDLE_REPORT_SECONDS = 5.0  # at least so often an engine tells that it waits: half of what Ray waits between exports


class Meter:
    """The sums of this process."""

    def __init__(self) -> None:
        self._counters: dict[str, Any] = {}

    def add(self, measure: Measure, amount: float, **labels: str) -> None:
        """Add to one sum; nothing is added for zero, which Ray refuses. Safe from any thread."""
        counter = self._counters.get(measure.name)
        if counter is None:
            from ray.util.metrics import Counter  # slow to import, and commands that only read tables never get here

            counter = self._counters[measure.name] = Counter(measure.name, measure.description, measure.labels)
        if amount > 0:
            counter.inc(float(amount), labels)


class StoreMeter(Meter):
    """What one sink has stored."""

    def stored(self, results: pa.Table, seconds: float) -> None:
        """A shard of `records.RESULT` rows was stored, which took so long."""
        model = next(iter(results["model"].drop_null().to_pylist()), "")
        audio = pc.sum(pc.subtract(results["end"], results["start"])).as_py()
        self.add(AUDIO_SECONDS, audio or 0.0, model=model)
        self.add(WINDOWS, _sum(results, "windows"), model=model)
        self.add(WINDOWS_RETRIED, _sum(results, "windows_retried"), model=model)
        for status in results["status"].value_counts().to_pylist():
            self.add(PARTS, status["counts"], status=status["values"])
        for stage in MEASURED_STAGES:
            self.add(STAGE_SECONDS, _sum(results, f"{stage}_seconds"), stage=stage)
        self.add(STAGE_SECONDS, seconds, stage="store")


class EngineMeter(Meter):
    """What one engine does, and how long it waits for parts. slots: how many it has."""

    def __init__(self, model: str, slots: int) -> None:
        super().__init__()
        self._model, self._slots = model, slots
        self._turns = self._slot_turns = 0
        self._told = time.monotonic()  # what came before is told
        self._telling = threading.Lock()  # parts end on the thread of the actor, and idle is the engine's

    def worked(self, counters: Counters) -> None:
        """A part has left the engine: all since the last report was work."""
        with self._telling:
            busy, self._told = time.monotonic() - self._told, time.monotonic()
        turns, slot_turns = counters.turns, counters.slot_turns
        possible, taken = (turns - self._turns) * self._slots, slot_turns - self._slot_turns
        self._turns, self._slot_turns = turns, slot_turns
        self.add(ENGINE_SECONDS, busy, model=self._model, state="busy")
        self.add(SLOT_TURNS, possible, model=self._model)
        self.add(SLOT_TURNS_TAKEN, taken, model=self._model)

    def idled(self, seconds: float) -> None:
        """The engine has waited for so long until now; what came before, since the last report, was work."""
        with self._telling:
            since, self._told = time.monotonic() - self._told, time.monotonic()
        self.add(ENGINE_SECONDS, min(seconds, since), model=self._model, state="idle")
        self.add(ENGINE_SECONDS, since - seconds, model=self._model, state="busy")


def _sum(results: pa.Table, column: str) -> float:
    total: float = pc.sum(results[column]).as_py() or 0.0
    return total
