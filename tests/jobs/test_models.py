"""The list of models, for people and machines, and what pulling one says. Fetching itself is `test_weights.py`'s."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import console
from jobs.models import _place
from model.dimensions import OFFICIAL
from model.errors import ModelError
from pipeline import weights

Call = Callable[..., Any]  # gives `Done` of conftest.py


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one model in its cache; the packages of this Python are as they are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", weights.MODELS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    cached = tmp_path / ".cache" / "whisper" / "small.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize("width", [80, 120])
def test_every_official_model_is_one_line(
    home: Path, earwitness: Call, columns: Callable[[int], None], width: int
) -> None:
    columns(width)
    done = earwitness("models", "list")
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert [line.split()[0] for line in lines[1 : len(OFFICIAL) + 1]] == list(OFFICIAL)
    assert "small                    241  many       ~/.cache/whisper/small.pt" in lines
    assert "large-v1                1541  many       -" in lines
    assert lines[-1] == "Get another with `earwitness models pull NAME`; --model takes a path as well."
    assert max(map(len, lines)) <= 80


def test_json_has_whole_paths_and_numbers(home: Path, earwitness: Call) -> None:
    (line,) = earwitness("models", "list", "--json").out.splitlines()
    models = {model["name"]: model for model in json.loads(line)}
    assert list(models) == list(OFFICIAL)
    assert models["small"]["found"] == str(home / ".cache" / "whisper" / "small.pt")
    assert models["large-v1"]["found"] is None
    assert 37e6 < models["tiny.en"]["parameters"] < 38e6 and models["tiny.en"]["is_multilingual"] is False


def test_weights_of_a_package_go_by_its_name() -> None:
    assert _place(Path("/env/lib/python3.11/site-packages/some_weights/data")) == "package some_weights"
    assert _place(Path("/models/base.pt")) == "/models/base.pt"


def test_pulling_says_where_it_is(earwitness: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: Callable[[int, int], None]) -> Path:
        progress(1, 2)
        return Path("/models/tiny.pt")

    monkeypatch.setattr(weights, "pull", pull)
    done = earwitness("models", "pull", "tiny")
    assert (done.code, done.out, done.err) == (0, "tiny is at /models/tiny.pt.\n", "")


def test_pulling_on_a_terminal_shows_bytes_and_cleans_up(earwitness: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: Callable[[int, int], None]) -> Path:
        progress(36_000_000, 72_000_000)
        raise ModelError("The network is gone.")

    monkeypatch.setattr(weights, "pull", pull)
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True, color_system=None, width=80))
    done = earwitness("models", "pull", "tiny")
    assert (done.code, done.out) == (5, "")
    assert "tiny 36.0/72.0 MB" in done.err
    assert done.err.endswith("\x1b[2Kearwitness: The network is gone.\n")
