"""Where Ray comes from: the only `ray.init` of the project, on this machine or at an address."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import EarwitnessError, UsageError
from pipeline.folders import locked_folder, sweep

# Ray Data lets half of its object store be on its way, and what a reader has put there counts as its memory.
OBJECT_STORE_BYTES = 512 << 20
OBJECT_STORE_BYTES_PER_GPU = 4 << 30  # 64 slots hold 1 GB of parts
MIN_LOCAL_CPUS = 2.0  # booked, not real: a machine of one core runs the same graph, slower

ANSWER_SECONDS = 10.0  # for a cluster to accept a connection
MAX_PORT = 65_535
_FOLDER = "earwitness-ray-"


@dataclass(frozen=True)
class Machines:
    """What a run may use: CPUs and GPUs in all, the number of machines that models stand on, and the cores of one."""

    resources: Mapping[str, float]
    nodes: int
    cores_per_node: int


def this_machine() -> Machines:
    """This machine alone, without asking Ray."""
    import torch  # slow to import, and not needed to answer for a cluster

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = float(torch.cuda.device_count())
    return Machines({"CPU": max(MIN_LOCAL_CPUS, float(cores)), "GPU": gpus}, 1, cores)


def is_connected() -> bool:
    """Whether this process uses a Ray already. One that never imported Ray does not, and need not wait for it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def prepare_environment() -> None:
    """What Ray reads from the environment; some of it already when it is imported, so this comes before."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that asks after the end starts a new Ray
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # a driver under `uv run` must not infect its workers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns on standard error of what is by design here


def prepare_dashboard_client() -> None:
    """The same for a process that asks a dashboard and nothing else: it shows the token that lies where Ray looks.

    Only for such: a driver that asks for tokens is lost to a cluster that has none.
    """
    prepare_environment()
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(file).is_file()
    if has_token and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextlib.contextmanager
def ray_session(address: str | None, machines: Machines | None = None) -> Iterator[Machines]:
    """Ray on this machine, or the cluster at `address`; a Ray that is already connected is used and left as it is.

    Raises: `UsageError` when nothing answers at the address, or a Ray that does not go with this one.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield _machines()
        return
    folder = contextlib.nullcontext("") if address else _own_folder()
    with folder as temporary:
        yield from _connected(address, machines, temporary)


def _connected(address: str | None, machines: Machines | None, folder: str) -> Iterator[Machines]:
    import ray

    try:
        with _interrupted_afterwards():
            if address:
                _join(address)
            else:
                _start_here(machines or this_machine(), folder)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs as errors, it also raises
        yield _machines()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """An interruption in here is heeded at the end: half a `ray.init` ends in a crash, and leaves processes behind."""
    if threading.current_thread() is not threading.main_thread():  # no signal is heeded there
        yield
        return
    came: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    waiting = [number for number, handler in usual.items() if handler is signal.default_int_handler]
    for number in waiting:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in waiting:
            signal.signal(number, usual[number])
    if came:
        raise KeyboardInterrupt


def _join(address: str) -> None:
    import ray

    _require_answer(address)
    try:
        with _silent_standard_error():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise _no_answer(address) from error
    except RuntimeError as error:  # another version of Ray or Python
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"The Ray cluster at {address} cannot be used: {reason}.") from error


def _require_answer(address: str) -> None:
    """Knock before Ray does, which would wait for a quarter of an hour. `auto` is Ray's to resolve."""
    if address == "auto":
        return
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise UsageError(f"The address {address} is not one of Ray's: give HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise _no_answer(address) from error


def _no_answer(address: str) -> UsageError:
    return UsageError(
        f"No Ray cluster answers at {address}, or not to a stranger: check it and its token (RAY_AUTH_MODE=token), or "
        f"leave it out to run on this machine."
    )


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Where a Ray on this machine has its sockets and logs, which would otherwise stay for ever.

    Those of runs that were killed are cleared away first; a bug leaves its own until then. The path is short: those of
    sockets are, and may have 107 bytes.
    """
    place = os.environ.get("RAY_TMPDIR") or "/tmp"
    sweep(_FOLDER, place)
    with locked_folder(_FOLDER, place) as folder:
        try:
            yield str(folder)
        except (EarwitnessError, KeyboardInterrupt):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _start_here(machines: Machines, folder: str) -> None:
    import ray

    with _silent_standard_error():
        ray.init(
            _temp_dir=folder,
            address="local",  # whatever RAY_ADDRESS says: a cluster is only used when it is asked for
            num_cpus=int(machines.resources["CPU"]),
            num_gpus=int(machines.resources["GPU"]),
            object_store_memory=OBJECT_STORE_BYTES + OBJECT_STORE_BYTES_PER_GPU * int(machines.resources["GPU"]),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


@contextlib.contextmanager
def _silent_standard_error() -> Iterator[None]:
    """Ray's core announces its own log level on file descriptor 2, past Python. What it raises still comes through."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _machines() -> Machines:
    """What the cluster has now. Models stand on the nodes with a GPU where there is any, so those are counted."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    hosts = [node for node in nodes if node.get("GPU")] or [node for node in nodes if node.get("CPU")]
    cores = max((node.get("CPU", 0) for node in hosts), default=1)
    return Machines(ray.cluster_resources(), max(1, len(hosts)), max(1, int(cores)))
