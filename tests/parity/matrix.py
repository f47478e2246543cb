"""Every setting under which the two sides are compared, over the same audio; what was run once is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.options import DecodeOptions
from tests.parity.comparison import Comparison, compare
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

    def __str__(self) -> str:
        previous = "with" if self.previous_text else "without"
        return f"{self.model}-{previous}-previous-text-{len(self.temperatures)}-temperatures"


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
            self._theirs[setting] = {name: reference.run(part, **options) for name, part in self.audio.items()}
        return self._theirs[setting]

    def compared(self, setting: Setting) -> Comparison:
        """Our runs over all parts in one engine, against the reference's."""
        if setting not in self._compared:
            options = DecodeOptions.exact(previous_text=setting.previous_text, temperatures=setting.temperatures)
            engine = self.sides(setting.model).ours
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                theirs = pool.submit(self.theirs, setting)
                ours = pool.submit(engine.run, self.audio, options)
                self._compared[setting] = self.compare(setting.model, ours.result(), theirs.result())
        return self._compared[setting]

    def compare(
        self, model: str, ours: Mapping[str, OurRun], theirs: Mapping[str, Any], same_streams: bool = False
    ) -> Comparison:
        """Compare the parts that `ours` holds, by the reference's logits of `model` where tokens differ."""
        gap = self.sides(model).reference.top_two_gap
        parts = [compare(f"{model} {name}", ours[name], theirs[name], gap, same_streams) for name in ours]
        total = sum(parts, start=Comparison())
        self.listed += [f"near tie, {tie}" for tie in total.ties]
        return total
