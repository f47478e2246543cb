"""Contenders without a model: they "hear" what the transcripts say, and fail as they are told to."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from jobs.bench.contenders import Heard, Listener, Setup
from jobs.bench.recordings import Recording
from model.errors import ModelError

MODULE = "tests.jobs.bench.scripted"


def load(setup: Setup, seconds: float = 0.0, suffix: str = "", failure: str = "", megabytes: int = 0) -> Listener:
    """seconds: that one run sleeps. suffix: words that nobody said, heard behind each. megabytes: held for a moment."""
    if failure == "load":
        raise ModelError("There are no such weights.")

    def listen(recordings: Sequence[Recording]) -> Heard:
        if failure == "die":
            os._exit(7)
        time.sleep(seconds)
        bytearray(b"x" * (megabytes << 20))
        texts = [f"{recording.text}{suffix}" for recording in recordings]
        stages = {"threads": float(os.environ["OMP_NUM_THREADS"]), "process": float(os.getpid())}
        return Heard(texts, [recording.spoken for recording in recordings], tokens=3, stages=stages)

    return listen
