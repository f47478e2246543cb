"""What random kills are aimed at: an S3 server and a small Ray cluster that come back when they were killed.

Ray has two nodes, both on this machine: a head that runs nothing, and one that all stages run on, which is lost and
replaced. The S3 server starts again on its own data. They refuse to know who kills them, and when.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from infra import s3_server
from infra.s3_server import S3Server

STAGES = {"reader": "ReadParts", "model": "Transcriber", "sink": "PrepareShard"}


class Server:
    """The S3 server, to be killed, and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        ports = s3_server._free_ports(4)
        self._command = s3_server._command(folder, ports)
        self._log = folder / "weed.log"
        self.address = S3Server(f"http://127.0.0.1:{ports[0]}", s3_server.KEY, s3_server.SECRET)
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        s3_server._wait_until_ready(self._process, self.address.endpoint)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Nodes:
    """Two raylets of one cluster; the second runs all stages, and is replaced when it is killed."""

    def __init__(self, temporary: str) -> None:
        self._cluster = Cluster(True, head_node_args={"num_cpus": 0, "temp_dir": temporary, "include_dashboard": False})
        self.address: str = self._cluster.address
        self._add()

    def _add(self) -> None:
        self._node: Any = self._cluster.add_node(num_cpus=2, object_store_memory=300 << 20)

    def replace(self) -> None:
        """Lose the node in the middle of what it does, and get another."""
        self._node.kill_raylet()
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._add()

    def worker(self, stage: str) -> int | None:
        """The pid of an actor of this stage."""
        raylet = self._node.all_processes["raylet"][0].process.pid
        for pid in _children(raylet):
            title = _read(Path(f"/proc/{pid}/cmdline"))
            if title.startswith("ray::") and STAGES[stage] in title:
                return pid
        return None

    def shutdown(self) -> None:
        self._cluster.shutdown()


def is_alive(pid: int) -> bool:
    return bool(_read(Path(f"/proc/{pid}/cmdline")))


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(Path(f"/proc/{pid}/task/{pid}/children")).split()]


def _read(path: Path) -> str:
    """The text of a file of /proc; empty where the process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
