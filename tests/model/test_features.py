"""Log-mel against Slaney's formulas and a slow transform, and the properties the rest of the program counts on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import features
from model.dimensions import WINDOW_FRAMES, WINDOW_SAMPLES
from model.features import Float32, log_mel, mel_filters, pcm_to_float

SILENCE = -1.5  # (log10(1e-10) + 4) / 4


def noise(samples: int, loudness: float = 0.1, seed: int = 0) -> Float32:
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def tone(hz: float, seconds: float = 1.0) -> Float32:
    return np.sin(2 * np.pi * hz * np.arange(round(16_000 * seconds)) / 16_000).astype(np.float32)


def slaney_hz(mel: float) -> float:
    """Auditory Toolbox: 15 mels of 66⅔ Hz up to 1 kHz, then 27 equal steps of pitch to every factor of 6.4."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def slow_filters(n_mels: int) -> np.ndarray:
    """The filter bank once more, by interpolating each triangle between its three corners."""
    top = 15 + 27 * math.log(8) / math.log(6.4)  # 8 kHz
    corners = [slaney_hz(top * index / (n_mels + 1)) for index in range(n_mels + 2)]
    bank = []
    for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
        bank.append(np.interp(np.arange(201) * 40.0, [low, middle, high], [0, 2 / (high - low), 0]))
    return np.array(bank)


def slow_log_mel(audio: Float32, n_mels: int) -> np.ndarray:
    """The definition, in double precision and with all thirty seconds of zeros behind the audio."""
    padded = np.pad(np.concatenate([audio, np.zeros(WINDOW_SAMPLES)]).astype(np.float64), 200, mode="reflect")
    window = np.hanning(401)[:400]
    count = (len(audio) + WINDOW_SAMPLES) // 160  # the last frame is dropped
    frames = np.stack([padded[i * 160 : i * 160 + 400] * window for i in range(count)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    log = np.log10(np.maximum(slow_filters(n_mels) @ power.T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


# --- the filter bank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_mels", [80, 128])
def test_the_filters_are_slaneys(n_mels: int) -> None:
    assert mel_filters(n_mels).dtype == np.float32
    np.testing.assert_allclose(mel_filters(n_mels), slow_filters(n_mels), atol=1e-8)


# Weights in openai/whisper, assets/mel_filters.npz, which librosa made.
@pytest.mark.parametrize(
    ("n_mels", "band", "bin", "weight"),
    [
        (80, 0, 1, 0.02486259490251541),
        (80, 40, 43, 0.014735566452145576),
        (80, 79, 192, 0.0031647118739783764),
        (128, 0, 1, 0.012373986653983593),
        (128, 40, 24, 0.040376365184783936),
        (128, 127, 195, 0.005041601601988077),
    ],
)
def test_the_filters_have_the_published_weights(n_mels: int, band: int, bin: int, weight: float) -> None:
    assert mel_filters(n_mels)[band, bin] == pytest.approx(weight, abs=1e-8)
    assert mel_filters(n_mels)[band].argmax() == bin


def test_every_wide_filter_has_area_one() -> None:
    areas = mel_filters(80)[45:].sum(axis=1) * 40  # 40 Hz between bins
    np.testing.assert_allclose(areas, 1, atol=0.02)


# --- log-mel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [16_000, 16_001, 16_120, 16_121, 16_159, 32_000 - 1])
def test_log_mel_is_what_the_definition_says(samples: int) -> None:
    """Frames are centred, so the last ones reach behind the audio, differently for every remainder of 160."""
    audio = noise(samples)
    expected = slow_log_mel(audio, 80)[:, :WINDOW_FRAMES]
    np.testing.assert_allclose(log_mel(audio, 80), expected, atol=2e-4)


def test_log_mel_of_more_than_a_window_is_what_the_definition_says() -> None:
    audio = noise(WINDOW_SAMPLES + 5 * 16_000 + 77)
    expected = slow_log_mel(audio, 128)[:, :3500]
    np.testing.assert_allclose(log_mel(audio, 128), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 3000), (1, 3000), (159, 3000), (480_000, 3000), (480_159, 3000), (480_160, 3001), (640_000, 4000)],
)
@pytest.mark.parametrize("n_mels", [80, 128])
def test_the_shape_is_the_frames_of_the_audio_but_at_least_a_window(samples: int, frames: int, n_mels: int) -> None:
    mel = log_mel(np.zeros(samples, np.float32), n_mels)
    assert (mel.shape, mel.dtype) == ((n_mels, frames), np.float32)


def test_silence_has_one_value() -> None:
    (value,) = np.unique(log_mel(np.zeros(16_000, np.float32), 80))
    assert value == pytest.approx(SILENCE)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400))
def test_very_short_audio_is_what_the_definition_says(samples: int) -> None:
    """The mirrored edge in front reaches farther than the audio, into the silence behind it."""
    audio = noise(samples)
    got = log_mel(audio, 80)[:, :8]
    np.testing.assert_allclose(got, slow_log_mel(audio, 80)[:, :8], atol=2e-3)


def test_nothing_lies_more_than_eight_decades_below_the_loudest() -> None:
    mel = log_mel(np.concatenate([tone(1000), np.zeros(16_000, np.float32)]), 80)
    assert mel.min() == pytest.approx(mel.max() - 8 / 4)
    assert mel.min() > SILENCE


def test_the_loudest_value_counts_even_in_a_frame_behind_the_last() -> None:
    click = np.zeros(WINDOW_SAMPLES + 159, np.float32)
    click[-1] = 1.0  # in the frame that is dropped
    mel = log_mel(click, 80)
    np.testing.assert_allclose(mel, slow_log_mel(click, 80)[:, :WINDOW_FRAMES], atol=2e-4)
    assert mel.min() > SILENCE


def test_what_a_part_sounds_like_does_not_depend_on_the_rest_of_the_file() -> None:
    quiet, loud = noise(WINDOW_SAMPLES, 1e-4), noise(WINDOW_SAMPLES, 0.5)
    cut_first = log_mel(quiet, 80)
    cut_last = log_mel(np.concatenate([quiet, loud]), 80)[:, :WINDOW_FRAMES]
    assert cut_first.min() < cut_last.min() - 0.5  # which is why the audio is cut first


def test_working_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(3 * 16_000 + 130)
    whole = log_mel(audio, 80)
    for frames in (1, 7, 100, 302, 303):
        monkeypatch.setattr(features, "FRAMES_AT_ONCE", frames)
        np.testing.assert_allclose(log_mel(audio, 80), whole, atol=1e-5)


@pytest.mark.parametrize("hz", [200, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_its_own_band(hz: int) -> None:
    mel = log_mel(tone(hz), 80)[:, 10:90]
    top = 15 + 27 * math.log(8) / math.log(6.4)
    centres = np.array([slaney_hz(top * index / 81) for index in range(1, 81)])
    assert set(mel.argmax(axis=0)) == {int(np.abs(centres - hz).argmin())}


def test_twice_as_loud_is_a_little_more_everywhere() -> None:
    difference = log_mel(noise(16_000, 0.2), 80)[:, :99] - log_mel(noise(16_000, 0.1), 80)[:, :99]
    np.testing.assert_allclose(difference, math.log10(4) / 4, atol=1e-4)


def test_pcm_is_scaled_by_full_scale() -> None:
    audio = pcm_to_float(np.array([-32768, -1, 0, 16384, 32767], np.int16))
    assert audio.dtype == np.float32
    assert audio.tolist() == [-1.0, -1 / 32768, 0.0, 0.5, 32767 / 32768]
