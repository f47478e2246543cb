"""What the tests of the command line share: a call of it, a place to call it from, and filled tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import console
from jobs.cli import main
from jobs.samples import fetch_samples
from pipeline.sink import prepare
from pipeline.writer import Writer
from tests.writers import WriterAt


@dataclass(frozen=True)
class Done:
    """How a call ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def earwitness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Calls the command line in this process; a bug raises."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["earwitness", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            assert isinstance(leaving.code, int)
            code = leaving.code
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a new user: an archive of two clips, and things that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive").mkdir()
    for clip in ("en/hello_world.wav", "en/counting.wav"):
        shutil.copy(fetch_samples() / clip, tmp_path / "archive")
    (tmp_path / "empty").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear_anna.txt").write_text("How are you?")
    (tmp_path / "file").write_text("a file")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path, results: Callable[..., pa.Table], writer_at: WriterAt) -> Writer:
    """The tables of two files of two parts, below `tables`."""
    made = writer_at(str(tmp_path / "tables"))
    for media in ("a", "b"):
        made.publish([prepare(made.objects, results(media))])
    return made


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the terminal so many columns wide."""
    return lambda width: monkeypatch.setattr(console.out, "width", width)
