"""Our side of a measurement, with real weights: texts, stages that add up, and counters of one run at a time."""

from __future__ import annotations

import copy
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench.contenders import Setup
from jobs.bench.ours import LOG_MEL, READ, REST, VOICE, OurEngine, StageClock, Timed, _stages, load, net_stage
from jobs.bench.profiling import _few, profile
from jobs.bench.recordings import Recording, read_folder
from jobs.bench.suites import Suite
from jobs.samples import assemble, fetch_samples
from model.errors import ModelError, UsageError


class _SlowNet:
    dims = "dimensions"

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return mel + 1

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, scale: int = 1) -> torch.Tensor:
        time.sleep(0.01)
        return tokens * scale


def test_methods_are_timed_and_all_else_is_the_nets_own() -> None:
    clock = StageClock()
    net: Any = Timed(_SlowNet(), clock, net_stage)
    assert net.dims == "dimensions"
    assert net.encode(torch.ones(1)).item() == 2
    net.decode(torch.ones(2, 5), torch.arange(5).expand(2, 5))
    assert net.decode(torch.ones(2, 1), torch.tensor([[5], [0]]), scale=3).sum() == 6
    net.decode(torch.ones(2, 1), torch.tensor([[6], [1]]))
    assert set(clock.seconds) == {"encode", "prefill", "step"}
    assert clock.seconds["encode"] >= 0.02 and clock.seconds["step"] >= 0.02 and clock.seconds["prefill"] >= 0.01


def test_a_stage_that_fails_is_timed_too() -> None:
    clock = StageClock()
    with pytest.raises(ZeroDivisionError), clock("broken"):
        time.sleep(0.01)
        _ = 1 / 0
    assert clock.seconds["broken"] >= 0.01


def test_a_clock_adds_up_what_threads_spend() -> None:
    clock = StageClock()

    def work(_: int) -> None:
        with clock("voice"):
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    assert clock.seconds["voice"] >= 0.2


def test_stages_add_up_to_the_whole() -> None:
    seconds = {"read": 3.0, "voice": 4.0, "log-mel": 1.0, "engine": 10.0, "encode": 6.0, "step": 3.0}
    stages = _stages(seconds, readers=2)
    assert stages == {
        "read": 1.0, "voice": 2.0, "log-mel": 1.0, "encode": 6.0, "step": 3.0, "rules and the rest": 1.0,
    }  # fmt: skip
    assert sum(stages.values()) == 3 + 1 + 10


def test_stages_without_voice_detection() -> None:
    stages = _stages({"read": 3.0, "log-mel": 1.0, "engine": 2.0, "encode": 1.5}, readers=1)
    assert stages == {"read": 3.0, "log-mel": 1.0, "encode": 1.5, "rules and the rest": 0.5}


def test_an_unknown_precision_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="precision is 'float7': choose one of auto, float32"):
        load(Setup("tiny.en", threads=torch.get_num_threads(), precision="float7"))


@pytest.fixture(scope="module")
def ours() -> OurEngine:
    threads = torch.get_num_threads()
    try:
        return load(Setup("tiny.en", threads=1, slots=4))
    except ModelError as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def spoken() -> list[Recording]:
    return [r for r in read_folder(fetch_samples()) if r.name in ("en/counting", "en/hello_world")]


def test_our_engine_hears_what_is_said(ours: OurEngine, spoken: list[Recording]) -> None:
    started = time.perf_counter()
    heard = ours(spoken)
    seconds = time.perf_counter() - started
    assert heard.languages == ["en", "en"] and heard.tokens == heard.counters["tokens"] > 10
    assert "hello" in heard.texts[[r.name for r in spoken].index("en/hello_world")].lower()
    assert {READ, VOICE, LOG_MEL, "encode", "prefill", "step", REST} <= set(heard.stages)
    assert all(stage >= 0 for stage in heard.stages.values())
    assert 0.9 * seconds < sum(heard.stages.values()) <= seconds


def test_counters_and_stages_are_those_of_one_run(ours: OurEngine, spoken: list[Recording]) -> None:
    first, again = ours(spoken), ours(spoken)
    assert again.texts == first.texts and again.counters == first.counters
    assert first.counters["windows"] == len(spoken)
    assert 0 < first.counters["occupancy"] <= 0.5  # two windows in four slots
    assert again.stages["encode"] < 2 * first.stages["encode"]


def test_files_are_cut_into_parts_and_their_texts_joined(
    ours: OurEngine, tmp_path: Path, spoken: list[Recording]
) -> None:
    shutil.copytree(fetch_samples() / "en", tmp_path / "en")
    long = assemble(tmp_path, tmp_path / "long.wav")  # three sentences in eight seconds
    recordings = [spoken[0], Recording("long", long, 8.0, "", "en"), spoken[1]]
    whole, cut = ours(recordings), _with(ours, part_seconds=5.0)(recordings)
    assert cut.counters["windows"] == whole.counters["windows"] + 1 == 4
    for heard in (whole, cut):
        assert [heard.texts[0], heard.texts[2]] == ours(spoken).texts
        assert "hello" in heard.texts[1].lower() and "lazy dog" in heard.texts[1].lower()


def test_the_reference_is_exact_and_hears_no_voices(spoken: list[Recording]) -> None:
    exact = load(Setup("tiny.en", threads=torch.get_num_threads(), slots=1, precision="bfloat16"), exact=True)
    assert VOICE not in exact(spoken[:1]).stages
    given = load(Setup("tiny.en", threads=torch.get_num_threads(), slots=1), precision="bfloat16")
    assert (given._net.dtype, exact._net.dtype) == (torch.bfloat16, torch.bfloat16)


def _with(ours: OurEngine, **changes: Any) -> OurEngine:
    """The same engine under another setup."""
    changed = copy.copy(ours)
    changed._setup = replace(ours._setup, **changes)
    return changed


def test_a_profile_names_operators_and_functions(ours: OurEngine, spoken: list[Recording]) -> None:
    text = profile(ours, Suite("folder", tuple(spoken[:1]), tuple(spoken[:1]), None), lines=8)
    assert "aten::" in text and "function calls" in text and "tottime" in text
    operators = text.split("\n\n")[0].splitlines()
    assert len(operators) == 9 and max(map(len, operators)) <= 80
    seconds = [float(line.split()[-2]) for line in operators[1:]]
    assert seconds == sorted(seconds, reverse=True)


def test_a_profile_looks_at_ten_minutes_at_most() -> None:
    recordings = [Recording(str(i), Path("a"), 250.0, "", None) for i in range(5)]
    assert len(_few(recordings)) == 2
    assert len(_few([Recording("long", Path("a"), 3600.0, "", None)])) == 1
