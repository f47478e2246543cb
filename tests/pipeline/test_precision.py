"""What "auto" comes to on which machine, and that a run is planned with what it came to."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from jobs.cluster import Machines
from jobs.samples import fetch_samples
from jobs.transcribe import Request, Watcher, _prepare
from pipeline.config import AUTO, PRECISIONS, Config, RunOptions
from pipeline.placement import place
from pipeline.precision import BFLOAT16_INSTRUCTIONS, choose_precision, settled

ZEN_4 = {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}
SAPPHIRE_RAPIDS = ZEN_4 | {"amx_bf16": True}
HASWELL = {"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
GRAVITON_3 = {"neon": True, "bf16": True}


@pytest.mark.parametrize(
    ("on_gpu", "cpu", "chosen"),
    [
        (True, HASWELL, "float16"),
        (True, ZEN_4, "float16"),
        (False, ZEN_4, "bfloat16"),
        (False, SAPPHIRE_RAPIDS, "bfloat16"),
        (False, {"amx_bf16": True}, "bfloat16"),
        (False, HASWELL, "float32"),
        (False, GRAVITON_3, "float32"),
        (False, {}, "float32"),
    ],
)
def test_auto_is_what_the_machine_does_fast(on_gpu: bool, cpu: dict[str, Any], chosen: str) -> None:
    assert choose_precision(AUTO, on_gpu, cpu) == chosen


@pytest.mark.parametrize("asked", [name for name in PRECISIONS if name != AUTO])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_is_asked_for_is_had(asked: str, on_gpu: bool) -> None:
    assert choose_precision(asked, on_gpu, ZEN_4) == asked


def test_torch_still_names_what_the_choice_depends_on() -> None:
    """Misspelt or renamed, an instruction would never be found."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities["architecture"] != "x86_64":
        pytest.skip("these are instructions of x86")
    assert set(BFLOAT16_INSTRUCTIONS) <= set(capabilities)


def test_only_the_precision_is_settled() -> None:
    config = Config(model="tiny", run=RunOptions(slots=3))
    on_gpu = settled(config, place(config.run, {"CPU": 8.0, "GPU": 1.0}, 1, 8))
    assert on_gpu == replace(config, run=replace(config.run, precision="float16"))
    assert settled(config, place(config.run, {"CPU": 8.0}, 1, 8)).run.precision in ("bfloat16", "float32")


def test_a_run_is_planned_with_a_precision_that_is_settled() -> None:
    request = Request((str(fetch_samples() / "en"),), "nowhere", Config(model="tiny.en"), dry_run=True)
    run = _prepare(request, Machines({"CPU": 2.0}, 1, 2), Watcher(), ExitStack())
    assert run.job.config.run.precision in PRECISIONS and run.job.config.run.precision != AUTO
    assert run.summary.generation == run.job.generation
