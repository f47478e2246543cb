"""Counts that come from many processes and are read in one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import ray

from jobs.cluster import Machines
from pipeline.tally import Counts, Tally

PATIENCE_SECONDS = 20.0


@pytest.fixture
def tally(machines: Machines) -> Tally:
    return Tally.start()


def counted(tally: Tally, expected: Counts) -> Counts:
    """The counts once they are as expected, or what they came to: reports travel on their own time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (counts := tally.counts()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return counts


def test_it_begins_with_nothing(tally: Tally) -> None:
    assert tally.counts() == Counts(0, 0, 0.0, 0.0, 0)


def test_files_and_parts_are_summed(tally: Tally) -> None:
    tally.read(1000, 12.5, failed=False)
    tally.read(24, 0.0, failed=True)
    tally.transcribed(10.0)
    tally.transcribed(2.5)
    expected = Counts(2, 1024, 12.5, 12.5, 1)
    assert counted(tally, expected) == expected


def test_reports_of_other_processes_arrive_here(tally: Tally) -> None:
    """A tally is sent to every stage with the job, and every copy reports to the same sums."""

    @ray.remote(num_cpus=0.5)
    def stage(theirs: Tally) -> Counts:
        theirs.read(10, 2.0, failed=False)
        theirs.transcribed(0.5)
        return theirs.counts()

    seen = ray.get([stage.remote(tally) for _ in range(4)])
    assert all(counts.files_read >= 1 for counts in seen), "its own report comes before its own question"
    expected = Counts(4, 40, 8.0, 2.0, 0)
    assert counted(tally, expected) == expected


def test_two_runs_do_not_share_counts(tally: Tally) -> None:
    other = Tally.start()
    tally.transcribed(7.0)
    assert counted(tally, Counts(seconds_transcribed=7.0)) == replace(Counts(), seconds_transcribed=7.0)
    assert other.counts() == Counts()
