"""Ogg files with a hole: what is no page is taken out, so that what stands behind it is found again.

ffmpeg looks for the next page in 64 KB, and takes a file for ended if there is none; 5 % of damage are more in ten
minutes of Opus. Every page holds its time, so the rest keeps its own. It refuses to know what is in a page.
"""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

CAPTURE = b"OggS"
HEADER_BYTES = 27  # the last of which says how many lengths follow, one for each piece of the page
FAR = 1 << 15  # what ffmpeg is sure to find by itself
COPIED_AT_ONCE = 1 << 20


def close_holes(path: Path) -> int:
    """Take out of an Ogg file, in place, what lies between its pages, if any of it is long; returns how many bytes.

    The page in front of a hole goes with it: its end cannot be told from what follows. Of a file of another kind, or
    without a long hole, nothing is changed, nor is what stands behind the last page.
    """
    with path.open("r+b") as file:
        if file.read(len(CAPTURE)) != CAPTURE:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            runs, size = _runs(data), len(data)
        holes = [after - end for (_, end), (after, _) in itertools.pairwise(runs)]
        if max(holes, default=0) <= FAR:
            return 0
        runs[0][0], runs[-1][1] = 0, size
        written = 0
        for start, end in runs:
            for first in range(start, end, COPIED_AT_ONCE):
                file.seek(first)
                piece = file.read(min(COPIED_AT_ONCE, end - first))
                file.seek(written)
                written += file.write(piece)
        file.truncate(written)
    return size - written


def _runs(data: mmap.mmap) -> list[list[int]]:
    """Where pages follow each other without a gap, each as its start and its end."""
    runs: list[list[int]] = []
    at = 0
    while (at := data.find(CAPTURE, at)) >= 0:
        end = _page_end(data, at)
        if end is None:
            at += 1
        elif runs and runs[-1][1] == at:
            at = runs[-1][1] = end
        else:
            runs.append([at, end])
            at = end
    return runs


def _page_end(data: mmap.mmap, start: int) -> int | None:
    """Where the page ends that starts here; None if no other follows: then it is none, or not what it was."""
    lengths = start + HEADER_BYTES
    if lengths > len(data):
        return None
    body = lengths + data[lengths - 1]
    end = body + sum(data[lengths:body])
    return end if end == len(data) or data[end : end + len(CAPTURE)] == CAPTURE else None
