"""Where Ray comes from: what its start is told, and what a user reads when a cluster does not go with this program."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from jobs import cluster
from jobs.cluster import MIN_LOCAL_CPUS, prepare_environment, ray_session, this_machine
from model.errors import UsageError


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` was given; nothing is started."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: given.append(options))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_machines", this_machine)
    return given


def test_the_environment_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "debug")
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "")
    monkeypatch.delenv("RAY_DATA_DISABLE_PROGRESS_BARS")
    prepare_environment()
    assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "debug"
    assert os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] == "1"


def test_even_a_machine_of_one_core_has_room_for_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    machines = this_machine()
    assert (machines.resources["CPU"], machines.nodes, machines.cores_per_node) == (MIN_LOCAL_CPUS, 1, 1)


def test_ray_here_is_here_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with ray_session(None):
        pass
    (given,) = started
    assert given["address"] == "local" and given["num_cpus"] >= MIN_LOCAL_CPUS


def test_ray_elsewhere_is_asked_for_by_its_address(listening: str, started: list[dict[str, Any]]) -> None:
    for address in (listening, f"ray://{listening}", "auto"):
        with ray_session(address):
            pass
    assert [given["address"] for given in started] == [listening, f"ray://{listening}", "auto"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ConnectionError("could not\nconnect"), "^No Ray cluster answers at .*: check it and its token"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n"),
            "^The Ray cluster at .* cannot be used: Version mismatch: The cluster was started with: Ray: 2.1.$",
        ),
    ],
)
def test_a_cluster_that_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, listening: str, started: list[dict[str, Any]], raised: Exception, said: str
) -> None:
    def refuse(**_: Any) -> None:
        raise raised

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UsageError, match=said), ray_session(listening):
        pass


def test_models_stand_on_the_nodes_with_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that runs nothing, a dead node, and nodes with and without GPUs."""
    nodes = [({}, True), ({"CPU": 64.0, "GPU": 8.0}, False), ({"CPU": 32.0}, True), ({"CPU": 16.0}, True)]
    gpu_nodes = [({"CPU": 8.0, "GPU": 1.0}, True), ({"CPU": 12.0, "GPU": 1.0}, True), ({"GPU": 1.0}, True)]

    def machines(*present: tuple[dict[str, float], bool]) -> tuple[int, int]:
        monkeypatch.setattr("ray.nodes", lambda: [{"Resources": has, "Alive": alive} for has, alive in present])
        monkeypatch.setattr("ray.cluster_resources", dict)
        found = cluster._machines()
        return found.nodes, found.cores_per_node

    assert machines(*nodes, *gpu_nodes) == (3, 12)
    assert machines(*nodes) == (2, 32)
    assert machines(nodes[0]) == (1, 1), "nothing is there yet"
    assert machines(gpu_nodes[2]) == (1, 1), "a node whose CPUs are all kept for others"
