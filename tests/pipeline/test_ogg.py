"""Holes in Ogg files: what stands behind them is found again, at its time, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.dimensions import SAMPLE_RATE
from pipeline.config import ReadOptions
from pipeline.ogg import FAR, close_holes
from tests.chaos import corpus
from tests.chaos.corpus import CONTAINERS, ffmpeg
from tests.pipeline.reading import manifest, read, write_wav

SECONDS = 300
PART_SECONDS = 30.0


@pytest.fixture(scope="module", params=["ogg", "opus"])
def long(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that is louder from minute to minute; it needs more bytes than speech does."""
    folder = tmp_path_factory.mktemp("ogg")
    noise = np.random.default_rng(3).normal(0, 1, SECONDS * SAMPLE_RATE) * np.linspace(500, 8000, SECONDS * SAMPLE_RATE)
    source = write_wav(folder / "noise.wav", noise.clip(-32768, 32767).astype(np.int16))
    made = folder / f"noise.{request.param}"
    ffmpeg("-i", source, *CONTAINERS[request.param], "-b:a", "64k", *corpus.BITEXACT, made)
    return made


@pytest.mark.parametrize("garbage", ["random", "zeros"])
def test_what_stands_behind_a_hole_is_read_and_keeps_its_time(long: Path, tmp_path: Path, garbage: str) -> None:
    data = long.read_bytes()
    start, length = int(len(data) * 0.4), len(data) // 20
    filler = np.random.default_rng(5).bytes(length) if garbage == "random" else bytes(length)
    assert length > 2 * FAR
    (broken := tmp_path / long.name).write_bytes(data[:start] + filler + data[start + length :])
    options = ReadOptions(voice_activity=False)
    whole, rest = (read(manifest(path, part_seconds=PART_SECONDS), options) for path in (long, broken))
    assert (rest[-1]["status"], rest[-1]["decode_errors"] > 0) == ("damaged", True)
    assert rest[-1]["end"] == pytest.approx(SECONDS, abs=0.1)
    assert (whole[-1]["status"], len(rest)) == ("ok", len(whole))
    assert rest[-2]["mel"] == whole[-2]["mel"], "the same sounds at the same time"
    assert broken.read_bytes()[start : start + length] == filler, "the archive is never written to"


def test_a_hole_that_ffmpeg_finds_its_way_over_is_left(long: Path, tmp_path: Path) -> None:
    data = long.read_bytes()
    (broken := tmp_path / long.name).write_bytes(data[:100_000] + bytes(FAR // 2) + data[100_000 + FAR // 2 :])
    assert close_holes(broken) == 0 and len(broken.read_bytes()) == len(data)


def test_what_is_whole_or_cut_stays_as_it_is(long: Path, tmp_path: Path) -> None:
    data = long.read_bytes()
    for content in (data, corpus.cut(data), data + bytes(3 * FAR), data + data, data[:4], b"", b"RIFF" + data):
        (path := tmp_path / "some.ogg").write_bytes(content)
        assert close_holes(path) == 0 and path.read_bytes() == content


def test_any_bytes_behind_the_first_four_are_survived(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    for _ in range(200):
        (path := tmp_path / "some.ogg").write_bytes(
            b"OggS" + b"OggS".join(random.bytes(int(n)) for n in random.integers(0, 300, 9))
        )
        close_holes(path)
        assert path.read_bytes().startswith(b"OggS")
