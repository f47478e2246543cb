"""Two runs over one part, compared window by window, with the one exception: a near tie in the reference's own logits.

A part is comparable up to its first window that was accepted above temperature 0, where the two draw other random
numbers, and up to its first near tie: behind it the two hear different windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.transcript import Attempt, Segment

NEAR_TIE = 1e-3  # between the two best logits, after the rules
MOST_TIES = 0.01  # of the windows compared
TOLERANCE = 1e-3  # of log-mel, average log-probability and no-speech probability


@dataclass
class Window:
    """One window as it was decoded: what was heard, from which prompt, and one attempt for each temperature tried."""

    mel: NDArray[np.float32]  # (n_mels, 3000)
    prompt: tuple[int, ...]
    tries: list[Attempt] = field(default_factory=list)
    seek: int | None = None  # log-mel frames; the reference keeps it to itself

    @property
    def accepted(self) -> Attempt:
        return self.tries[-1]


class Run(Protocol):
    """What became of one part; both sides are recorded in the project's own words."""

    language: str | None
    language_probability: float | None
    segments: list[Segment]
    windows: list[Window]


# The reference's preference at a prefix of tokens in a window: best logit minus second best, after the rules.
Gap = Callable[[Window, Sequence[int]], float]


@dataclass
class Comparison:
    """What comparing came to, over any number of parts."""

    windows: int = 0  # compared
    total: int = 0  # decoded by the reference
    segments: int = 0  # compared
    ties: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.windows + other.windows,
            self.total + other.total,
            self.segments + other.segments,
            self.ties + other.ties,
            self.differences + other.differences,
        )


def compare(name: str, ours: Run, theirs: Run, gap: Gap, same_streams: bool = False) -> Comparison:
    """Compare all of a part that is comparable; with `same_streams`, windows sampled at random are as well."""
    result = Comparison(total=len(theirs.windows))
    heard = ours.language, theirs.language
    if heard[0] != heard[1] or not _near(ours.language_probability, theirs.language_probability, 1e-4):
        result.differences.append(f"{name}: language {heard[0]} instead of {heard[1]}")
    for index, (our, their) in enumerate(zip(ours.windows, theirs.windows, strict=False)):
        where = f"{name}, window {index}"
        if not _same_window(where, our, their, gap, same_streams, result):
            _compare_segments(name, ours, theirs, our.seek, result)
            return result
    if len(ours.windows) != len(theirs.windows):
        result.differences.append(f"{name}: {len(ours.windows)} windows instead of {len(theirs.windows)}")
    _compare_segments(name, ours, theirs, None, result)
    return result


def _same_window(where: str, our: Window, their: Window, gap: Gap, same_streams: bool, result: Comparison) -> bool:
    """Compare one window; False where the rest of the part is not comparable any more."""
    result.windows += 1
    if our.prompt != their.prompt or np.abs(our.mel - their.mel).max() > TOLERANCE:
        what = "prompt" if our.prompt != their.prompt else "audio"
        result.differences.append(f"{where}: not the same {what}, at {our.seek} frames")
        return False
    for a, b in zip(our.tries, their.tries, strict=False):
        if b.temperature > 0 and not same_streams:
            break
        if a.tokens != b.tokens:
            _explain(where, a, b, their, gap, result)
            return False
        if not _near(a.avg_logprob, b.avg_logprob) or not _near(a.no_speech_prob, b.no_speech_prob):
            result.differences.append(f"{where}: other probabilities, {a} instead of {b}")
    comparable = same_streams or max(our.accepted.temperature, their.accepted.temperature) == 0
    decided = (our.accepted.temperature > 0, len(our.tries) if comparable else 0)
    if decided != (their.accepted.temperature > 0, len(their.tries) if comparable else 0):
        result.differences.append(f"{where}: {len(our.tries)} attempts instead of {len(their.tries)}")
        return False
    return comparable


def _explain(where: str, ours: Attempt, theirs: Attempt, window: Window, gap: Gap, result: Comparison) -> None:
    """A difference in tokens is a near tie, or it is an error."""
    prefix = common_prefix(ours.tokens, theirs.tokens)
    preferred = gap(window, prefix) if theirs.temperature == 0 else float("inf")
    line = f"{where}, token {len(prefix)}: {ours.tokens[len(prefix) :][:3]} instead of "
    line += f"{theirs.tokens[len(prefix) :][:3]}, which the reference prefers by {preferred:.2g}"
    (result.ties if preferred < NEAR_TIE else result.differences).append(line)


def _compare_segments(name: str, ours: Run, theirs: Run, until: int | None, result: Comparison) -> None:
    """Segments of the windows before `until` (frames): tokens, start, end and temperature are identical."""
    for index, (a, b) in enumerate(zip(_before(ours, until), _before(theirs, until), strict=False)):
        result.segments += 1
        if _essence(a) != _essence(b):
            result.differences.append(f"{name}, segment {index}: {_essence(a)} instead of {_essence(b)}")
    counts = len(_before(ours, until)), len(_before(theirs, until))
    if counts[0] != counts[1]:
        result.differences.append(f"{name}: {counts[0]} segments instead of {counts[1]}")


def _before(run: Run, until: int | None) -> list[Segment]:
    return [s for s in run.segments if until is None or s.start * 100 < until]


def _essence(segment: Segment) -> tuple[object, ...]:
    return tuple(segment.tokens), segment.start, segment.end, segment.temperature, segment.text


def common_prefix(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The tokens up to the first difference."""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return tuple(a[:same])


def _near(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    return a == b if a is None or b is None else abs(a - b) <= tolerance
