"""Where the spoken time of a part lies in it, once the silence between is cut out: seconds to seconds.

It knows spans of frames, and neither sound nor text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from model.dimensions import FRAMES_PER_SECOND

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Timeline:
    """The joined spans [start, end), in log-mel frames of the part; times are seconds.

    A time in the joint between two spans is the end of the one or the start of the other.
    """

    spans: Spans
    _joints: list[int] = field(init=False)  # where each span begins, in frames of the joined spans; then their end

    def __post_init__(self) -> None:
        lengths = [end - start for start, end in self.spans]
        object.__setattr__(self, "_joints", list(accumulate(lengths, initial=0)))

    @property
    def frames(self) -> int:
        """Of all spans together."""
        return self._joints[-1]

    def join(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """The columns of mel (n_mels, frames) that lie in the spans."""
        return np.concatenate([mel[:, :0], *(mel[:, start:end] for start, end in self.spans)], axis=1)

    def start(self, seconds: float) -> float:
        """When in the part something begins that begins so late in the joined spans."""
        return self._place(seconds, bisect_right(self._joints, seconds * FRAMES_PER_SECOND) - 1)

    def end(self, seconds: float) -> float:
        """When in the part something ends that ends so late in the joined spans."""
        return self._place(seconds, bisect_left(self._joints, seconds * FRAMES_PER_SECOND) - 1)

    def _place(self, seconds: float, index: int) -> float:
        index = min(max(index, 0), len(self.spans) - 1)
        return seconds + (self.spans[index][0] - self._joints[index]) / FRAMES_PER_SECOND
