"""Planning a night over very many known files: in a process of its own, whose time and memory are measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.inventory_at_scale import CHANGED, MISSING, NEW, make

CHAOS = os.environ.get("EARWITNESS_CHAOS")
FILES = 10_000_000 if CHAOS else 100_000
SECONDS = 60.0
MEGABYTES = 2048 if CHAOS else 1024
BOUND_HOURS = 100.0


@pytest.mark.timeout(1800 if CHAOS else 120)
def test_a_night_is_planned_in_a_minute_and_in_bounded_memory(tmp_path: Path) -> None:
    make(tmp_path, FILES)
    command = [sys.executable, "-m", "tests.pipeline.inventory_at_scale", "plan", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["new"], found["changed"], found["missing"]) == (NEW, CHANGED, MISSING)
    assert found["listed"] == FILES - MISSING + NEW
    assert found["postponed"] > 0 and found["pending"] + found["postponed"] >= NEW + CHANGED
    assert found["owners"] < found["listed"] / 100, "of known content only what has the size of something pending"
    assert found["seconds"] < SECONDS
    assert found["peak_mb"] < MEGABYTES
