"""The demo's audio: 27 short spoken clips in nine languages, with what is said in them, and one long file made of them.

The clips (MIT) are data inside the wheel pytest-audioeval 0.1.3, which is fetched by pip against its hash and never
installed: installed, it would hook itself into every pytest run. Nothing here knows of models or of transcribing.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE
from model.errors import SourceError

REQUIREMENT = "pytest-audioeval==0.1.3"
WHEEL_SHA256 = "8b97369347232d43180dd9860189c547ccc8dedb42b7c21d511ddc5a05ef7ecc"
INSIDE_WHEEL = PurePosixPath("pytest_audioeval/samples/audio")  # then LANGUAGE/NAME.wav and .txt
CLIPS = 27
FETCH_TIMEOUT = 300.0  # seconds for 4 MB

GAP_SECONDS = 0.5  # of silence after every clip of the assembled file
_FLOAT_MONO = (3, 1, SAMPLE_RATE)  # RIFF format tag, channels and rate of every clip
_FULL_SCALE = 32768


def fetch_samples(cache: Path | None = None) -> Path:
    """The folder of the clips, `LANGUAGE/NAME.wav` beside `LANGUAGE/NAME.txt`; fetched once, then found.

    cache: where to keep it; by default `earwitness/samples-0.1.3` in $XDG_CACHE_HOME or ~/.cache.

    Raises: `SourceError` when pip cannot fetch the wheel, other bytes arrive, or the folder cannot be written.
    """
    folder = cache or _default_cache()
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            unpacked = Path(scratch) / "audio"
            _unpack(_download(Path(scratch), folder), unpacked)
            _put_in_place(unpacked, folder)
    except OSError as error:
        raise SourceError(
            f"The sample clips cannot be stored in {folder} ({error.strerror or error}): make room, remove what is "
            f"there, or set XDG_CACHE_HOME to another folder."
        ) from error
    return folder


def spoken(folder: Path) -> dict[str, str]:
    """What is said in each clip, by its name `LANGUAGE/NAME`, in the order of the names."""
    return {_name(path): path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in clips(folder)}


def clips(folder: Path) -> list[Path]:
    """The clips of a folder in the order of their names, which is the order of the assembled file."""
    return sorted(folder.glob("*/*.wav"))


def assemble(folder: Path, target: Path, repeat: int = 1) -> Path:
    """Write all clips in order, half a second of silence after each, as one 16-bit wave file of 16 kHz.

    repeat: how often the whole is said, each time 85 seconds. The same folder always gives the same bytes.

    Raises: `SourceError` when a clip is not what the wheel holds.
    """
    gap = bytes(2 * round(GAP_SECONDS * SAMPLE_RATE))
    once = b"".join(read_clip(path).tobytes() + gap for path in clips(folder))
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(once * repeat)
    return target


def read_clip(path: Path) -> NDArray[np.int16]:
    """(n,) samples of one clip at 16 kHz. The clips are float32 waves, which the `wave` module refuses.

    Raises: `SourceError` when it is another kind of file.
    """
    chunks = dict(_chunks(path.read_bytes()))
    header = chunks.get(b"fmt ", b"")[:8]
    if len(header) < 8 or struct.unpack("<HHI", header) != _FLOAT_MONO or b"data" not in chunks:
        raise SourceError(f"{path} is not the clip that was fetched: remove {path.parent.parent} and fetch it again.")
    scaled = np.rint(np.frombuffer(chunks[b"data"], "<f4") * _FULL_SCALE)
    return np.asarray(np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1), np.int16)


def _default_cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "earwitness" / f"samples-{REQUIREMENT.partition('==')[2]}"


def _is_complete(folder: Path) -> bool:
    found = clips(folder)
    return len(found) == CLIPS and all(path.with_suffix(".txt").is_file() for path in found)


def _name(clip: Path) -> str:
    return f"{clip.parent.name}/{clip.stem}"


def _download(scratch: Path, folder: Path) -> Path:
    """The wheel, fetched into `scratch` and verified by pip."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), "-r", str(requirements)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise _not_fetched(f"no answer in {FETCH_TIMEOUT:.0f} s", folder) from error
    except subprocess.CalledProcessError as error:
        raise _not_fetched(_reason(error.stderr), folder) from error
    return next(scratch.glob("*.whl"))


def _reason(stderr: str) -> str:
    """The first complaint of pip's, without its dressing."""
    errors = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    return errors[0].removeprefix("ERROR: ").strip(" .:") if errors else "it gave no reason"


def _not_fetched(reason: str, folder: Path) -> SourceError:
    return SourceError(
        f"pip could not fetch the sample clips ({reason}): check the network, or unpack {INSIDE_WHEEL} of "
        f"the wheel {REQUIREMENT} as {folder}."
    )


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member)
            if path.suffix in (".wav", ".txt") and path.parent.parent == INSIDE_WHEEL:
                (target / path.parent.name).mkdir(parents=True, exist_ok=True)
                (target / path.parent.name / path.name).write_bytes(archive.read(member))


def _put_in_place(unpacked: Path, folder: Path) -> None:
    """One rename, so that the folder is there whole or not at all; another process may have been first."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _chunks(riff: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk of a RIFF file; a chunk of odd size is padded to an even one."""
    position = 12  # behind "RIFF", the size and "WAVE"
    while position + 8 <= len(riff):
        name, size = struct.unpack_from("<4sI", riff, position)
        yield name, riff[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
