"""What a reader leaves behind after hundreds of files, compared with what it held after the first two hundred.

EARWITNESS_CHAOS_FILES=2000 reads so many instead of 600.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.corpus import write_wav

FEW = 200
MANY = max(600, int(os.environ.get("EARWITNESS_CHAOS_FILES", "600")))
# Less than 8 kB of each of 400 files; a log-mel is a hundred times as much. What grows is that a reader
# remembers the names and contents of its files, half a kilobyte each, and what malloc does not give back.
NOISE_BYTES = 3 << 20

READER = """
import gc, json, os, tempfile, threading
from pathlib import Path
from pipeline.config import ReadOptions
from pipeline.parts import ReadParts
from tests.pipeline.reading import GENERATION, N_MELS, manifest

def held():
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    parents = [stat.read_text().rsplit(")", 1)[1].split()[1] for stat in Path("/proc").glob("[0-9]*/stat")]
    return {{
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": parents.count(str(os.getpid())),
        "threads": threading.active_count(),
        "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        "bytes": int(status["RssAnon"].split()[0]) * 1024,
    }}

reader = ReadParts(N_MELS, GENERATION, ReadOptions(voice_activity=False))
paths = sorted(Path({folder!r}).iterdir())
statuses = {{}}
for first in range(0, len(paths), {few}):
    for table in reader(manifest(*paths[first : first + {few}])):
        status = table["status"][0].as_py()
        statuses[status] = statuses.get(status, 0) + 1
    print(json.dumps(held()))
print(json.dumps(statuses))
"""


@pytest.mark.timeout(600)
def test_nothing_is_left_of_many_files_that_is_not_left_of_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stereo that cancels out takes a second ffmpeg, and what is no audio ends early: all ways out are taken."""
    folder = tmp_path / "archive"
    folder.mkdir()
    (tmp_path / "temporary").mkdir()
    for number in range(MANY):
        _write(folder / f"{number:05}.wav", number)
    code = READER.format(folder=str(folder), few=FEW)
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    few, *_, many, statuses = (json.loads(line) for line in done.stdout.splitlines())
    with capsys.disabled():
        print(f"\n{'after files':>16} {FEW:>12,} {MANY:>12,}")
        for name in few:
            print(f"{name:>16} {few[name]:>12,} {many[name]:>12,}")
    assert sum(statuses.values()) == MANY and set(statuses) == {"ok", "truncated", "no_audio"}
    assert many.pop("bytes") < few.pop("bytes") + NOISE_BYTES
    assert many == few
    assert few["processes"] == few["temporary files"] == 0


def _write(path: Path, number: int) -> None:
    """Of four: a clip, one whose channels cancel out, one cut short, and no audio at all; all different."""
    random = np.random.default_rng(number)
    pcm = random.normal(0, 3000, 4000).astype(np.int16)
    kind = number % 4
    write_wav(path, np.stack([pcm, -pcm], axis=1) if kind == 1 else pcm)
    if kind == 2:
        path.write_bytes(path.read_bytes()[:-1000])
    if kind == 3:
        path.write_bytes(random.bytes(3000))
