"""A Ray cluster of several raylets on this machine, with GPUs that are only said to be there, and its dashboard.

Its head runs drivers and no stage, as the clusters that people have. It refuses to know what runs on it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from infra import s3_server

OBJECT_STORE_BYTES = 100 << 20  # of each node; Ray takes no less than 75 MB


class Raylets:
    """The nodes of one cluster beside its head."""

    def __init__(self) -> None:
        (port,) = s3_server._free_ports(1)
        # The agent starts jobs; on its usual port it starts none while another Ray of this machine has that.
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": 0}
        self._cluster = Cluster(True, head_node_args=head | {"object_store_memory": OBJECT_STORE_BYTES})
        self.dashboard = f"http://{self._cluster.head_node.webui_url}"

    def add(self, cpus: int, gpus: int = 0) -> Any:
        """One more node."""
        return self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=OBJECT_STORE_BYTES)

    def lose(self, node: Any) -> None:
        """One node fewer, in the middle of what it does."""
        node.kill_raylet()
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def raylets() -> Iterator[Raylets]:
    """A cluster of a head alone. What it starts finds this Python first, and no Ray but its own."""
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as at,
    ):
        at.setenv("RAY_TMPDIR", scratch)  # where Ray notes which cluster is the current one, that jobs are to join
        at.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        at.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        at.setenv("OMP_NUM_THREADS", "1")
        at.delenv("RAY_ADDRESS", raising=False)
        started = Raylets()
        try:
            yield started
        finally:
            started.shutdown()
