"""What runs leave behind on their machine: nothing. Two at once, and for ten minutes where it may take long."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.samples import fetch_samples
from pipeline import catalog
from pipeline.store import Store
from tests.chaos.conftest import EVERYWHERE
from tests.jobs.test_submit import COMMAND, recordings

pytestmark = pytest.mark.timeout(3600 if EVERYWHERE else 300)
COPIES = (
    200 if EVERYWHERE else 0
)  # of each clip, at so many volumes; about ten minutes of work for two runs on two cores
SOON = 10.0
MARK = "EARWITNESS_TEST_RUN"


@pytest.fixture
def machine() -> Iterator[Path]:
    """A place for everything temporary, with a short name, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    if COPIES:
        return recordings(tmp_path / "archive", COPIES, ("en", "de", "fr", "es"))
    for clip in ("en/hello_world.wav", "en/counting.wav"):
        shutil.copy(fetch_samples() / clip, tmp_path / "archive")
    return tmp_path / "archive"


def begun_by(mark: str) -> dict[int, str]:
    """Processes that have a variable of this value in their environment, as all have that a run starts."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended, or is another user's
            continue
    return found


def test_two_runs_at_once_leave_no_process_no_socket_and_no_file(machine: Path, archive: Path, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark, "TMPDIR": str(machine), "RAY_TMPDIR": str(machine)}
    places = [tmp_path / "one", tmp_path / "two"]
    command = [*COMMAND, "transcribe", str(archive), "--model", "tiny.en", "--to"]
    started = time.monotonic()
    runs = [subprocess.Popen([*command, str(place)], env=environment) for place in places]
    deadline = time.monotonic() + 60.0
    while not any("raylet" in line for line in begun_by(mark).values()):
        assert time.monotonic() < deadline, "the runs started no Ray that this test would notice"
        time.sleep(0.2)
    assert any(machine.iterdir()), "the runs have nothing temporary where this test looks"
    assert [run.wait() for run in runs] == [0, 0]
    print(f"{time.monotonic() - started:.0f} s")
    for place in places:
        (row,) = catalog.query(Store.open(str(place)), "SELECT count(*) FILTER (complete) AS n FROM files").to_pylist()
        assert row["n"] == len(list(archive.iterdir()))

    deadline = time.monotonic() + SOON
    while (left := begun_by(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}
    # PyTorch makes one folder for each user, empty, whoever imports it.
    assert [str(path) for path in machine.rglob("*") if not path.name.startswith("torchinductor_")] == []
    assert str(machine) not in Path("/proc/net/unix").read_text()
