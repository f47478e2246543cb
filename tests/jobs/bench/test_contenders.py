"""Who takes part: names, patterns, and settings that need more than one file."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from jobs.bench.contenders import CONTENDERS, OURS, choose
from model.errors import UsageError


def test_names_are_unique_and_short_enough_for_a_table() -> None:
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 19


def test_every_contender_has_its_module() -> None:
    assert all(find_spec(contender.module) for contender in CONTENDERS)


def test_by_default_all_that_make_sense() -> None:
    one, many = ({contender.name for contender in choose((), files)} for files in (1, 2))
    assert many - one == {"faster-int8-workers"} and one < many
    assert {OURS, "openai-greedy", "openai-beam5", "faster-int8-b16", "faster-float32-b8", "faster-float32"} <= one
    assert not any(name.startswith("ours-") for name in many)


def test_patterns_choose_in_the_order_of_the_table() -> None:
    assert [c.name for c in choose(("faster-*-b16", OURS), 1)] == [OURS, "faster-float32-b16", "faster-int8-b16"]
    assert "ours-exact" in [c.name for c in choose(("ours*",), 1)]


def test_an_unknown_name_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"no contender 'fastest': choose from ours, .*, or use patterns such as ours"):
        choose((OURS, "fastest"), 1)


def test_a_worker_starts_before_anything_that_brings_threads() -> None:
    loaded = "import sys, jobs.bench.worker; print([m for m in ('numpy', 'torch', 'ctranslate2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
