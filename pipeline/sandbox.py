"""Confinement of a foreign program: a private folder for its one file, limits, and a jail where the system has one.

    private_file() ──▶ a folder with one file ──▶ start(program over the file) ──▶ end(process)

bubblewrap gives the program a file system of its own, which holds nothing but the program and the file, and no network.
Where it is missing or forbidden, as in many containers, limits on memory, time and file size are what is left. It
refuses to know which program it is, what it reads, and what comes of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pipeline import folders

BUBBLEWRAP, LIMITS = "bubblewrap", "limits"  # how a program is confined
PREFIX = "earwitness-media-"
MEMORY_BYTES = 1 << 30  # address space of the program; 400 MB is the least that ffmpeg starts in
GRACE_SECONDS = 5.0  # to be gone once killed
PROBE_SECONDS = 20.0  # a busy machine; 50 ms on a quiet one

# Where programs and what they are linked against live; /etc only for how libraries are found. Nothing else is seen.
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_CRASHES = (4, 6, 7, 8, 9, 11, 24, 25, 31)  # ILL, ABRT, BUS, FPE, KILL, SEGV, XCPU, XFSZ, SYS: no exit codes of ffmpeg
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")

# A shell sets the limits, then becomes the program: a `preexec_fn` would run Python between fork and exec, which can
# deadlock in a process with threads (a Ray worker), and forbids vfork. A limit that cannot be set is already stricter.
# Whoever started it may be gone by now, before it was agreed that this kills the program as well.
_WITH_LIMITS = """
[ "$PPID" = {parent} ] || exit 1
ulimit -v {kibibytes}; ulimit -t {seconds}; ulimit -f 0; ulimit -c 0
exec "$@"
"""
# Where there is no setpriv: prctl(PR_SET_PDEATHSIG, SIGKILL), which outlives exec. Some 15 ms for each file.
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


# --- a folder of its own ------------------------------------------------------------------------------------------


@contextmanager
def private_file(name: str = "media") -> Iterator[Path]:
    """A path for one file, alone in a fresh folder; both are gone when the block ends. The name is ours, never a uri's.

    The folder is locked meanwhile, which tells `sweep` that its owner lives.
    """
    with folders.locked_folder(PREFIX) as folder:
        try:
            yield folder / name
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed now, a later sweep will find unlocked


def sweep() -> int:
    """Remove the files of owners that were killed; returns how many. Those of the living are never touched."""
    return folders.sweep(PREFIX)


# --- a process of its own -----------------------------------------------------------------------------------------


def isolation(program: str) -> str:
    """How `program` is confined on this machine: BUBBLEWRAP where that is present and works, else LIMITS.

    $EARWITNESS_BWRAP is the path of bubblewrap; set to nothing, it is not used.
    """
    bwrap = _bubblewrap()
    return BUBBLEWRAP if bwrap and _works(bwrap, program) else LIMITS


def start(arguments: Sequence[str], file: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Run a program that may read `file`, for at most so many seconds on the CPU; its output and errors are pipes.

    It has a process group of its own, none of our environment, since it needs no credentials, and may write no file. It
    is killed when we are, hang as it may. "We" is the thread that calls this, which must live as long as is read.
    """
    script = _WITH_LIMITS.format(parent=os.getpid(), kibibytes=MEMORY_BYTES // 1024, seconds=int(seconds) + 1)
    bwrap = _bubblewrap() if isolation(arguments[0]) == BUBBLEWRAP else None
    inside = _jailed(bwrap, arguments, file) if bwrap else list(arguments)
    return subprocess.Popen(
        [*_dying_with_parent(), shutil.which("sh") or "/bin/sh", "-c", script, "sh", *inside],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=-1,
        cwd=file.parent,
        env=_environment(),
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program and of whatever it started; at once, whatever it does."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE_SECONDS)


def ended_by(returncode: int) -> str | None:
    """The name of the signal that ended a program, or None; bubblewrap tells it as a shell does, by 128 and more."""
    if returncode < 0:
        return signal.Signals(-returncode).name
    return signal.Signals(returncode - 128).name if returncode - 128 in _CRASHES else None


def _bubblewrap() -> str | None:
    program = os.environ.get("EARWITNESS_BWRAP", "bwrap")
    return shutil.which(program) if program else None


@cache
def _works(bwrap: str, program: str) -> bool:
    """Whether `program` runs in a jail: namespaces may be forbidden, or its libraries lie where nobody looks."""
    jailed = _jailed(bwrap, [program, "-version"], Path("/dev/null"))
    try:
        done = subprocess.run(jailed, capture_output=True, timeout=PROBE_SECONDS, env=_environment())
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _jailed(bwrap: str, arguments: Sequence[str], file: Path) -> list[str]:
    program = os.path.realpath(arguments[0])
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    beside = str(Path(program).parent.parent / "lib")  # where conda puts the libraries of its programs
    seen = [*SYSTEM, beside, *(path for path in libraries.split(":") if path)]
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    options += ["--setenv", "LC_ALL", "C", *(("--setenv", "LD_LIBRARY_PATH", libraries) if libraries else ())]
    for path in seen:
        options += ["--ro-bind-try", path, path]
    for path in (program, str(file)):
        options += ["--ro-bind", path, path]
    return [bwrap, *options, "--chdir", "/", program, *arguments[1:]]


@cache
def _dying_with_parent() -> tuple[str, ...]:
    """What stands before a command so that the kernel kills it when we die; nothing but on Linux."""
    asked = ("setpriv", "--pdeathsig", "KILL")
    try:
        if subprocess.run([*asked, "true"], capture_output=True, timeout=PROBE_SECONDS).returncode == 0:
            return asked
    except (OSError, subprocess.TimeoutExpired):
        pass  # not there, or busybox's, which knows no such option
    return (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT) if sys.platform == "linux" else ()


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {"LC_ALL": "C"}
