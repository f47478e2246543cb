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
from pipeline.slices import (
    GPUS_PER_JOB,
    LONGEST_BLOCK_SECONDS,
    MOST_FILES,
    blocks,
    estimated_seconds,
    longest_first,
    slices_needed,
    split,
)

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
            "others": [None] * len(sizes),
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


# --- blocks -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 10**9), max_size=300), readers=st.integers(1, 400))
def test_blocks_are_the_manifest_in_its_order(sizes: list[int], readers: int) -> None:
    rows = manifest(sizes)
    found = blocks(rows, readers)
    assert [row for block in found for row in block.to_pylist()] == rows.to_pylist()
    for block in found:
        assert 1 <= block.num_rows <= MOST_FILES
        assert block.num_rows == 1 or estimated_seconds(block).sum() <= LONGEST_BLOCK_SECONDS


@pytest.mark.parametrize("readers", [1, 7, 64])
def test_readers_that_take_block_after_block_end_together(readers: int) -> None:
    """The last block of each is short, and never more than a third of what is left is taken at once."""
    rows = longest_first(manifest([*np.random.default_rng(0).lognormal(14, 1.5, 20_000).astype(int)]))
    seconds = [float(estimated_seconds(block).sum()) for block in blocks(rows, readers)]
    left = sum(seconds)
    for number, block in enumerate(seconds):
        assert block <= max(left / (3 * readers), estimated_seconds(rows)[number]) + 1e-6
        left -= block
    ends = [0.0] * readers
    for block in seconds:
        ends[ends.index(min(ends))] += block
    assert max(ends) - min(ends) < 60.0 < LONGEST_BLOCK_SECONDS < max(ends)


def test_the_longest_come_first_and_equal_ones_stay_in_order() -> None:
    rows = longest_first(manifest([1000, 3000, 2000, 3000, 0]))
    assert rows["bytes"].to_pylist() == [3000, 3000, 2000, 1000, 0]
    assert rows["uri"].to_pylist()[:2] == ["s3://archive/0000001.wav", "s3://archive/0000003.wav"]
