"""How a run is spread over machines, and the sentences for those it does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import UsageError
from pipeline.config import RunOptions
from pipeline.placement import (
    DECODE_ACTORS_PER_GPU,
    FREE_CPUS,
    SLOTS_ON_CPU,
    SLOTS_ON_GPU,
    Placement,
    place,
    shares,
)

DEFAULT = RunOptions()


def on_cpus(cores: int, nodes: int = 1, run: RunOptions = DEFAULT) -> Placement:
    return place(run, {"CPU": float(cores * nodes)}, nodes, cores)


def on_gpus(gpus: int, cores: int, nodes: int = 1, run: RunOptions = DEFAULT) -> Placement:
    return place(run, {"CPU": float(cores * nodes), "GPU": float(gpus * nodes), "memory": 1e11}, nodes, cores)


def test_the_smallest_machine() -> None:
    assert on_cpus(2) == Placement(
        model_actors=1, model_cpus=1.0, model_gpus=0.0, threads=2, slots=SLOTS_ON_CPU, decode_actors=1
    )


def test_a_laptop_gives_one_model_all_its_threads_and_half_its_cores() -> None:
    laptop = on_cpus(8)
    assert (laptop.model_actors, laptop.model_cpus, laptop.threads) == (1, 4.0, 8)
    assert laptop.decode_actors == laptop.sink_actors == 1


def test_every_cpu_node_gets_a_model() -> None:
    cluster = on_cpus(16, nodes=10)
    assert (cluster.model_actors, cluster.model_cpus, cluster.decode_actors) == (10, 8.0, 10)
    assert cluster.model_actors * cluster.threads == 160
    assert cluster.total_slots == 10 * SLOTS_ON_CPU


def test_a_gpu_node() -> None:
    node = on_gpus(8, cores=96)
    assert (node.model_actors, node.model_gpus, node.model_cpus) == (8, 1.0, 0.0)
    assert node.decode_actors == 8 * DECODE_ACTORS_PER_GPU
    assert node.slots == SLOTS_ON_GPU and node.total_slots == 8 * SLOTS_ON_GPU
    assert node.sink_actors == 1


def test_as_many_gpus_as_one_driver_handles() -> None:
    cluster = on_gpus(8, cores=64, nodes=32)
    assert (cluster.model_actors, cluster.decode_actors, cluster.sink_actors) == (256, 1024, 32)
    assert cluster.booked_cpus == 1024 * 0.5 + 32 * 0.25


def test_one_gpu_beside_two_cores_gets_fewer_readers() -> None:
    small = on_gpus(1, cores=2)
    assert (small.model_actors, small.decode_actors) == (1, 3)
    assert small.booked_cpus + FREE_CPUS <= 2.0


def test_more_is_in_flight_than_there_are_slots() -> None:
    """Blocks hold at least one part: a model whose calls all wait in slots has none to refill them with."""
    assert on_cpus(2).calls_in_flight == 30 > SLOTS_ON_CPU
    assert on_gpus(1, 8).calls_in_flight == 80 > SLOTS_ON_GPU


def test_parts_are_sent_to_a_gpu_one_by_one() -> None:
    """Ray Data takes no whole blocks there, and would wait for the others of a larger batch."""
    assert (on_cpus(2).parts_per_call, on_gpus(1, 8).parts_per_call) == (None, 1)


def test_what_is_asked_for_is_done() -> None:
    run = RunOptions(slots=5, model_actors=3, decode_actors=7)
    cluster = on_gpus(4, cores=32, run=run)
    assert (cluster.slots, cluster.model_actors, cluster.decode_actors) == (5, 3, 7)
    cpus = on_cpus(8, nodes=4, run=replace(run, model_actors=2))
    assert (cpus.model_actors, cpus.model_cpus, cpus.decode_actors, cpus.total_slots) == (2, 4.0, 7, 10)


def test_readers_that_were_asked_for_are_never_taken_away() -> None:
    with pytest.raises(UsageError) as caught:
        on_gpus(1, cores=2, run=RunOptions(decode_actors=4))
    assert str(caught.value) == (
        "1 model and 4 decode actors need 2.5 CPUs, and the cluster has 2: "
        "lower run.model_actors or run.decode_actors, or add CPUs."
    )


def test_too_few_gpus() -> None:
    with pytest.raises(UsageError) as caught:
        on_gpus(2, cores=32, run=RunOptions(model_actors=3))
    assert str(caught.value) == (
        "3 model actors need a GPU each, and the cluster has 2: lower run.model_actors, or add GPUs."
    )


@pytest.mark.parametrize("resources", [{"CPU": 1.0}, {"CPU": 0.0, "GPU": 1.0}, {"GPU": 8.0}, {}])
def test_too_few_cpus(resources: dict[str, float]) -> None:
    with pytest.raises(
        UsageError, match=r"^\d model and 1 decode actors need .* CPUs, and the cluster has [01]: .*\.$"
    ):
        place(DEFAULT, resources, 1, 1)


@settings(max_examples=200, deadline=None)
@given(
    cores=st.integers(1, 128),
    gpus=st.integers(0, 16),
    nodes=st.integers(1, 300),
    model_actors=st.none() | st.integers(1, 500),
    decode_actors=st.none() | st.integers(1, 500),
)
def test_nothing_that_is_placed_overbooks_the_cluster(
    cores: int, gpus: int, nodes: int, model_actors: int | None, decode_actors: int | None
) -> None:
    run = RunOptions(model_actors=model_actors, decode_actors=decode_actors)
    try:
        placed = on_gpus(gpus, cores, nodes, run)
    except UsageError:
        assert model_actors or decode_actors or cores < 2, "what was left to us must fit"
        return
    assert placed.booked_cpus + FREE_CPUS <= cores * nodes
    assert placed.model_actors * placed.model_gpus <= gpus * nodes
    assert min(placed.model_actors, placed.decode_actors, placed.sink_actors) >= 1


def test_several_models_on_one_machine_share_its_cores() -> None:
    alone, shared = on_cpus(64), on_cpus(64, run=replace(DEFAULT, model_actors=2))
    assert (alone.threads, shared.threads) == (64, 32)
    assert shared.model_actors * shared.model_cpus == alone.model_cpus == 32.0
    assert on_gpus(8, 64).threads == 8


def test_gpus_that_are_awaited_count_and_bring_their_own_readers() -> None:
    """One GPU of four is there, beside two cores: readers begin with what fits, and become more as nodes come."""
    early = on_gpus(1, cores=2, run=RunOptions(gpus=4))
    assert (early.model_actors, early.decode_actors, early.decode_limit) == (4, 3, 4 * DECODE_ACTORS_PER_GPU)
    assert early.booked_cpus + FREE_CPUS <= 2.0
    assert on_gpus(4, cores=16, run=RunOptions(gpus=4)).decode_limit is None
    assert on_gpus(4, cores=16, run=RunOptions(gpus=2)).model_actors == 2


def test_gpus_that_are_awaited_on_a_cluster_without_any() -> None:
    with pytest.raises(UsageError) as caught:
        on_cpus(8, run=RunOptions(gpus=2))
    assert str(caught.value) == (
        "run.gpus is 2, and the cluster has no GPU yet: add one, or leave it out to run on CPUs."
    )


def test_jobs_share_what_one_would_have() -> None:
    whole = on_gpus(8, cores=64, nodes=40)
    parts = shares(whole, cpus=64.0 * 40, count=2)
    assert [(part.model_actors, part.decode_actors) for part in parts] == [(160, 640), (160, 640)]
    uneven = shares(on_gpus(5, cores=16), cpus=16.0, count=2)
    assert [(part.model_actors, part.decode_actors) for part in uneven] == [(3, 10), (2, 10)]


def test_awaited_readers_are_shared_as_well() -> None:
    parts = shares(on_gpus(2, cores=4, run=RunOptions(gpus=4)), cpus=4.0, count=2)
    assert [(part.decode_actors, part.decode_limit) for part in parts] == [(3, 8), (3, 8)]


def test_too_few_cpus_for_so_many_jobs() -> None:
    with pytest.raises(UsageError) as caught:
        shares(on_gpus(4, cores=2), cpus=2.0, count=4)
    assert str(caught.value) == "4 jobs need 4 CPUs, and the cluster has 2: raise --gpus-per-job, or add CPUs."


@settings(max_examples=200, deadline=None)
@given(cores=st.integers(1, 128), gpus=st.integers(0, 8), nodes=st.integers(1, 300), count=st.integers(1, 400))
def test_no_shares_overbook_the_cluster(cores: int, gpus: int, nodes: int, count: int) -> None:
    cpus = float(cores * nodes)
    try:
        whole = on_gpus(gpus, cores, nodes)
        parts = shares(whole, cpus, count)
    except UsageError:
        return
    assert len(parts) == min(count, whole.model_actors)
    assert sum(part.booked_cpus + FREE_CPUS for part in parts) <= cpus
    assert sum(part.model_actors for part in parts) == whole.model_actors
    assert sum(part.decode_actors for part in parts) <= whole.decode_actors
    assert all(part.decode_actors >= 1 for part in parts)
