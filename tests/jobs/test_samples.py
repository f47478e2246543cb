"""The sample clips: fetched by a real pip from a folder of wheels made here, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import struct
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jobs import samples
from model.errors import SourceError

LANGUAGES = ("en", "fr", "ja")
SECONDS = 0.25


def clip(number: int) -> bytes:
    """A float32 wave of 16 kHz with chunks that only some readers know, one of them of odd size."""
    tone = np.sin(np.arange(int(SECONDS * 16_000), dtype="<f4") * number).tobytes()
    header = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    chunks = [(b"fmt ", header), (b"PEAK", b"odd"), (b"data", tone)]
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def wheel(folder: Path, count: int = samples.CLIPS) -> Path:
    """A wheel of the right name with `count` clips, and code that must stay where it is."""
    info = "pytest_audioeval-0.1.3.dist-info"
    path = folder / "pytest_audioeval-0.1.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pytest_audioeval/plugin.py", "raise RuntimeError('installed')")
        archive.writestr("pytest_audioeval/samples/audio/README.txt", "no clip")
        for number in range(count):
            name = f"pytest_audioeval/samples/audio/{LANGUAGES[number % 3]}/clip{number:02}"
            archive.writestr(f"{name}.wav", clip(number))
            archive.writestr(f"{name}.txt", f"Clip {number}.\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pytest-audioeval\nVersion: 0.1.3\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: no index, no configuration, no cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def offered(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole wheel on the shelf, whose hash is the expected one."""
    path = wheel(shelf)
    monkeypatch.setattr(samples, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_clips_and_transcripts_are_fetched_once(offered: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    assert samples.fetch_samples(cache) == cache
    assert len(list(cache.glob("*/*.wav"))) == len(list(cache.glob("*/*.txt"))) == samples.CLIPS
    assert {path.name for path in cache.iterdir()} == set(LANGUAGES)
    assert list(cache.parent.iterdir()) == [cache]  # no scratch left
    offered.unlink()
    assert samples.fetch_samples(cache) == cache


def test_the_cache_is_where_the_desktop_standard_says(
    offered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert samples.fetch_samples() == tmp_path / "xdg/earwitness/samples-0.1.3"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert samples.fetch_samples() == tmp_path / "home/.cache/earwitness/samples-0.1.3"


def test_other_bytes_under_the_right_name_are_refused(shelf: Path, tmp_path: Path) -> None:
    wheel(shelf)
    with pytest.raises(SourceError, match=r"^pip could not fetch the sample clips \(.*\): check the network"):
        samples.fetch_samples(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_network_is_one_sentence(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        samples.fetch_samples(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value) and "pytest-audioeval==0.1.3" in str(caught.value)
    assert list(tmp_path.iterdir()) == [shelf]


def test_a_slow_network_ends(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FETCH_TIMEOUT", 0.001)
    with pytest.raises(SourceError, match="no answer in 0 s"):
        samples.fetch_samples(tmp_path / "cache")


def test_a_folder_with_a_clip_missing_is_not_taken_for_whole(offered: Path, tmp_path: Path) -> None:
    cache = samples.fetch_samples(tmp_path / "cache")
    (cache / "en" / "clip00.txt").unlink()
    with pytest.raises(SourceError, match=r"remove what is there"):
        samples.fetch_samples(cache)


def test_another_process_may_put_the_same_clips_there_first(offered: Path, tmp_path: Path) -> None:
    cache = samples.fetch_samples(tmp_path / "cache")
    samples._put_in_place(samples.fetch_samples(tmp_path / "second"), cache)
    assert len(samples.clips(cache)) == samples.CLIPS


def test_a_place_that_cannot_be_written_is_named(offered: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SourceError, match=f"cannot be stored in {tmp_path}/file/cache"):
        samples.fetch_samples(tmp_path / "file" / "cache")


def test_what_is_spoken_goes_by_name_and_in_order(offered: Path, tmp_path: Path) -> None:
    spoken = samples.spoken(samples.fetch_samples(tmp_path / "cache"))
    assert len(spoken) == samples.CLIPS and list(spoken) == sorted(spoken)
    assert spoken["en/clip00"] == "Clip 0." and spoken["ja/clip02"] == "Clip 2."


def test_the_assembled_file_is_all_clips_with_gaps_again_and_again(offered: Path, tmp_path: Path) -> None:
    folder = samples.fetch_samples(tmp_path / "cache")
    once = samples.assemble(folder, tmp_path / "once.wav")
    thrice = samples.assemble(folder, tmp_path / "thrice.wav", repeat=3)
    with wave.open(str(once), "rb") as file:
        assert file.getparams()[:4] == (1, 2, 16_000, samples.CLIPS * int((SECONDS + 0.5) * 16_000))
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    with wave.open(str(thrice), "rb") as file:
        assert file.readframes(file.getnframes()) == heard.tobytes() * 3
    second = heard[12_000:24_000]  # en/clip03
    assert np.array_equal(second[:4000], samples.read_clip(folder / "en/clip03.wav"))
    assert not second[4000:].any()
    assert once.read_bytes() == samples.assemble(folder, tmp_path / "again.wav").read_bytes()


def test_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    loud = np.array([1.0, -1.0, 1.5, 0.0, 1 / 32768], "<f4").tobytes()
    path = tmp_path / "loud.wav"
    header = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    path.write_bytes(b"RIFF....WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", 20) + loud)
    assert samples.read_clip(path).tolist() == [32767, -32768, 32767, 0, 1]


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVE", clip(1).replace(b"data", b"dada"), clip(1)[:24]])
def test_what_is_no_clip_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "en" / "broken.wav"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is not the clip that was fetched"):
        samples.read_clip(path)
