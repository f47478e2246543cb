"""The handle on a process of `doomed.py`: give it an order, and learn how the fork that carried it out ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.doomed import Order, Outcome

ROOT = Path(__file__).parents[2]


class Zygote:
    """A process that forks a run for each order, used by one test at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, order: Order) -> int:
        """The pid of a run that has just begun."""
        return int(self._ask(asdict(order)))

    def wait(self, pid: int) -> int:
        """The status of a run that ended or was stopped, as `os.waitpid` has it."""
        return int(self._ask({"wait": pid}))

    def run(self, order: Order) -> Outcome | None:
        """How a run ended; None when it was killed."""
        return self.ending(self.start(order), order)

    def ending(self, pid: int, order: Order) -> Outcome | None:
        """How a run that was started ended; None when it was killed. A run that hangs is an error."""
        status = self.wait(pid)
        if os.WIFSIGNALED(status):
            killed_by = os.WTERMSIG(status)
            assert killed_by == signal.SIGKILL, f"it ended by {signal.Signals(killed_by).name}: {order}"
            return None
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"it ended with {status}: {order}"
        return Outcome(**json.loads(Path(order.outcome).read_text()))

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote died"
        return json.loads(answer)


@contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote, gone at the end of the block."""
    one_thread = {"OMP_NUM_THREADS": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.doomed"],
        cwd=ROOT,
        env=os.environ | one_thread,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Zygote(process)
        assert process.stdin
        process.stdin.close()
