"""Every setting under which the two sides are compared, over the same audio; what was run once is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.options import DecodeOptions
from tests.parity.comparison import Comparison, Gap, Window, compare
from tests.parity.recorded import OurRun, Ours

SIDE_BY_SIDE = 2  # runs at a time, each in one thread of torch: faster than one after the other in two
GREEDY = (0.0,)
FALLBACK = DecodeOptions().temperatures

Audio = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Setting:
    """One column of the matrix."""

    model: str
    previous_text: bool
    temperatures: tuple[float, ...]
    beam_size: int = 1
    clips: tuple[str, ...] = ("",)  # beginnings of the names of those that are compared

    def __str__(self) -> str:
        previous = "with" if self.previous_text else "without"
        beam = f"-beam-{self.beam_size}" if self.beam_size > 1 else ""
        return f"{self.model}-{previous}-previous-text-{len(self.temperatures)}-temperatures{beam}"


@dataclass(frozen=True)
class Sides:
    """Both sides on the weights of one checkpoint."""

    ours: Ours
    reference: Any  # tests.parity.reference.Reference, which needs the extra `parity`


@dataclass
class Matrix:
    """Runs and comparisons by setting; near ties are listed as they are found."""

    sides: Callable[[str], Sides]
    audio: Audio
    listed: list[str]
    _theirs: dict[Setting, dict[str, Any]] = field(default_factory=dict)
    _compared: dict[Setting, Comparison] = field(default_factory=dict)

    def theirs(self, setting: Setting) -> dict[str, Any]:
        """The reference's run over each part."""
        if setting not in self._theirs:
            reference = self.sides(setting.model).reference
            options = {"condition_on_previous_text": setting.previous_text, "temperature": setting.temperatures}
            options |= {"beam_size": setting.beam_size} if setting.beam_size > 1 else {}
            self._theirs[setting] = {
                name: reference.run(part, **options) for name, part in self._heard(setting).items()
            }
        return self._theirs[setting]

    def compared(self, setting: Setting) -> Comparison:
        """Our runs over all parts in one engine, against the reference's."""
        if setting not in self._compared:
            options = DecodeOptions.exact(
                previous_text=setting.previous_text, temperatures=setting.temperatures, beam_size=setting.beam_size
            )
            engine = self.sides(setting.model).ours
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                theirs = pool.submit(self.theirs, setting)
                ours = pool.submit(engine.run, self._heard(setting), options)
                gap = no_near_ties if setting.beam_size > 1 else None
                self._compared[setting] = self.compare(setting.model, ours.result(), theirs.result(), gap=gap)
        return self._compared[setting]

    def compare(
        self,
        model: str,
        ours: Mapping[str, OurRun],
        theirs: Mapping[str, Any],
        same_streams: bool = False,
        gap: Gap | None = None,
    ) -> Comparison:
        """Compare the parts that `ours` holds.

        gap: what excuses tokens that differ; None takes the reference's logits of `model`.
        """
        gap = gap or self.sides(model).reference.top_two_gap
        parts = [compare(f"{model} {name}", ours[name], theirs[name], gap, same_streams) for name in ours]
        total = sum(parts, start=Comparison())
        self.listed += [f"near tie, {tie}" for tie in total.ties]
        return total

    def _heard(self, setting: Setting) -> Audio:
        return {name: part for name, part in self.audio.items() if name.startswith(setting.clips)}


def no_near_ties(window: Window, prefix: Sequence[int]) -> float:
    """For searches: which tokens come first in the end depends on whole readings, not on two logits."""
    return math.inf
