"""The shapes of a checkpoint against the net they are for, and against the published sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from model.dimensions import OFFICIAL
from model.shapes import count_parameters, tensor_shapes
from model.whisper import Whisper


@pytest.mark.parametrize("name", ["tiny.en", "base", "large-v3", "large-v3-turbo"])
def test_the_shapes_are_those_of_the_net(name: str) -> None:
    with torch.device("meta"):
        net = Whisper(OFFICIAL[name])
    assert tensor_shapes(OFFICIAL[name]) == {key: tuple(value.shape) for key, value in net.state_dict().items()}


# Parameters in millions: Radford et al. 2022, table 1, and the model cards; positions of the encoder do not count.
@pytest.mark.parametrize(("name", "millions"), [("tiny", 37.2), ("base", 71.8), ("large-v3-turbo", 807.0)])
def test_the_shapes_add_up_to_the_published_size(name: str, millions: float) -> None:
    assert count_parameters(OFFICIAL[name]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_shapes_are_told_without_torch() -> None:
    code = "import sys, model.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
