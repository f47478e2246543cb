"""An archive cut into slices: every file in one of them, and all about as long."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inventory import estimate_seconds
from pipeline.records import MANIFEST
from pipeline.slices import GPUS_PER_JOB, estimated_seconds, slices_needed, split

PATIENCE_SECONDS = 20.0  # several times what it takes on a machine that does other work as well


def manifest(sizes: list[int], suffixes: list[str] | None = None) -> pa.Table:
    """Rows of so many bytes; 32,000 are a second where nothing else is said."""
    named = suffixes or [".wav"] * len(sizes)
    uris = [f"s3://archive/{number:07}{suffix}" for number, suffix in enumerate(named)]
    return pa.table(
        {
            "media_id": [f"{number:032x}" for number in range(len(sizes))],
            "uri": uris,
            "version": ["v"] * len(sizes),
            "bytes": sizes,
            "part_seconds": [300.0] * len(sizes),
            "done_parts": [[number % 3] for number in range(len(sizes))],
            "parts_total": [None] * len(sizes),
            "attempt": [1] * len(sizes),
        },
        schema=MANIFEST,
    )


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 10**9) | st.just(0) | st.just(32_000), max_size=60),
    count=st.integers(1, 70),
)
def test_every_row_is_in_exactly_one_slice_and_as_it_was(sizes: list[int], count: int) -> None:
    rows = manifest(sizes)
    slices = split(rows, count)
    assert len(slices) == min(count, len(sizes))
    assert all(part.num_rows for part in slices)
    together = [row for part in slices for row in part.to_pylist()]
    assert sorted(together, key=lambda row: row["uri"]) == rows.to_pylist()
    assert all(part.schema == MANIFEST for part in slices)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=60), count=st.integers(1, 8))
def test_slices_are_as_long_as_they_can_be(sizes: list[int], count: int) -> None:
    """The bound that holds for longest first: the shortest slice was never longer when the last row came."""
    slices = [estimated_seconds(part) for part in split(manifest(sizes), count)]
    totals = [float(part.sum()) for part in slices]
    for seconds, total in zip(slices, totals, strict=True):
        assert total - seconds.min() <= min(totals) * (1 + 1e-9)


def test_the_same_rows_give_the_same_slices() -> None:
    rows = manifest(np.random.default_rng(1).integers(0, 50, 500).tolist())
    assert split(rows, 7) == split(pa.Table.from_batches(rows.to_batches(max_chunksize=13)), 7)


def test_the_longest_file_of_each_slice_comes_first() -> None:
    sizes = np.random.default_rng(2).integers(1, 10**6, 100).tolist()
    for part in split(manifest(sizes), 3):
        assert part["bytes"].to_pylist() == sorted(part["bytes"].to_pylist(), reverse=True)


def test_durations_count_and_not_bytes() -> None:
    """A film of 200 MB is as long as 12 MB of mp3."""
    rows = manifest([200_000_000, 12_000_000, 12_000_000, 12_000_000], [".mp4", ".mp3", ".mp3", ".mp3"])
    assert sorted(part.num_rows for part in split(rows, 2)) == [2, 2]


def test_empty_files_are_spread_as_well() -> None:
    assert [part.num_rows for part in split(manifest([0] * 9), 3)] == [3, 3, 3]


def test_seconds_are_estimated_as_everywhere() -> None:
    suffixes = [".wav", ".MP3", "", ".unknown", ".tar.flac", "/.ogg", ".", ".w\nav"]
    rows = manifest([1_000_003] * len(suffixes), suffixes)
    expected = [estimate_seconds(row["uri"], row["bytes"]) for row in rows.to_pylist()]
    assert estimated_seconds(rows).tolist() == pytest.approx(expected)


def test_a_million_files_in_seconds() -> None:
    number = 1_000_000
    rng = np.random.default_rng(3)
    sizes = (32_000 * rng.lognormal(5, 1.5, number)).astype(np.int64)
    rows = pa.table(
        {
            "media_id": pa.array(np.arange(number)).cast(pa.string()),
            "uri": pa.compute.binary_join_element_wise(pa.array(np.arange(number)).cast(pa.string()), ".wav", "."),
            "bytes": sizes,
        }
    )
    started = time.monotonic()
    slices = split(rows, 40)
    assert time.monotonic() - started < PATIENCE_SECONDS
    totals = [float(estimated_seconds(part).sum()) for part in slices]
    assert max(totals) / min(totals) < 1.0001


@pytest.mark.parametrize(
    ("gpus", "per_job", "jobs"),
    [(0, GPUS_PER_JOB, 1), (1, 1, 1), (2, 1, 2), (256, GPUS_PER_JOB, 1), (257, GPUS_PER_JOB, 2), (2500, 256, 10)],
)
def test_how_many_jobs_share_a_cluster(gpus: int, per_job: int, jobs: int) -> None:
    assert slices_needed(gpus, per_job) == jobs
