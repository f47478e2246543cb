"""A small real cluster under fire: drivers, Ray workers, raylets and the S3 server are killed in turn, as a seed says.

A run goes on until a driver ends with 0, however many it takes; then the tables are compared, and the next run begins.
It refuses to know what the tables should hold (`oracle.py`), and how a target comes back (`targets.py`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from tests.chaos import oracle
from tests.chaos.oracle import Holdings
from tests.chaos.targets import STAGES, Nodes, Server, is_alive

ROOT = Path(__file__).parents[2]
# Each with its share of the kills. What every stage needs, and what takes everything with it, comes first.
VICTIMS = {"server": 6, "raylet": 4, "driver": 3, **dict.fromkeys(STAGES, 2)}
LONGEST_PEACE = 4.0  # seconds between two kills, at most
NOT_THERE_YET = 20.0  # seconds that a worker is waited for before another victim is taken
PATIENCE_SECONDS = 600.0  # for a driver that nobody disturbs, on a machine that does other work as well
BUCKET = "kills"
OPTIONS = """
model = "tiny.en"
[read]
part_seconds = 5.0
retries = 1000 # a file whose reader was killed again and again is given up by its run, not for good
[run]
precision = "float32"
slots = 2
parts_per_shard = 1
publish_seconds = 0.2
"""


@dataclass
class Score:
    """What came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)  # of drivers that nobody killed
    strange: list[str] = field(default_factory=list)  # what drivers said that was more than a sentence
    runs: int = 0
    complaints: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rows = [f"{victim:>8} {self.kills[victim]:6}" for victim in VICTIMS]
        total = self.kills.total()
        return "\n".join(
            [
                *("  victim  kills", *rows, f"     all {total:6}"),
                f"{self.runs} runs, {self.lost} rows lost, {self.doubled} doubled, "
                f"{self.seconds:.0f} s, {self.seconds / max(1, total):.1f} s a kill",
                "drivers ended: " + ", ".join(f"{how} {number}" for how, number in sorted(self.endings.items())),
                *self.strange[:5],
            ]
        )


class Fire:
    """Kills, and keeps count. `archive` is transcribed to one destination after the other."""

    def __init__(self, server: Server, nodes: Nodes, archive: Path, scratch: Path, seed: int) -> None:
        self.score = Score()
        self._server, self._nodes = server, nodes
        self._chance = random.Random(seed)
        self._config = scratch / "options.toml"
        self._config.write_text(OPTIONS)
        self._said = scratch / "said.txt"
        self._archive = archive
        self._driver: subprocess.Popen[bytes] | None = None

    def undisturbed(self) -> Holdings:
        """The rows of a run that nobody disturbs."""
        self._run(dest := self._new())
        return oracle.plainly(dest)

    def rage(self, kills: int, expected: Holdings) -> None:
        """Kill so many, over as many runs as that takes, and compare each run's tables when it has ended."""
        started = time.monotonic()
        while self.score.kills.total() < kills:
            dest = self._new()
            while not self._fight(dest, kills):
                continue
            self._compare(dest, expected)
            self.score.runs += 1
            self.score.seconds = time.monotonic() - started

    def _fight(self, dest: str, kills: int) -> bool:
        """One driver, with kills once it is at work, until it is gone; whether it ended by itself and well."""
        driver = self._start(dest)
        self._awaited("sink", driver)
        while self.score.kills.total() < kills:
            try:
                driver.wait(self._chance.uniform(0, LONGEST_PEACE))
                return self._ended(driver) == 0
            except subprocess.TimeoutExpired:
                self._kill(driver)
        driver.wait(PATIENCE_SECONDS)
        return self._ended(driver) == 0

    def _kill(self, driver: subprocess.Popen[bytes]) -> None:
        (victim,) = self._chance.choices(list(VICTIMS), list(VICTIMS.values()))
        if victim in STAGES:
            pid = self._awaited(victim, driver)
            if pid is None:
                return
            os.kill(pid, signal.SIGKILL)
        elif victim == "driver":
            driver.kill()
            driver.wait()
        elif victim == "raylet":
            self._nodes.replace()
        else:
            self._server.kill()
            self._server.start()
        self.score.kills[victim] += 1

    def _awaited(self, stage: str, driver: subprocess.Popen[bytes]) -> int | None:
        deadline = time.monotonic() + NOT_THERE_YET
        while time.monotonic() < deadline and driver.poll() is None:
            if (pid := self._nodes.worker(stage)) is not None:
                time.sleep(self._chance.uniform(0, 0.5))
                return pid if is_alive(pid) else None
            time.sleep(0.05)
        return None

    def _ended(self, driver: subprocess.Popen[bytes]) -> int:
        code, said = driver.returncode, self._said.read_text()
        if code == -signal.SIGKILL:
            return code
        self.score.endings[str(code)] += 1
        if code != 0 and not re.fullmatch(r"[^\n]+\.", re.sub(r"\n +", " ", said.strip())):
            self.score.strange.append(f"exit {code}: {said.strip()[-800:]}")
        return code

    def _run(self, dest: str) -> None:
        driver = self._start(dest)
        assert driver.wait(PATIENCE_SECONDS) == 0, self._said.read_text()

    def _start(self, dest: str) -> subprocess.Popen[bytes]:
        arguments = ["transcribe", str(self._archive), "--to", dest, "--config", str(self._config), "--json"]
        arguments += ["--address", self._nodes.address]
        with open(self._said, "wb") as said:
            self._driver = subprocess.Popen(
                [sys.executable, "-c", "from jobs.cli import main; main()", *arguments],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        return self._driver

    def _compare(self, dest: str, expected: Holdings) -> None:
        said = oracle.complaints(dest, expected, retried=True)
        found = oracle.plainly(dest).settled()
        self.score.complaints += said
        self.score.lost += found.missing(expected)
        self.score.doubled += found.doubled()

    def _new(self) -> str:
        return f"s3://{BUCKET}/{self._chance.getrandbits(64):016x}"

    def close(self) -> None:
        if self._driver and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()


@contextmanager
def under_fire(archive: Path, seed: int) -> Iterator[Fire]:
    """The cluster, the server and their processes, all gone at the end of the block; AWS_* points there meanwhile."""
    before = dict(os.environ)
    temporary = tempfile.mkdtemp(prefix="ray-")  # short: it holds Unix sockets
    server = nodes = fire = None
    try:
        (scratch := Path(temporary, "chaos")).mkdir()
        server = Server(scratch)
        os.environ.update(server.address.env | {"OMP_NUM_THREADS": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"})
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        nodes = Nodes(temporary)
        yield (fire := Fire(server, nodes, archive, scratch, seed))
    finally:
        if fire:
            fire.close()
        if nodes:
            nodes.shutdown()
        if server:
            server.kill()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(temporary, ignore_errors=True)
