"""Where somebody speaks: the net of Silero VAD over the samples of one part, and the rules that make spans of it.

    samples ─▶ evened out ─▶ 32 ms frames ─▶ probabilities of speech ─┬▶ spans of log-mel frames to be read
                                                                      └▶ pauses to cut in

The net (MIT licence, https://github.com/snakers4/silero-vad) is small enough for NumPy: ten minutes take half a second
on one core, and a reader needs no torch. It refuses to know where samples come from, and what becomes of silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors.numpy import load
from threadpoolctl import ThreadpoolController

from model.dimensions import HOP_LENGTH, SAMPLE_RATE
from model.errors import ModelError

Floats = NDArray[np.float32]

# A table inside the package, which is never imported: that would set the threads of torch. Its programs carry weights
# of another training, which with the thresholds below miss 2 of 828 short prompts, and take 11 clips for speech, not 7.
PACKAGE, WEIGHTS = "silero-vad", "silero_vad/data/silero_vad_16k.safetensors"
WEIGHTS_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"  # of silero-vad 6.2.3

# The shape of the net, from the same package.
FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64  # of the frame before
N_FFT = 256
HOP_FFT = 128
STRIDES = (1, 2, 2, 1)  # of its convolutions, each three positions wide
STATE = 128
BLOCK_FRAMES = 64  # that go through the convolutions together: 2 s, which stay in the cache

# Whisper's log-mel is relative to the loudest sound, so it reads quiet speech as well as loud. The net does not: of 203
# prompts, made 45 dB quieter, it misses 34, and none when the second around a frame is raised towards -20 dBFS.
FULL_SCALE = 32768
QUIETEST = FULL_SCALE**-2  # of a power: below one step of a sample
LOUD = 10 ** (-20 / 20)
MOST_GAIN = 10 ** (30 / 20)
EVEN_SECONDS = 1.0  # to each side

# What is read. Chosen on 1,623 telephone prompts (as they are, 45 dB quieter, and in noise) and a hundred clips without
# speech: no prompt is missed, the shortest word included, and 7 clips are taken for speech. Silero's own 0.5, 0.35 and
# 0.25 s are for dialogue, where a missed word costs nothing.
ONSET = 0.1
OFFSET = 0.05  # speech that has begun goes on down to here
MIN_SPEECH_SECONDS = 0.1  # that it takes to be speech at all

# What stays of the silence around speech, since all else is cut out. On ten minutes of prompts, base: 0.2 s leaves 560
# of 603 s and a word error rate of 1.6 %; 0.3 s, 583 s and 1.9 %; 0.4 s, bridging pauses of 2 s, 599 s and 2.2 %.
PAD_SECONDS = 0.2

# Where a part may be cut: the surest silence is wanted here, not the last word. Silero's own threshold of silence. In
# speech with music 7 dB below it, 5 of 100 cuts meet a word, and 19 at the quietest point; in pink noise 2, and 9.
PAUSE_BELOW = 0.35
MIN_PAUSE_FRAMES = 10  # 0.32 s, as between phrases; less is a gap in a word


@dataclass(frozen=True)
class Speech:
    """Where somebody speaks in a part.

    seconds: of speech alone. spans: log-mel frames [start, end), in order, with a margin before and behind.
    """

    seconds: float
    spans: tuple[tuple[int, int], ...]


class Voice:
    """The detector: weights and no state, so each part is heard by itself.

    Raises: `ModelError` when the weights are not there, or not those that the thresholds were chosen for.
    """

    def __init__(self) -> None:
        tensors = load(_weights())
        # The filters in the weights are the short-time Fourier transform under this window, to 1e-7.
        self._window = np.hanning(N_FFT + 1)[:N_FFT].astype(np.float32)
        self._convolutions = [
            (_taps(tensors[f"conv{i}.weight"]), tensors[f"conv{i}.bias"], stride) for i, stride in enumerate(STRIDES, 1)
        ]
        # sigmoid(x) = (1 + tanh(x/2)) / 2, so one tanh serves all four gates: input, forget, cell, output.
        halves = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), STATE)
        self._input = np.ascontiguousarray(tensors["lstm_cell.weight_ih"].T * halves)
        self._recurrent = np.ascontiguousarray(tensors["lstm_cell.weight_hh"].T * halves)
        self._bias = (tensors["lstm_cell.bias_ih"] + tensors["lstm_cell.bias_hh"]) * halves
        self._out = tensors["final_conv.weight"].reshape(STATE)
        self._out_bias = tensors["final_conv.bias"]
        self._libraries = ThreadpoolController()

    def probabilities(self, pcm: NDArray[np.int16]) -> Floats:
        """How likely somebody speaks in each 32 ms of a part, (n,) int16 at 16 kHz: (frames,).

        Memory stays small, however long the part is.
        """
        state = np.zeros(STATE, np.float32), np.zeros(STATE, np.float32)
        found = [np.empty(0, np.float32)]
        gains = _gains(pcm)
        # Matrices this small are no faster on two threads, and many times slower while others use the cores.
        with self._libraries.limit(limits=1, user_api="blas"):
            for first, frames in _framed(pcm):
                gates = self._encode(frames * gains[first : first + len(frames), None]) @ self._input + self._bias
                hidden, state = self._recur(gates, state)
                logits = np.maximum(hidden, 0.0) @ self._out + self._out_bias
                found.append(np.tanh(logits / 2) / 2 + np.float32(0.5))
        return np.concatenate(found)

    def _encode(self, frames: Floats) -> Floats:
        """(n, 576) samples to (n, 128) features: the spectrum at four places, then convolutions down to one."""
        mirrored = np.concatenate((frames, frames[:, -2 : -2 - CONTEXT_SAMPLES : -1]), axis=1)
        places = sliding_window_view(mirrored, N_FFT, axis=1)[:, ::HOP_FFT]  # (n, 4, 256)
        features = np.abs(np.fft.rfft(places * self._window))  # (n, 4, 129)
        for taps, bias, stride in self._convolutions:
            features = _convolve(features, taps, bias, stride)
        return features[:, 0]

    def _recur(self, gates: Floats, state: tuple[Floats, Floats]) -> tuple[Floats, tuple[Floats, Floats]]:
        """The LSTM over the frames of a block: (n, 512) to (n, 128), and the state behind the last."""
        hidden, cell = state
        outputs = np.empty((len(gates), STATE), np.float32)
        for place, gate in enumerate(gates):
            activated = np.tanh(gate + hidden @ self._recurrent)
            opened = activated * 0.5 + 0.5
            cell = opened[STATE : 2 * STATE] * cell + opened[:STATE] * activated[2 * STATE : 3 * STATE]
            hidden = opened[3 * STATE :] * np.tanh(cell)
            outputs[place] = hidden
        return outputs, (hidden, cell)


def _weights() -> bytes:
    try:
        path = distribution(PACKAGE).locate_file(WEIGHTS)
        content = path.read_bytes()  # type: ignore[attr-defined]  # a Path, which the protocol does not say
    except (PackageNotFoundError, OSError):
        content = b""
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise ModelError(
            f"The weights of the voice detector are missing or of another version: install the {PACKAGE} that "
            f"earwitness asks for, or set read.voice_activity to false."
        )
    return bytes(content)


def _taps(weight: Floats) -> Floats:
    """(out, in, 3) as a checkpoint has it to (3 × in, out)."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))


def _convolve(features: Floats, taps: Floats, bias: Floats, stride: int) -> Floats:
    """(n, places, in) to (n, places / stride, out): three places wide, zeros at the edges, then ReLU."""
    n, places, width = features.shape
    padded = np.zeros((n, places + 2, width), np.float32)
    padded[:, 1:-1] = features
    spread = np.concatenate([padded[:, tap : tap + places : stride] for tap in range(3)], axis=2)
    convolved: Floats = spread.reshape(-1, 3 * width) @ taps + bias  # one product, not one for each frame
    return np.maximum(convolved, 0.0).reshape(n, -1, len(bias))


def _framed(pcm: NDArray[np.int16]) -> Iterator[tuple[int, Floats]]:
    """Blocks of frames (n, 576), each behind the end of the one before, with the number of their first; zeros outside.

    Blocks lie at fixed places, so that a part is the same numbers however its samples came.
    """
    block = BLOCK_FRAMES * FRAME_SAMPLES
    for start in range(0, len(pcm), block):
        inside = pcm[max(0, start - CONTEXT_SAMPLES) : start + block]
        before = CONTEXT_SAMPLES if start == 0 else 0
        behind = -(len(inside) + before - CONTEXT_SAMPLES) % FRAME_SAMPLES
        samples: Floats = np.pad(inside.astype(np.float32) / np.float32(FULL_SCALE), (before, behind))
        yield start // FRAME_SAMPLES, sliding_window_view(samples, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]


def _gains(pcm: NDArray[np.int16]) -> Floats:
    """(frames,): what raises the loudest frame nearby to LOUD. Nothing is made quieter."""
    powers = [np.square(frames[:, CONTEXT_SAMPLES:]).mean(axis=1) for _, frames in _framed(pcm)]
    if not powers:
        return np.empty(0, np.float32)
    reach = int(EVEN_SECONDS * SAMPLE_RATE) // FRAME_SAMPLES
    nearby = sliding_window_view(np.pad(np.concatenate(powers), reach), 2 * reach + 1).max(axis=1)
    gains: Floats = np.clip(LOUD / np.sqrt(np.maximum(nearby, QUIETEST)), 1.0, MOST_GAIN)
    return gains


# --- rules --------------------------------------------------------------------------------------------------------


def speaking(probabilities: Floats) -> NDArray[np.bool_]:
    """Whether somebody speaks in each frame: from ONSET on, for as long as it is at least OFFSET, if it lasts."""
    heard = np.zeros(len(probabilities), np.bool_)
    for start, end in _runs(probabilities >= OFFSET):
        begun = np.flatnonzero(probabilities[start:end] >= ONSET)
        if len(begun) and (end - start - begun[0]) * FRAME_SAMPLES >= MIN_SPEECH_SECONDS * SAMPLE_RATE:
            heard[start + begun[0] : end] = True
    return heard


def speech_of(probabilities: Floats, samples: int) -> Speech:
    """Where somebody speaks in the first `samples` of what the probabilities were found in."""
    heard = speaking(probabilities[: -(-samples // FRAME_SAMPLES)])
    seconds = min(int(heard.sum()) * FRAME_SAMPLES, samples) / SAMPLE_RATE
    pad = int(PAD_SECONDS * SAMPLE_RATE)
    spans: list[tuple[int, int]] = []
    for start, end in _runs(heard):
        start, end = start * FRAME_SAMPLES, end * FRAME_SAMPLES
        if spans and start - spans[-1][1] <= 2 * pad:
            start = spans.pop()[0]
        spans.append((start, end))
    frames = [(max(0, start - pad) // HOP_LENGTH, -(-(end + pad) // HOP_LENGTH)) for start, end in spans]
    content = samples // HOP_LENGTH
    return Speech(seconds, tuple((start, min(end, content)) for start, end in frames if start < content))


def longest_pause(probabilities: Floats, start: int, end: int) -> tuple[int, int] | None:
    """The longest pause [start, end) between two samples, the earliest of several.

    None when none is long enough to end a phrase.
    """
    runs = _runs(probabilities < PAUSE_BELOW)
    pauses = ((max(start, first * FRAME_SAMPLES), min(end, last * FRAME_SAMPLES)) for first, last in runs)
    longest = max(pauses, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    return longest if longest[1] - longest[0] >= MIN_PAUSE_FRAMES * FRAME_SAMPLES else None


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, end) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
