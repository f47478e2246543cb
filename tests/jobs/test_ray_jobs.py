"""A log that is followed over connections that break; real jobs are in test_submit.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import s3_server
from jobs.ray_jobs import _as_given, _Log

PATIENCE_SECONDS = 40.0
WHOLE = 'Runtime env is setting up.\n{"earwitness": "planned"}\n\nfünf\nlast'


class Dashboard:
    """Tells a log from its beginning at each connection, in pieces, and breaks each where it is told to."""

    def __init__(self, log: str, piece: int, breaks: list[int]) -> None:
        self._log, self._piece, self._breaks = log, piece, breaks

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        end = self._breaks.pop(0) if self._breaks else len(self._log)
        for start in range(0, end, self._piece):
            yield self._log[start : min(end, start + self._piece)]
        if end < len(self._log):
            raise RuntimeError("WebSocket connection closed unexpectedly")


@given(piece=st.integers(1, 80), breaks=st.lists(st.integers(0, len(WHOLE) - 1), max_size=4))
def test_every_line_is_told_once_however_often_the_connection_breaks(piece: int, breaks: list[int]) -> None:
    told: list[str] = []
    log = _Log(told.append)
    dashboard = Dashboard(WHOLE, piece, breaks)
    for _ in range(len(breaks) + 1):
        asyncio.run(log.tail(dashboard, "job"))
    assert told == WHOLE.split("\n")[:-1]
    log.rest(WHOLE)
    assert told == WHOLE.split("\n")


def test_what_no_connection_told_is_told_at_the_end() -> None:
    told: list[str] = []
    log = _Log(told.append)
    asyncio.run(log.tail(Dashboard(WHOLE, 7, [30]), "job"))
    log.rest(WHOLE)
    assert told == WHOLE.split("\n")


def test_the_address_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would take RAY_ADDRESS for it."""
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with _as_given():
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The dashboard of a cluster that was started by hand on a machine with a token, and the token."""
    home, token = tmp_path_factory.mktemp("head"), uuid.uuid4().hex * 2
    ports = s3_server._free_ports(2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_AUTH_TOKEN": token}
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--temp-dir={folder}"]
        command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{ports[1]}", token
        finally:
            head.terminate()
            head.wait()


@pytest.mark.parametrize("given", ["the token", "none", "another"])
def test_a_cluster_that_asks_for_a_token_gets_it_or_a_sentence(
    guarded: tuple[str, str], tmp_path: Path, given: str
) -> None:
    dashboard, token = guarded
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path)} | {"none": {}, "another": {"RAY_AUTH_TOKEN": "0" * 64}}.get(
        given, {"RAY_AUTH_TOKEN": token}
    )
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "jobs", "list", "--address", dashboard]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "No Ray dashboard answers" not in done.stderr or time.monotonic() > deadline:
            break
    if given == "the token":
        assert (done.returncode, done.stdout, done.stderr) == (0, "(no rows)\n", "")
    else:
        assert done.returncode == 2
        what = "asks for its token" if given == "none" else "refused the token it was shown"
        assert done.stderr.startswith(f"earwitness: The cluster at {dashboard} {what}: set RAY_AUTH_TOKEN to what")
