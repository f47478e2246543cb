"""Tokens to segments, and how far to seek: what the timestamps of one window mean (Radford et al. 2022, section 4.5).

Pure functions over token ids. They know the size of the window, not the part it lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.dimensions import FRAMES_PER_SECOND, Dimensions

# Where a window's seek went, kept in `rules_fired`.
UNFINISHED_TAIL_DROPPED = "unfinished_tail_dropped"  # cut at the last pair of timestamps; the rest is heard again
NO_TIMESTAMP_PAIR = "no_timestamp_pair"  # one segment for the whole window
SEEK_RULES = (UNFINISHED_TAIL_DROPPED, NO_TIMESTAMP_PAIR)


@dataclass(frozen=True)
class Piece:
    """Tokens of one segment, timestamps included; start and end in seconds from the start of the window."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class WindowCut:
    """The segments of one window, the log-mel frames to advance, and the rule that decided."""

    pieces: tuple[Piece, ...]
    advance: int
    rule: str | None


def cut_window(tokens: Sequence[int], timestamp_begin: int, window_frames: int, dims: Dimensions) -> WindowCut:
    """Cut the sampled `tokens` of a window of `window_frames` (at most 3000) at its timestamps.

    A pair of timestamps in a row ends one segment and starts the next; what follows the last pair is unfinished and
    is dropped, the seek going back to that pair, unless a single timestamp ends the window. Without a pair the window
    is one segment.
    """
    is_timestamp = [token >= timestamp_begin for token in tokens]
    ends = [i + 1 for i, pair in enumerate(pairwise(is_timestamp)) if all(pair)]
    if not ends:
        return WindowCut(_whole(tokens, timestamp_begin, window_frames, dims), window_frames, NO_TIMESTAMP_PAIR)
    complete = is_timestamp[-2:] == [False, True]
    if complete:
        ends.append(len(tokens))
    step = dims.seconds_per_position
    pieces = [
        Piece((cut[0] - timestamp_begin) * step, (cut[-1] - timestamp_begin) * step, cut)
        for cut in (tuple(tokens[start:end]) for start, end in pairwise([0, *ends]))
    ]
    if complete:
        return WindowCut(tuple(pieces), window_frames, None)
    heard_positions = tokens[ends[-1] - 1] - timestamp_begin
    rule = UNFINISHED_TAIL_DROPPED if ends[-1] < len(tokens) - 1 else None
    return WindowCut(tuple(pieces), heard_positions * dims.frames_per_position, rule)


def _whole(tokens: Sequence[int], timestamp_begin: int, window_frames: int, dims: Dimensions) -> tuple[Piece, ...]:
    """The window as one segment, up to its last timestamp if it has one above zero."""
    timestamps = [token for token in tokens if token >= timestamp_begin]
    duration = window_frames / FRAMES_PER_SECOND
    if timestamps and timestamps[-1] != timestamp_begin:
        duration = (timestamps[-1] - timestamp_begin) * dims.seconds_per_position
    return (Piece(0.0, duration, tuple(tokens)),)
