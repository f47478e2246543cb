"""openai-whisper as a contender: its own net and `transcribe()`, on our weights.

It refuses to know who else competes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import whisper

from jobs.bench.contenders import Heard, Listener, Setup
from jobs.bench.recordings import Recording
from pipeline.media import find_ffmpeg
from pipeline.weights import load_model


def load(setup: Setup, **settings: Any) -> Listener:
    """`transcribe()` of the reference with its defaults but for `settings`.

    Raises: `ModelError` when the model cannot be loaded.
    """
    torch.set_num_threads(setup.threads)
    _put_ffmpeg_on_path(Path(setup.scratch) / "bin")
    checkpoint = load_model(setup.model)
    net = whisper.Whisper(whisper.ModelDimensions(**asdict(checkpoint.dims)))
    net.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()})
    net.requires_grad_(False).eval()
    del checkpoint

    def listen(recordings: Sequence[Recording]) -> Heard:
        done = [net.transcribe(str(r.path), fp16=False, language=r.language, **settings) for r in recordings]
        tokens = sum(len(segment["tokens"]) for one in done for segment in one["segments"])
        return Heard([one["text"] for one in done], [one["language"] for one in done], tokens)

    return listen


def _put_ffmpeg_on_path(folder: Path) -> None:
    """It calls `ffmpeg` by that name; ours is called something else, and lies where no path leads."""
    folder.mkdir(exist_ok=True)
    if not (folder / "ffmpeg").exists():  # left by another contender of this kind
        (folder / "ffmpeg").symlink_to(find_ffmpeg())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
