"""Windows to features: which frames the encoder hears, in which batches, and what language it finds in them.

On a GPU the encoder works on a stream of its own, beside the decoder: what it makes is `ready` when an event says so.

It knows parts and windows, not slots; the engine lends it free slots for the single decoder step that finds a language.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.cache import Reach
from model.dimensions import FRAMES_PER_SECOND, WINDOW_FRAMES
from model.options import DecodeOptions
from model.progress import PartProgress
from model.tokenizer import Tokenizer
from model.transfer import send, staging, to_device
from model.vote import voting_windows

# The encoder reads whole seconds, so that windows of nearly one length share a batch.
FRAMES_STEP = FRAMES_PER_SECOND

Mel = NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """One window as the encoder heard it: features (A, D), two frames a position.

    ballots: features of other windows that have a say in the language of the part.
    votes: whether this window has a say too.
    ready: comes to pass on the encoder's stream when all this is computed; None where there is one stream only.
    """

    progress: PartProgress
    order: int
    features: Tensor
    ballots: tuple[Tensor, ...] = ()
    votes: bool = False
    ready: torch.cuda.Event | None = None


@dataclass
class _Heard:
    """A window to encode, and where its features go.

    audio: log-mel (n_mels, content); zeros fill it up to `frames`.
    """

    audio: Mel
    frames: int
    features: Tensor = field(init=False)


class Hearing:
    """Encodes windows in batches of equal length. On a GPU it works on a stream of its own, ahead of the decoder."""

    def __init__(self, net: Any, tokenizer: Tokenizer, options: DecodeOptions) -> None:
        self._net, self._tokenizer, self._options = net, tokenizer, options
        self._language_tokens = to_device(tokenizer.language_tokens, net.device)
        self._stream = _stream_beside(net.device) if net.device.type == "cuda" else None
        self.runs_ahead = self._stream is not None
        self.encoded_windows = 0  # language windows included
        self.encoded_frames = 0

    def encode(self, works: Sequence[tuple[PartProgress, int]]) -> list[Encoded]:
        """The next window of each part, and those other windows its language is found on, as one batch."""
        windows = [self._window(progress, progress.seek, self._votes(progress)) for progress, _ in works]
        ballots = [self._ballots(progress) for progress, _ in works]
        ready = self._encode([*windows, *itertools.chain.from_iterable(ballots)])
        encoded = []
        for (progress, order), window, others in zip(works, windows, ballots, strict=True):
            heard = tuple(other.features for other in others)
            encoded.append(Encoded(progress, order, window.features, heard, self._votes(progress), ready))
        return encoded

    def languages(self, cache: Any, slots: Tensor) -> NDArray[np.float32]:
        """Probabilities (B, languages) of what is spoken in `slots` (B,).

        One decoder step after `sot`, over the encoder's output; only the language tokens compete.
        """
        rows = slots * cache.lanes
        sot = torch.full((len(rows), 1), self._tokenizer.sot, device=rows.device)
        hidden = self._net.decode(sot, torch.zeros_like(sot), cache, Reach(rows, 1, ragged=True))  # (B, 1, D)
        probabilities: Tensor = self._net.project(hidden[:, 0])[:, self._language_tokens].softmax(-1)
        return probabilities.cpu().numpy()

    def _votes(self, progress: PartProgress) -> bool:
        """Whether the window itself tells the language: where each finds its own, or the first of the part."""
        if not self._net.dims.is_multilingual or self._options.language is not None:
            return False
        return self._options.language_per_window or (progress.language is None and not self._hears_silence(progress))

    def _ballots(self, progress: PartProgress) -> list[_Heard]:
        """Other windows to find the language of a part on, before its first window is read."""
        if progress.language is not None or self._options.language_per_window:
            return []
        if self._hears_silence(progress):
            return [_Heard(progress.part.mel[:, :WINDOW_FRAMES], WINDOW_FRAMES)]
        begins = voting_windows(progress.content_frames, self._options.language_windows)
        return [self._window(progress, begin, votes=True) for begin in begins[1:]]

    def _hears_silence(self, progress: PartProgress) -> bool:
        """A part shorter than a window is identified on other frames than it is decoded on; see `DecodeOptions`."""
        return self._options.language_window == "reference" and progress.part.content_frames < WINDOW_FRAMES

    def _window(self, progress: PartProgress, begin: int, votes: bool) -> _Heard:
        """Log-mel from `begin` on, with zeros behind the end of the part, as the reference pads it."""
        content = min(WINDOW_FRAMES, progress.content_frames - begin)
        return _Heard(progress.mel[:, begin : begin + content], self._frames(content, votes))

    def _frames(self, content: int, votes: bool) -> int:
        """Frames the encoder reads of a window with so many of audio: all 3000, or only a margin more than these.

        A language is found on all 3000: on less, base takes 16 % of short English clips for something else, not 2 %.
        """
        margin = self._options.context_margin
        if margin is None or votes or content < self._options.context_from * FRAMES_PER_SECOND:
            return WINDOW_FRAMES
        wanted = content + round(margin * FRAMES_PER_SECOND)
        return min(WINDOW_FRAMES, -(-wanted // FRAMES_STEP) * FRAMES_STEP)

    def _encode(self, windows: Sequence[_Heard]) -> torch.cuda.Event | None:
        """Give every window its features, and say when they are ready."""

        def length(window: _Heard) -> int:
            return window.frames

        for frames, group in itertools.groupby(sorted(windows, key=length), key=length):
            batch = list(group)
            for window, features in zip(batch, self._run(self._stack(batch, frames)), strict=True):
                window.features = features
            self.encoded_windows += len(batch)
            self.encoded_frames += len(batch) * frames
        return None if self._stream is None else self._stream.record_event()

    def _stack(self, batch: Sequence[_Heard], frames: int) -> Tensor:
        """Log-mel (B, n_mels, frames) on the host, written once, from where it can be sent."""
        stacked = staging(len(batch), len(batch[0].audio), frames, device=self._net.device)
        for row, window in zip(stacked.numpy(), batch, strict=True):
            content = window.audio.shape[1]
            row[:, :content] = window.audio
            row[:, content:] = 0
        return stacked

    def _run(self, mel: Tensor) -> Tensor:
        """Features (B, A, D) of log-mel on the host; on a GPU, before they are computed."""
        if self._stream is None:
            return self._net.encode(mel)  # type: ignore[no-any-return]
        decoding = torch.cuda.current_stream(self._net.device)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            features: Tensor = self._net.encode(send(mel, self._net.device))
            # The memory is the encoder's stream's, to be used again there as soon as nobody here refers to it. But the
            # decoder's stream reads it too, and may not have come to that yet.
            features.record_stream(decoding)
        return features

    def wait(self, batch: Sequence[Encoded]) -> None:
        """Let the decoder's stream wait for these windows, and the host for nothing."""
        for ready in {encoded.ready for encoded in batch if encoded.ready is not None}:
            torch.cuda.current_stream(self._net.device).wait_event(ready)


def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """A new stream that begins when the current one has done what it has to do, such as loading the net."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
