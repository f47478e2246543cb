"""The precision of a run that was left to us: the cheapest arithmetic that the machine does fast and the words survive.

It is settled once, before a run is planned, and is part of the generation from then on, so that every worker, and
every later run, computes alike. What it costs in words, and gains in speed, stands in `docs/decisions.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pipeline.config import AUTO, Config
from pipeline.placement import Placement

# Names of `torch.cpu.get_capabilities`. Arm has bfloat16 instructions as well ("bf16"), but nobody has measured there
# whether torch uses them to any gain.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def choose_precision(asked: str, on_gpu: bool, cpu: Mapping[str, Any]) -> str:
    """`asked`, or what "auto" stands for: float16 on a GPU, as openai/whisper has it; bfloat16 on a CPU that multiplies
    it, and float32 on any other.

    cpu: capabilities by name, as of `torch.cpu.get_capabilities`.
    """
    if asked != AUTO:
        return asked
    if on_gpu:
        return "float16"
    return "bfloat16" if any(cpu.get(name) for name in BFLOAT16_INSTRUCTIONS) else "float32"


def settled(config: Config, place: Placement) -> Config:
    """`config` with its precision decided for this place.

    Without a GPU this machine's CPU decides for all: another kind computes the same, if not as fast.
    """
    precision = choose_precision(config.run.precision, place.model_gpus > 0, torch.cpu.get_capabilities())
    return replace(config, run=replace(config.run, precision=precision))
