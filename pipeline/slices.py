"""A manifest cut into slices of about the same duration, each for one job of its own, and a job's into blocks.

One driver handles so many GPUs and no more (ray-project/ray#63544), so a larger cluster gets several, and every file
belongs to exactly one of them; within a job, a block is what one reader reads at a time. Pure arithmetic: it starts
nothing, and refuses to know what becomes of a slice (`campaign.py`) or of a block (`flow.py`). A slice is of files; the
shards of `records.SHARD` are what is stored of them.
"""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inventory import estimate_seconds

GPUS_PER_JOB = 256  # 1.4 parts a second for each are 360 tasks a second, of 0.5 ms of a driver's time each
LONGEST_BLOCK_SECONDS = 1800.0  # five seconds of reading: a lost reader, and the last one, cost no more
SHARE_OF_REST = 3  # a block is at most a third of what is left for each reader, so that all end together
MOST_FILES = 64  # of a block
_SUFFIX = r"[^/](?P<suffix>\.[^./]+)$"


def slices_needed(gpus: int, gpus_per_job: int = GPUS_PER_JOB) -> int:
    """How many jobs share so many GPUs when one job has at most `gpus_per_job`; one where there is none."""
    return max(1, -(-gpus // gpus_per_job))


def split(manifest: pa.Table, count: int) -> list[pa.Table]:
    """The rows of a manifest in at most `count` slices, none of them empty, each row in exactly one.

    manifest: `records.MANIFEST` rows, which stay as they are. The same rows in the same order give the same slices.
    Longest first into the emptiest: no slice is longer than 4/3 of the longest of the best split there is, and with
    many more files than slices they differ by less than one short file (Graham, 1969). Each is in the order of its
    durations, longest first, so that no long file is left for the end.
    """
    count = min(count, manifest.num_rows)
    if count <= 1:
        return [manifest] if count else []
    ordered = longest_first(manifest)
    slices = _emptiest(estimated_seconds(ordered), count)
    return [ordered.filter(pa.array(slices == number)) for number in range(count)]


def longest_first(manifest: pa.Table) -> pa.Table:
    """The rows of a manifest by their durations, so that no long file is left for the end; equal ones stay in order."""
    return manifest.take(pa.array(np.argsort(-estimated_seconds(manifest), kind="stable")))


def blocks(manifest: pa.Table, readers: int) -> list[pa.Table]:
    """The manifest in blocks of whole rows, in its order, and ever shorter, so that all readers end together.

    A file that is longer than a block has one for itself. (Guided self-scheduling: Polychronopoulos and Kuck, 1987.)
    """
    if not manifest.num_rows:
        return []
    seconds = estimated_seconds(manifest)
    left, filled, bounds = float(seconds.sum()), 0.0, [0]
    for row, duration in enumerate(seconds.tolist()):
        full = filled + duration > min(LONGEST_BLOCK_SECONDS, left / (SHARE_OF_REST * readers))
        if row > bounds[-1] and (full or row - bounds[-1] >= MOST_FILES):
            bounds.append(row)
            left, filled = left - filled, 0.0
        filled += duration
    return [manifest.slice(first, end - first) for first, end in pairwise([*bounds, manifest.num_rows])]


def estimated_seconds(manifest: pa.Table) -> np.ndarray:
    """(n,) seconds of audio that each row typically holds: `estimate_seconds` of its columns uri and bytes."""
    found = pc.struct_field(pc.extract_regex(manifest["uri"], _SUFFIX), "suffix")
    suffixes = pc.dictionary_encode(pc.fill_null(found, "")).unify_dictionaries().combine_chunks()
    of_a_byte = np.array([estimate_seconds(f"x{suffix}", 1) for suffix in suffixes.dictionary.to_pylist()])
    bytes_ = manifest["bytes"].to_numpy()
    return np.asarray(of_a_byte[suffixes.indices.to_numpy()] * bytes_, np.float64)


def _emptiest(seconds: np.ndarray, count: int) -> np.ndarray:
    """The slice of each row: the one with the fewest seconds, then the fewest rows, when the row's turn comes."""
    filled = [(0.0, 0, number) for number in range(count)]
    chosen = np.empty(len(seconds), np.int32)
    for row, duration in enumerate(seconds.tolist()):
        total, rows, number = filled[0]
        heapq.heapreplace(filled, (total + duration, rows + 1, number))
        chosen[row] = number
    return chosen
