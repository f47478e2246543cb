"""A simulated job keeps its accounts: every part once, nothing faster than possible, and all of it repeatable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest

from infra.simulate import main
from infra.simulate_archive import cut, durations
from infra.simulate_assumptions import Assumptions
from infra.simulate_bucket import Bucket
from infra.simulate_events import Outcome, Policies, Simulation
from infra.simulate_ledger import STORED
from infra.simulate_pool import Pace, SharedPool
from infra.simulate_report import chain_bound, figures, utilisation, work_bound

SMALL = Assumptions(hours=300, gpus=8, gpus_per_node=2, start_seconds=10, shortest=10, longest=3600)
STORMY = replace(SMALL, lost_per_hour=1 - 1e-9, replaced_after=40)  # a node lives for three minutes
EVEN = replace(SMALL, slow_share=0, slow_readers=0, pace_spread=0, bitrate_spread=0, lost_per_hour=0)


def simulated(given: Assumptions) -> tuple[Simulation, Outcome]:
    simulation = Simulation(given)
    return simulation, simulation.run()


# --- accounts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"windows": True}, {"gpus_per_job": 4}])
def test_every_part_is_stored_once_whatever_is_lost(seed: int, changes: dict[str, bool | int]) -> None:
    """The ledger refuses a second time; and the GPUs did all the work once, and what was lost once more."""
    simulation, outcome = simulated(replace(STORMY, slow_share=0, seed=seed, **changes))
    counts = outcome.counts
    assert counts.nodes_lost > 3 and counts.lost_parts > 0 and counts.reread_blocks > 0
    assert set(simulation._ledger.state) == {STORED}
    done = outcome.busy_seconds * outcome.full_speed
    assert done == pytest.approx(outcome.archive.turns.sum(dtype=float) + counts.lost_turns, rel=1e-4)


def test_no_node_lost_is_no_work_lost() -> None:
    _, outcome = simulated(EVEN)
    result = figures(outcome)
    assert (result.redone, result.lost_parts, result.nodes_lost, outcome.counts.reread_blocks) == (0.0, 0, 0, 0)
    assert result.read_again == pytest.approx(0, abs=1e-6)


def test_a_lost_node_loses_no_more_than_its_models_had_open() -> None:
    """Eighty parts on each of its two GPUs, and the few whose results waited for their shard."""
    _, outcome = simulated(replace(STORMY, seed=3))
    assert outcome.counts.lost_parts <= outcome.counts.nodes_lost * (2 * 80 + 16)


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    runs = [figures(simulated(replace(STORMY, seed=seed))[1]) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("given", [SMALL, EVEN, STORMY, replace(STORMY, gpus_per_job=2, seed=4)])
def test_nothing_beats_the_lower_bound(given: Assumptions) -> None:
    _, outcome = simulated(given)
    assert outcome.last_end >= max(work_bound(outcome), chain_bound(outcome))
    assert figures(outcome).makespan_ratio >= 1
    assert all(-1e-6 <= share <= 1 + 1e-6 for _, share in utilisation(outcome) if outcome.counts.nodes_lost == 0)


# --- closed forms -------------------------------------------------------------------------------------------------


def test_one_gpu_with_equal_parts_takes_the_start_and_the_work() -> None:
    """Files of 290 s, read in no time: after the start, 400 hours of audio an hour, until the slots empty together."""
    given = replace(EVEN, hours=200, gpus=1, shortest=289.9, longest=290.1, reader_speed=1e7, driver_seconds=1e-6)
    given = replace(given, request_seconds=0, reader_bandwidth=1e12, bandwidth=1e15, requests_per_second=1e9)
    _, outcome = simulated(given)
    assert outcome.last_end == pytest.approx(given.start_seconds + 200 * 3600 / 400, rel=0.02)
    assert work_bound(outcome) == pytest.approx(200 * 3600 / 400, rel=1e-3)


def test_slow_readers_decide_when_nothing_else_does() -> None:
    """Eight readers, each ten times real time."""
    given = replace(EVEN, hours=20, gpus=2, reader_speed=10.0, shortest=60, longest=60.1)
    _, outcome = simulated(given)
    read = 10 + 20 * 3600 / (8 * 10)
    assert read < outcome.last_end < 1.15 * read, (
        "67 blocks are nine rounds of eight readers, of which one is half empty"
    )
    assert figures(outcome).utilisation == pytest.approx(20 * 3600 / 400 / 2 / outcome.last_end, rel=0.01)


def test_the_longest_file_bounds_a_job_with_too_many_gpus() -> None:
    _, outcome = simulated(replace(EVEN, hours=30, gpus=64, gpus_per_node=8, longest=6 * 3600, reader_speed=20.0))
    result = figures(outcome)
    assert result.lower_bound == result.chain_bound > result.work_bound


# --- the object store ---------------------------------------------------------------------------------------------


def test_a_bucket_that_refuses_makes_a_job_slower_and_not_endless() -> None:
    free = simulated(EVEN)[1]
    held = simulated(replace(EVEN, requests_per_second=1.0, prefixes=1))[1]
    assert held.refused > 0 == free.refused
    assert held.requests == free.requests
    assert held.last_end > 2 * free.last_end
    assert held.requests / held.last_end <= 1.01


def test_a_prefix_gives_what_it_allows_and_the_others_are_not_asked() -> None:
    bucket = Bucket(replace(SMALL, requests_per_second=10.0, prefixes=2))
    assert [bucket.refuses(0.0, file=0, requests=4) for _ in range(3)] == [False, False, True]
    assert not bucket.refuses(0.0, file=1, requests=4)
    assert not bucket.refuses(0.2, file=0, requests=4), "two left, and two more after a fifth of a second"
    assert bucket.requests_of(1) == 3 and bucket.requests_of(60 << 20) == 6
    assert all(0 <= bucket.back_off(number) <= min(20, 2 ** (number - 1)) for number in range(1, 12))


def test_what_is_on_the_wire_is_waited_for() -> None:
    bucket = Bucket(replace(SMALL, bandwidth=100.0, reader_bandwidth=50.0, request_seconds=0.5))
    assert bucket.transfer(0.0, 100) == 2.5
    assert [bucket.transfer(0.0, 500) for _ in range(2)] == [10.5, 11.0]


# --- the archive --------------------------------------------------------------------------------------------------


def test_durations_are_log_normal_between_their_bounds() -> None:
    given = Assumptions(hours=20_000)
    seconds = durations(given, np.random.default_rng(0))
    assert seconds.sum() / 3600 == pytest.approx(20_000, rel=0.001)
    assert seconds.min() >= 2 and seconds.max() <= 12 * 3600
    assert np.exp(np.median(np.log(seconds))) == pytest.approx((2 * 12 * 3600) ** 0.5, rel=0.05)


def test_cuts_lie_in_the_last_fifth_and_lose_nothing() -> None:
    seconds = np.array([12.0, 300.0, 301.0, 3600.0])
    first, parts = cut(seconds, 300.0, np.random.default_rng(0))
    owned = np.split(parts, first[1:-1])
    assert [float(own.sum()) for own in owned] == pytest.approx(seconds)
    assert [len(own) for own in owned][:3] == [1, 1, 2]
    assert all((own[:-1] >= 270).all() and (own <= 300).all() for own in owned)


# --- policies -----------------------------------------------------------------------------------------------------


def in_the_order_of_the_listing(manifest: pa.Table, readers: int) -> list[pa.Table]:
    """Blocks of as many files each, several for a reader, without a look at how long they are."""
    files = max(1, min(64, manifest.num_rows // (readers * 8)))
    return [manifest.slice(first, files) for first in range(0, manifest.num_rows, files)]


def test_an_hour_on_two_nodes_meets_the_targets_with_the_longest_files_first() -> None:
    result = figures(Simulation(Assumptions()).run())
    assert result.utilisation >= 0.95
    assert result.makespan_ratio <= 1.05
    assert result.redone <= 0.01
    otherwise = figures(Simulation(Assumptions(), Policies(blocks=in_the_order_of_the_listing)).run())
    assert otherwise.parts == result.parts and otherwise.makespan > result.makespan


# --- what a person sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", [[], ["--sweep", "2", "8"]])
def test_a_picture_is_drawn_with_something_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: list[str]
) -> None:
    target = tmp_path / "job.png"
    assert main(["--hours", "60", "--gpus", "8", "--gpus-per-node", "2", "--picture", str(target), *sweep]) == 0
    pixels = matplotlib.image.imread(target)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
    printed = capsys.readouterr().out
    assert printed.count("GPU utilisation") == max(1, len(sweep) - 1)
    assert "gpu-speed" in printed and "assumed" in printed


def test_json_is_one_line_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hours-per-gpu", "10", "--sweep", "2", "4", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["assumptions"]["gpus"], row["assumptions"]["hours"]) for row in rows] == [(2, 20.0), (4, 40.0)]
    assert all(0 < row["figures"]["utilisation"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpus", "0"], "gpus is 0: give a number above 0.\n"),
        (["--lost-per-hour", "1"], "lost-per-hour is 1: give a share from 0 to below 1.\n"),
        (["--picture", "job.txt"], "--picture is job.txt: give a name that ends in .png, .svg, .pdf.\n"),
        (["--cores-per-gpu", "-99"], "model and 1 decode actors need"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_misspelt_flag_is_a_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--gpuz", "3"])
    assert capsys.readouterr().err == "Unrecognized arguments: --gpuz 3.\n"


def test_time_goes_on_after_weeks() -> None:
    """The clock of a long job is coarser than the end of a part can be exact; a pool must end it all the same."""
    pool = SharedPool(Pace(8, 0.1, 0.25), [100.0 / 3])
    pool.advance(2e6 + 1 / 3)
    pool.add(0)
    assert [part for _ in range(10) for part in pool.advance(min(pool.next_end(), 3e6))] == [0]
