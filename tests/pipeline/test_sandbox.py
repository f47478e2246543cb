"""Confinement with real programs: what they may not do, that they die with whoever started them, and what is swept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import sandbox
from pipeline.config import ReadOptions
from pipeline.media import find_ffmpeg
from pipeline.parts import ReadParts
from pipeline.sandbox import BUBBLEWRAP, LIMITS, end, ended_by, isolation, private_file, start, sweep
from tests.pipeline.reading import GENERATION, N_MELS

ANY = "/bin/sh"
needs_bubblewrap = pytest.mark.skipif(
    isolation(find_ffmpeg()) != BUBBLEWRAP, reason="bubblewrap is not installed, or not allowed here"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "media"
    path.write_text("content")
    return path


def output(script: str, file: Path, seconds: float = 30.0) -> str:
    """What a shell script says when it runs confined, its standard error included."""
    process = start([ANY, "-c", f"{{ {script}\n}} 2>&1"], file, seconds)
    try:
        return process.communicate(timeout=60)[0].decode()
    finally:
        end(process)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def unjailed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_BWRAP", "")


@pytest.mark.usefixtures("unjailed")
def test_limits_hold_and_no_credentials_are_seen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    said = output("ulimit -v; ulimit -t; ulimit -f; ulimit -c; echo key=$AWS_SECRET_ACCESS_KEY; pwd", file, 7.0)
    assert said.split() == ["1048576", "8", "0", "0", "key=", str(file.parent)]


@pytest.mark.usefixtures("unjailed")
def test_no_file_can_be_written(file: Path) -> None:
    output("echo more >> media", file)
    output("echo x > other", file)
    assert file.read_text() == "content" and not (file.parent / "other").stat().st_size


def test_a_loop_on_the_cpu_meets_its_limit(file: Path) -> None:
    process = start([ANY, "-c", "while :; do :; done"], file, 0.0)  # one second
    assert ended_by(process.wait(60)) in ("SIGXCPU", "SIGKILL")
    process.communicate()


def test_without_bubblewrap_there_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_BWRAP", "")
    assert isolation(ANY) == LIMITS
    monkeypatch.setenv("EARWITNESS_BWRAP", "/no/such/program")
    assert isolation(ANY) == LIMITS


def test_a_bubblewrap_that_does_not_work_is_not_used(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that forbids namespaces."""
    forbidden = tmp_path / "bwrap"
    forbidden.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    monkeypatch.setenv("EARWITNESS_BWRAP", str(forbidden))
    assert isolation(ANY) == LIMITS
    assert output("echo works", file) == "works\n"


@pytest.mark.parametrize(
    ("returncode", "name"),
    [(0, None), (1, None), (183, None), (-11, "SIGSEGV"), (-13, "SIGPIPE"), (139, "SIGSEGV"), (137, "SIGKILL")],
)
def test_a_crash_has_a_name_in_and_out_of_a_jail(returncode: int, name: str | None) -> None:
    assert ended_by(returncode) == name


# --- the jail -----------------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_a_jail_holds_one_file_and_no_network(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "canary").write_text("song")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(sandbox, "_works", lambda bwrap, program: True)  # a shell knows no -version
    seen = output(f"cat '{file}'; echo; cat canary; cat '{file.parent}/canary'; ls '{file.parent}'", file)
    assert seen.splitlines()[0] == "content" and "song" not in seen and seen.splitlines()[-1] == "media"
    assert "passwd" not in output("ls /etc /home /root /tmp /proc", file)
    assert output("echo key=$AWS_SECRET_ACCESS_KEY", file) == "key=\n"
    assert "lo" not in output("cat /proc/net/dev /sys/class/net/*/address; ls /sys/class/net", file).split()
    assert "Read-only" in output(f"echo x > '{file}'", file) and file.read_text() == "content"


@needs_bubblewrap
def test_ffmpeg_runs_in_a_jail_of_its_own(file: Path) -> None:
    process = start([find_ffmpeg(), "-version"], file, 30.0)
    assert process.communicate(timeout=60)[0].startswith(b"ffmpeg version")
    end(process)


# --- nobody outlives -----------------------------------------------------------------------------------------------


def test_the_end_kills_whatever_was_started(file: Path) -> None:
    process = start([ANY, "-c", "sleep 600 & sleep 600 & echo started; wait"], file, 30.0)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"started\n"
    assert len(living(process.pid)) >= 3
    end(process)
    process.stdout.close()
    process.stderr.close()
    assert not soon(lambda: not living(process.pid))


def living(group: int) -> list[int]:
    """The processes of a group, or of a session, that have not ended; a zombie has, and waits to be collected."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:  # ended while we looked
            continue
        if group in (int(its_group), int(session)) and state != "Z":
            found.append(int(stat.parent.name))
    return found


def soon(happened: Callable[[], bool]) -> str | None:
    """None once it has happened; a word about it after ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if happened():
            return None
        time.sleep(0.02)
    return "not within ten seconds"


HANGING = """
import sys
from pathlib import Path
from pipeline import sandbox
if {without_setpriv}:
    sandbox.subprocess.run = lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError())
process = sandbox.start(["/bin/sleep", "600"], Path({file!r}), 600.0)
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.parametrize("without_setpriv", [False, True], ids=["setpriv", "prctl"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_program_that_hangs_without_a_word_dies_with_its_killed_reader(file: Path, without_setpriv: bool) -> None:
    """It never writes, so a broken pipe would never reach it."""
    if not without_setpriv and shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv")
    code = HANGING.format(file=str(file), without_setpriv=without_setpriv)
    environment = os.environ | {"EARWITNESS_BWRAP": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None
        hanging = int(reader.stdout.readline())
        assert not soon(lambda: Path(f"/proc/{hanging}/comm").read_text() == "sleep\n")
        assert living(hanging)
        reader.kill()
    assert not soon(lambda: not living(hanging))


@needs_bubblewrap
def test_a_jail_dies_with_its_killed_reader(file: Path) -> None:
    pipe = file.parent / "pipe"  # ffmpeg waits for a writer, and nothing reaches it
    os.mkfifo(pipe)
    code = HANGING.format(file=str(pipe), without_setpriv=False).replace(
        '["/bin/sleep", "600"]', f'[{find_ffmpeg()!r}, "-nostdin", "-i", {str(pipe)!r}, "-f", "null", "-"]'
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None
        int(reader.stdout.readline())
        assert not soon(lambda: bool(using(pipe)))
        reader.kill()
    assert not soon(lambda: not using(pipe))


def using(path: Path) -> list[int]:
    """ffmpeg processes that were given a path."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(path).encode() in arguments and arguments[0].endswith(find_ffmpeg().encode()):
            found.append(int(line.parent.name))
    return found


# --- private folders ----------------------------------------------------------------------------------------------


def test_a_private_file_is_alone_and_gone_afterwards(temporary: Path) -> None:
    with private_file() as path:
        path.write_bytes(b"x")
        assert list(path.parent.iterdir()) == [path]
        assert path.parent.parent == temporary
    assert not list(temporary.iterdir())


def test_the_folders_of_the_living_are_never_swept(temporary: Path) -> None:
    with private_file() as path, private_file() as other:
        path.write_bytes(b"x")
        assert sweep() == 0
        assert path.exists() and other.parent.exists()


OWNER = """
import tempfile, time
tempfile.tempdir = {folder!r}
from pipeline.sandbox import private_file
with private_file() as path:
    path.write_bytes(b"x")
    print(path, flush=True)
    time.sleep(600)
"""


def test_the_folder_of_a_killed_reader_is_swept(temporary: Path) -> None:
    code = OWNER.format(folder=str(temporary))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().decode().strip())
        assert sweep() == 0 and left.exists(), "its owner is another process, and lives"
        owner.send_signal(signal.SIGKILL)
    assert left.exists()
    with private_file() as living_one:
        assert sweep() == 1
        assert not left.parent.exists() and living_one.parent.exists()
    assert sweep() == 0


def test_a_reader_sweeps_when_it_starts(temporary: Path) -> None:
    left = Path(tempfile.mkdtemp(prefix=sandbox.PREFIX))
    (left / "media").write_bytes(b"x")
    with private_file() as path:
        ReadParts(N_MELS, GENERATION, ReadOptions(voice_activity=False))
        assert path.parent.exists() and not left.exists()


def test_what_only_looks_like_a_private_folder_is_left(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (temporary / f"{sandbox.PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{sandbox.PREFIX}file").write_text("x")
    assert sweep() == 0
    assert elsewhere.exists() and len(list(temporary.iterdir())) == 2


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = tempfile.mkdtemp, []

    def make_and_lose(prefix: str, dir: str | None) -> str:
        folder = make(prefix=prefix, dir=dir)
        if not swept:
            swept.append(folder)
            assert sweep() == 1
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    with private_file() as path:
        assert path.parent.exists() and str(path.parent) not in swept
