"""Real runs under random kills: nothing is lost, and nothing is there twice.

    EARWITNESS_CHAOS_KILLS=300 EARWITNESS_CHAOS_SEED=1 make chaos

kills as many, of drivers, Ray workers, raylets and S3 servers alike, and prints a table of them.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from jobs.samples import clips, fetch_samples, read_clip
from model.dimensions import SAMPLE_RATE
from model.errors import ModelError, SourceError
from pipeline.weights import load_model
from tests.chaos.conftest import SEED
from tests.chaos.kills import under_fire

KILLS = int(os.environ.get("EARWITNESS_CHAOS_KILLS", "4"))
# A dozen of three clips; more for many kills, so that a run takes some of them before it ends.
VOLUMES = tuple(1 - 0.03 * number for number in range(4 if KILLS < 20 else 20))
SECONDS_A_KILL = 30  # at most, on a machine that does other work as well

pytestmark = pytest.mark.timeout(300 + SECONDS_A_KILL * KILLS)


@pytest.fixture(scope="module")
def clips_of_many_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short recordings of English speech, each with other bytes."""
    try:
        samples = fetch_samples()
        load_model("tiny.en")
    except (SourceError, ModelError) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("clips")
    for clip in clips(samples):
        for volume in VOLUMES if clip.parent.name == "en" else ():
            with wave.open(str(folder / f"{clip.stem}-{volume:.2f}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes((read_clip(clip) * volume).astype(np.int16).tobytes())
    return folder


def test_whatever_is_killed_nothing_is_lost_and_nothing_is_there_twice(
    clips_of_many_volumes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with under_fire(clips_of_many_volumes, SEED) as fire:
        expected = fire.undisturbed()
        assert len(expected.tables["parts"]) == 3 * len(VOLUMES)
        try:
            fire.rage(KILLS, expected)
        finally:  # a long run that is interrupted tells how far it came
            with capsys.disabled():
                print(f"\nseed {SEED}\n{fire.score}")
    assert fire.score.complaints == []
    assert (fire.score.lost, fire.score.doubled) == (0, 0)
    assert fire.score.kills.total() == KILLS
