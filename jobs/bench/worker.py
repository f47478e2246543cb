"""One contender in a process of its own: loaded once, idle while others run, measured from within.

A process each keeps thread pools apart, and makes the peak of memory the contender's own. This module imports nothing
heavy: the number of threads is set before torch, NumPy or CTranslate2 come in.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.contenders import Contender, Heard, Setup
from model.errors import EarwitnessError, UsageError

if TYPE_CHECKING:
    from jobs.bench.recordings import Recording

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GOODBYE_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """One measured run. Seconds are those of the clock, from files to texts; `cpu_seconds` include what it started."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int  # of the process since it started, loading included
    heard: Heard


class Worker:
    """A contender's process, seen from outside. Use it in a `with` block: leaving ends the process."""

    def __init__(self, contender: Contender, setup: Setup) -> None:
        self.contender = contender
        context = multiprocessing.get_context("spawn")  # a forked torch would inherit broken thread pools
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, contender, setup), daemon=True)
        self._process.start()
        far_end.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(GOODBYE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def wait_until_loaded(self) -> None:
        """Raises: what `run` raises."""
        self._answer()

    def run(self, recordings: Sequence[Recording]) -> Run:
        """Let the contender transcribe `recordings`, and wait.

        Raises: the contender's own `EarwitnessError`, or `UsageError` when its process ended.
        """
        run = self._answer(list(recordings))
        assert isinstance(run, Run)
        return run

    def _answer(self, question: Any = None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(GOODBYE_SECONDS)
            raise UsageError(
                f"The contender {self.contender.name} ended with exit code {self._process.exitcode}: see what it said "
                f"above, free memory, or leave it out with --contenders."
            ) from error
        if isinstance(answer, EarwitnessError):
            raise answer
        return answer


def limit_threads(threads: int) -> None:
    """Set what BLAS and OpenMP read when they are first imported."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def _serve(pipe: Connection, contender: Contender, setup: Setup) -> None:
    """The process: load, then one run for every list of recordings, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked too, and ends this one
    limit_threads(setup.threads)
    try:
        listen = importlib.import_module(contender.module).load(setup, **contender.settings)
        pipe.send(None)
        while True:
            pipe.send(_measure(listen, pipe.recv()))
    except EarwitnessError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        return


def _measure(listen: Any, recordings: Sequence[Recording]) -> Run:
    cpu, started = _cpu_seconds(), time.perf_counter()
    heard = listen(recordings)
    seconds = time.perf_counter() - started
    return Run(seconds, _cpu_seconds() - cpu, _peak_bytes(), heard)


def _cpu_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _peak_bytes() -> int:
    """The most memory this process ever held (Linux: VmHWM, which a process does not inherit)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
