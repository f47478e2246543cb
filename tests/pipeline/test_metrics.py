"""What Prometheus gets to read: the real endpoint of the real Ray, after a run, and the sums of single reports."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from jobs.cluster import Machines
from model.engine import Counters, Engine
from model.options import DecodeOptions
from pipeline import metrics, transcriber
from pipeline.metrics import MEASURES, EngineMeter, Measure, Meter, StoreMeter
from pipeline.records import RESULT
from pipeline.sink import PrepareShard
from pipeline.transcriber import EngineThread
from tests.model.scripted import saying, scripted_part
from tests.pipeline.runs import TINY, Done, ask

EXPORT_SECONDS = 10.0  # Ray's, between two reports of a process
PATIENCE_SECONDS = 3 * EXPORT_SECONDS

Labels = dict[str, str]


def scraped() -> dict[str, list[tuple[Labels, float]]]:
    """Every sample of the machine of this Ray, by the name that Prometheus gives it."""
    (node,) = [each for each in ray.nodes() if each["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as response:
        text = response.read().decode()
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def total(measure: Measure, **labels: str) -> float:
    """The sum of all processes, of the samples with these labels."""
    found = scraped().get(measure.exported, [])
    return sum(value for own, value in found if own.items() >= labels.items())


def soon(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.2)
    return reached()


# --- after a run --------------------------------------------------------------------------------------------------


def test_after_a_run_every_metric_is_there_with_what_the_tables_say(undisturbed: Done) -> None:
    """Other tests run on the same Ray, so sums may be larger."""
    (told,) = ask(
        undisturbed.store,
        "SELECT sum(windows) AS windows, sum(decode_seconds) AS decode, sum(transcribe_seconds) AS used FROM parts",
    )
    assert soon(lambda: total(metrics.AUDIO_SECONDS, model=TINY) >= undisturbed.summary.audio_seconds - 1e-6)
    names = scraped()
    retried = metrics.WINDOWS_RETRIED.exported  # nothing in this archive needs it
    assert {measure.exported for measure in MEASURES} - {retried} <= names.keys()
    assert all(labels["SessionName"] for measure in MEASURES for labels, _ in names.get(measure.exported, []))
    assert total(metrics.WINDOWS, model=TINY) >= told["windows"]
    assert total(metrics.PARTS) >= undisturbed.summary.parts
    assert total(metrics.PARTS, status="no_audio") >= undisturbed.summary.failed_parts > 0
    assert total(metrics.STAGE_SECONDS, stage="decode") >= told["decode"] - 1e-6
    assert total(metrics.STAGE_SECONDS, stage="transcribe") >= told["used"] - 1e-6
    assert 0 < total(metrics.STAGE_SECONDS, stage="store") < undisturbed.summary.elapsed_seconds * 10
    assert 0 < total(metrics.SLOT_TURNS_TAKEN, model=TINY) <= total(metrics.SLOT_TURNS, model=TINY)
    assert total(metrics.ENGINE_SECONDS, model=TINY, state="busy") > 0
    assert total(metrics.ENGINE_SECONDS, model=TINY, state="idle") > 0


def test_what_a_process_reports_is_what_is_read(machines: Machines, results: Callable[..., pa.Table]) -> None:
    model, status = f"model-{time.time_ns()}", f"status-{time.time_ns()}"
    rows = results("a", parts=3, model=model, status=status, windows=4, windows_retried=1, mel_seconds=0.5)

    def report(rows: pa.Table) -> None:
        StoreMeter().stored(rows, 0.25)
        StoreMeter().stored(rows, 0.25)  # another of the same process adds to the same sums

    # An actor, as the sinks are: a process that ends exports what it has left, so nobody waits for its next report.
    reporter = ray.remote(num_cpus=0)(type("Reporter", (), {"report": lambda self, rows: report(rows)})).remote()
    ray.get(reporter.report.remote(rows))
    del reporter
    assert soon(lambda: total(metrics.AUDIO_SECONDS, model=model) > 0)
    assert total(metrics.AUDIO_SECONDS, model=model) == 2 * 3 * 60.0
    assert total(metrics.WINDOWS, model=model) == 2 * 3 * 4
    assert total(metrics.WINDOWS_RETRIED, model=model) == 2 * 3
    assert total(metrics.PARTS, status=status) == 2 * 3


# --- single reports -----------------------------------------------------------------------------------------------


class Remembering:
    """Stands where Ray's counters do, and can be asked."""

    sums: dict[tuple[str, ...], float] = {}

    def __init__(self, name: str, _: str, labels: tuple[str, ...]) -> None:
        self.name, self.labels = name, labels

    def inc(self, amount: float, labels: Labels) -> None:
        assert amount > 0 and type(amount) is float, "Ray refuses anything else"
        assert tuple(sorted(labels)) == tuple(sorted(self.labels)), "Ray refuses other labels"
        key = (self.name, *(labels[name] for name in self.labels))
        self.sums[key] = self.sums.get(key, 0.0) + amount


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    monkeypatch.setattr(Remembering, "sums", {})
    monkeypatch.setattr("ray.util.metrics.Counter", Remembering)
    return Remembering.sums


def engine(sums: dict[tuple[str, ...], float], state: str) -> float:
    return sums.get((metrics.ENGINE_SECONDS.name, "m", state), 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_shard_counts_its_parts_and_the_seconds_of_its_stages(
    sums: dict[tuple[str, ...], float], results: Callable[..., pa.Table]
) -> None:
    spent = dict(fetch_seconds=0.1, decode_seconds=0.2, mel_seconds=0.3, transcribe_seconds=4.0)
    good = results("a", parts=2, model="m", windows=2, windows_retried=0, **spent)
    bad = results("b", parts=1, model="m", status="no_audio", windows=0, segment_rows=[])
    StoreMeter().stored(pa.concat_tables([good, bad]), 0.5)
    name = metrics.STAGE_SECONDS.name
    assert {key[1]: value for key, value in sums.items() if key[0] == name} == pytest.approx(
        {"fetch": 0.2, "decode": 0.4, "mel": 0.6, "transcribe": 8.0, "store": 0.5}
    )
    assert sums[metrics.PARTS.name, "ok"] == 2 and sums[metrics.PARTS.name, "no_audio"] == 1
    assert sums[metrics.AUDIO_SECONDS.name, "m"] == 180.0 and sums[metrics.WINDOWS.name, "m"] == 4
    assert (metrics.WINDOWS_RETRIED.name, "m") not in sums


def test_the_time_of_an_engine_is_busy_or_idle_and_never_both(
    sums: dict[tuple[str, ...], float], clock: Callable[[float], None]
) -> None:
    meter = EngineMeter("m", 4)
    clock(3.0)
    meter.idled(3.0)
    assert (engine(sums, "idle"), engine(sums, "busy")) == (3.0, 0.0)
    clock(2.0)
    meter.worked(Counters(turns=10, slot_turns=25))
    clock(1.0)  # the engine goes on for a second behind the part, and waits for four
    clock(4.0)
    meter.idled(4.0)
    assert (engine(sums, "idle"), engine(sums, "busy")) == (7.0, 3.0)
    meter.idled(0.5)  # told late, of time that was told already
    assert (engine(sums, "idle"), engine(sums, "busy")) == (7.0, 3.0)


def test_an_engine_that_waits_says_so_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriber, "IDLE_REPORT_SECONDS", 0.01)
    net, told = saying({}, "<0.00> Word.<2.00>"), list[float]()
    engine = EngineThread(Engine(net, net.tokenizer, DecodeOptions(), slots=1), told.append)
    assert soon(lambda: len(told) > 2)
    engine.submit(scripted_part(0, 30)).result(PATIENCE_SECONDS)
    assert engine.counters.windows == 1
    before = len(told)
    assert soon(lambda: len(told) > before + 2), "it waits again"
    assert all(seconds >= 0 for seconds in told)


def test_slots_are_counted_from_one_report_to_the_next(sums: dict[tuple[str, ...], float]) -> None:
    meter = EngineMeter("m", 4)
    for turns, slot_turns in ((10, 25), (10, 25), (15, 45)):
        meter.worked(Counters(turns=turns, slot_turns=slot_turns))
    assert sums[metrics.SLOT_TURNS.name, "m"] == 60.0
    assert sums[metrics.SLOT_TURNS_TAKEN.name, "m"] == 45.0


def test_a_sink_reports_what_it_stored_and_nothing_for_an_empty_batch(
    sums: dict[tuple[str, ...], float], results: Callable[..., pa.Table], tmp_path: Path
) -> None:
    sink = PrepareShard(str(tmp_path / "archive"))
    sink(results("a").slice(0, 0))
    assert not sums
    sink(results("a", parts=2, model="m"))
    assert sums[metrics.AUDIO_SECONDS.name, "m"] == 120.0
    assert 0 < sums[metrics.STAGE_SECONDS.name, "store"] < 60


# --- where nobody collects ----------------------------------------------------------------------------------------


def test_without_a_ray_it_costs_next_to_nothing_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    program = (
        "import time; from pipeline.metrics import AUDIO_SECONDS, Meter\n"
        "meter = Meter(); before = time.perf_counter()\n"
        "for _ in range(1000): meter.add(AUDIO_SECONDS, 1.0, model='m')\n"
        "assert time.perf_counter() - before < 1.0"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
    assert capfd.readouterr() == ("", "")


def test_names_and_labels_are_those_that_prometheus_takes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meter = Meter()
        for measure in MEASURES:
            meter.add(measure, 0.0, **dict.fromkeys(measure.labels, "none"))
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert all(measure.name.startswith("earwitness_") and measure.description.endswith(".") for measure in MEASURES)
    assert all(len(measure.labels) <= 2 for measure in MEASURES)


def test_every_stage_is_a_column_of_the_results() -> None:
    assert {f"{stage}_seconds" for stage in metrics.MEASURED_STAGES} <= set(RESULT.names)
