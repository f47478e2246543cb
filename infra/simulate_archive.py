"""An archive nobody recorded: files of log-normal durations, the parts they are cut into, and the work in each.

Cuts lie where `pipeline.cuts` puts them: in the last fifth of a full part, at most 30 seconds before its limit, at a
pause, which may be anywhere in there. It refuses to know who reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.simulate_assumptions import WINDOW_TURNS, Assumptions
from pipeline.cuts import SEARCH_FRACTION, SEARCH_SECONDS
from pipeline.inventory import TYPICAL_BYTES_PER_SECOND, WINDOW_ADVANCE_SECONDS, WINDOW_SECONDS
from pipeline.records import MANIFEST

SUFFIX = ".mp3"
DRAWN_AT_ONCE = 100_000
SIGMAS = 3.0  # between the median duration and the shortest or longest
_TABLE = 1 << 16  # windows drawn once; a part takes as many as it has, from a place of its own
_MOST_WINDOWS = 64


@dataclass(frozen=True)
class Archive:
    """Files by number, and their parts by number: those of a file are `first_part[file] : first_part[file + 1]`."""

    seconds: NDArray[np.float64]  # (files,)
    bytes: NDArray[np.int64]  # (files,)
    first_part: NDArray[np.int64]  # (files + 1,)
    part_seconds: NDArray[np.float32]  # (parts,)
    turns: NDArray[np.float32]  # (parts,) of all windows of each
    pace: NDArray[np.float32]  # (parts,) work in a second of audio, relative to the mean
    windows_drawn: NDArray[np.float32]  # (_TABLE,) turns of a window

    @property
    def parts(self) -> int:
        return len(self.part_seconds)

    def file_of(self, part: int) -> int:
        return int(np.searchsorted(self.first_part, part, side="right")) - 1

    def windows(self, part: int) -> list[tuple[float, float]]:
        """Seconds that are left before each window of a part, and the turns the window takes; `turns` is their sum."""
        seconds, pace = float(self.part_seconds[part]), float(self.pace[part])
        count = int(_windows(np.array([seconds]))[0])
        first = _place(part)
        left = [seconds - WINDOW_ADVANCE_SECONDS * number for number in range(count)]
        shares = [1.0] * (count - 1) + [_last_share(seconds, count)]
        return [(left[n], float(self.windows_drawn[first + n]) * shares[n] * pace) for n in range(count)]


def durations(given: Assumptions, random: np.random.Generator) -> NDArray[np.float64]:
    """(files,) seconds, log-normal between the shortest and the longest, as many files as make up the hours."""
    low, high = math.log(given.shortest), math.log(given.longest)
    wanted, drawn = given.hours * 3600.0, []
    while wanted > 0:
        some = np.exp(random.normal((low + high) / 2, (high - low) / (2 * SIGMAS), DRAWN_AT_ONCE))
        some = np.clip(some, given.shortest, given.longest)
        needed = int(np.searchsorted(np.cumsum(some), wanted)) + 1
        drawn.append(some[:needed])
        wanted -= float(drawn[-1].sum())
    return np.concatenate(drawn)


def manifest(seconds: NDArray[np.float64], sizes: NDArray[np.int64]) -> pa.Table:
    """`records.MANIFEST` rows in the order of their names, each file's number its media_id."""
    numbers = pa.array(np.arange(len(seconds))).cast(pa.string())
    uris = pa.compute.binary_join_element_wise("s3://archive/", numbers, SUFFIX, "")
    nothing = {name: pa.nulls(len(seconds), MANIFEST.field(name).type) for name in MANIFEST.names}
    known = {"media_id": numbers, "uri": uris, "bytes": pa.array(sizes)}
    return pa.table(nothing | known, schema=MANIFEST)


def archive(given: Assumptions, choose: Callable[[float, int], float], slots: int) -> tuple[Archive, pa.Table]:
    """The files, cut as the planner would have them cut, and the manifest that it would plan from.

    choose: the planner's choice of a part length, by the estimated seconds and the slots of the whole run.
    """
    random = np.random.default_rng(given.seed)
    seconds = durations(given, random)
    rates = TYPICAL_BYTES_PER_SECOND[SUFFIX] * np.exp(random.normal(0, given.bitrate_spread, len(seconds)))
    sizes = (seconds * rates).astype(np.int64)
    limit = choose(float(sizes.sum()) / TYPICAL_BYTES_PER_SECOND[SUFFIX], slots)
    first_part, lengths = cut(seconds, limit, random)
    paces = np.exp(random.normal(0, given.pace_spread, len(seconds))).astype(np.float32)
    pace = np.repeat(paces, np.diff(first_part))
    drawn = random.choice(np.array(WINDOW_TURNS, np.float32), _TABLE + _MOST_WINDOWS)
    whole = Archive(seconds, sizes, first_part, lengths, _turns(lengths, pace, drawn), pace, drawn)
    return whole, manifest(seconds, sizes)


def cut(
    seconds: NDArray[np.float64], limit: float, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Number of the first part of each file, and of the one behind the last; the seconds of every part."""
    zone = min(SEARCH_SECONDS, limit * SEARCH_FRACTION)
    left, files = seconds.astype(np.float32), np.arange(len(seconds))
    owners, lengths = [], []
    while len(files):
        is_last = left <= limit
        taken = np.where(is_last, left, limit - zone * random.random(len(files), np.float32)).astype(np.float32)
        owners.append(files)
        lengths.append(taken)
        left, files = (left - taken)[~is_last], files[~is_last]
    owner = np.concatenate(owners)
    in_order = np.argsort(owner, kind="stable")  # of one file, the first cut stays first
    first_part = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(seconds)))])
    return first_part, np.concatenate(lengths)[in_order]


def _windows(seconds: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many windows read so much audio."""
    beyond = np.maximum(0.0, seconds - WINDOW_SECONDS)
    return 1 + np.ceil(beyond / WINDOW_ADVANCE_SECONDS).astype(np.int64)


def _last_share(seconds: float, count: int) -> float:
    """What the last of `count` windows has to read, relative to a full one."""
    return min(1.0, (seconds - WINDOW_ADVANCE_SECONDS * (count - 1)) / WINDOW_ADVANCE_SECONDS)


def _place(parts: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
    return (parts * 7919) % _TABLE  # a prime, so that neighbours have different windows


def _turns(seconds: NDArray[np.float32], pace: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turns of all windows of each part."""
    count = np.minimum(_windows(seconds), _MOST_WINDOWS)
    first = _place(np.arange(len(seconds)))
    up_to = np.concatenate([[0.0], np.cumsum(drawn, dtype=np.float64)])
    last = first + count - 1
    share = np.minimum(1.0, (seconds - WINDOW_ADVANCE_SECONDS * (count - 1)) / WINDOW_ADVANCE_SECONDS)
    return ((up_to[last] - up_to[first] + share * drawn[last]) * pace).astype(np.float32)
