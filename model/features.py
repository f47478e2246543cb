"""Audio to log-mel, in NumPy: what the CPU stage computes. It knows nothing of torch, and nothing of files.

The numbers are those of openai/whisper (`whisper/audio.py`): periodic Hann of 25 ms every 10 ms, power spectrum,
Slaney mel bands, log10 floored eight decades below the loudest value of the *whole* input. That last rule is why a part
is cut before its log-mel is computed, never after: the loudest value of the file must not leak into a part.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from model.dimensions import HOP_LENGTH, N_FFT, SAMPLE_RATE, WINDOW_FRAMES

Float32 = NDArray[np.float32]

PCM_SCALE = 32768.0  # int16 full scale
POWER_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # decades below the loudest value
FRAMES_AT_ONCE = WINDOW_FRAMES  # bounds the memory of the spectrum to a few MB, however long the part

# Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
_LINEAR_HZ_PER_MEL = 200.0 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def log_mel(audio: Float32, n_mels: int) -> Float32:
    """Log-mel spectrogram of one part, as openai/whisper computes it for that part alone.

    audio: (n,) float32 in [-1, 1] at 16 kHz. Returns (n_mels, max(n // 160, 3000)) float32: the frames of the audio,
    and, where they do not fill one window, the frames of the silence after it, which language identification reads.
    """
    content = len(audio) // HOP_LENGTH
    # Frames are centred, so up to three more than the content still touch audio, and may hold the loudest value.
    touched = math.ceil((len(audio) + N_FFT // 2) / HOP_LENGTH)
    padded = _centre_pad(audio, touched)
    mel = np.empty((n_mels, max(touched, WINDOW_FRAMES)), np.float32)
    mel[:, touched:] = POWER_FLOOR
    for first in range(0, touched, FRAMES_AT_ONCE):
        last = min(first + FRAMES_AT_ONCE, touched)
        samples = padded[first * HOP_LENGTH : (last - 1) * HOP_LENGTH + N_FFT]
        mel[:, first:last] = mel_filters(n_mels) @ _power_spectrum(samples).T
    np.maximum(mel, POWER_FLOOR, out=mel)
    np.log10(mel, out=mel)
    np.maximum(mel, mel.max() - DYNAMIC_RANGE, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel[:, : max(content, WINDOW_FRAMES)]


def pcm_to_float(pcm: NDArray[np.int16]) -> Float32:
    """(n,) int16 samples as float32 in [-1, 1)."""
    return pcm.astype(np.float32) / np.float32(PCM_SCALE)


@lru_cache(maxsize=2)
def mel_filters(n_mels: int) -> Float32:
    """Slaney mel filter bank over 0 to 8 kHz, (n_mels, 201) float32, each triangle of area one (as librosa's)."""
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    widths = np.diff(edges)
    slopes = edges[:, None] - bins[None, :]  # (n_mels + 2, 201)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    areas = 2.0 / (edges[2:] - edges[:-2])
    return np.asarray(triangles * areas[:, None], np.float32)


def _centre_pad(audio: Float32, frames: int) -> Float32:
    """Half a window before the first sample, mirrored, and zeros behind the last, for `frames` centred frames."""
    half = N_FFT // 2
    needed = (frames - 1) * HOP_LENGTH + N_FFT
    padded = np.zeros(max(needed, len(audio) + half), np.float32)
    padded[half : half + len(audio)] = audio
    padded[:half] = padded[half + 1 : N_FFT + 1][::-1]
    return padded


def _power_spectrum(samples: Float32) -> Float32:
    """(frames, 201) power of every windowed frame in `samples`."""
    frames = sliding_window_view(samples, N_FFT)[::HOP_LENGTH]  # (frames, 400), no copy
    spectrum = np.fft.rfft(frames * _hann(), axis=1)
    return np.square(spectrum.real) + np.square(spectrum.imag)


@lru_cache(maxsize=1)
def _hann() -> Float32:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT), np.float32)


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * _LINEAR_HZ_PER_MEL
    return np.where(mel < _BREAK_MEL, linear, _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL)))
