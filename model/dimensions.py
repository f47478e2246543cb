"""The numbers everything else is derived from: the audio front end, and the dimensions kept in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
WINDOW_SECONDS = 30
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_LENGTH  # 3,000 log-mel frames
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH


@dataclass(frozen=True)
class Dimensions:
    """The shape of one Whisper checkpoint; the fields are named as in openai/whisper's `.pt` files."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @property
    def is_multilingual(self) -> bool:
        return self.n_vocab >= 51_865

    @property
    def num_languages(self) -> int:
        """99, or 100 from large-v3 on (Cantonese was added)."""
        return self.n_vocab - 51_765 - int(self.is_multilingual)

    @property
    def frames_per_position(self) -> int:
        """Log-mel frames for one encoder position: 2, from the stride of the second convolution."""
        return WINDOW_FRAMES // self.n_audio_ctx

    @property
    def seconds_per_position(self) -> float:
        """Seconds for one encoder position, which is also the step of a timestamp token: 0.02."""
        return self.frames_per_position * HOP_LENGTH / SAMPLE_RATE


def _dims(n_mels: int, n_vocab: int, width: int, heads: int, encoder: int, decoder: int) -> Dimensions:
    return Dimensions(n_mels, 1500, width, heads, encoder, n_vocab, 448, width, heads, decoder)


# Radford et al. 2022 (arXiv 2212.04356), table 1; large-v3 and turbo from their checkpoints.
OFFICIAL: dict[str, Dimensions] = {
    "tiny": _dims(80, 51865, 384, 6, 4, 4),
    "tiny.en": _dims(80, 51864, 384, 6, 4, 4),
    "base": _dims(80, 51865, 512, 8, 6, 6),
    "base.en": _dims(80, 51864, 512, 8, 6, 6),
    "small": _dims(80, 51865, 768, 12, 12, 12),
    "small.en": _dims(80, 51864, 768, 12, 12, 12),
    "medium": _dims(80, 51865, 1024, 16, 24, 24),
    "medium.en": _dims(80, 51864, 1024, 16, 24, 24),
    "large-v1": _dims(80, 51865, 1280, 20, 32, 32),
    "large-v2": _dims(80, 51865, 1280, 20, 32, 32),
    "large-v3": _dims(128, 51866, 1280, 20, 32, 32),
    "large-v3-turbo": _dims(128, 51866, 1280, 20, 32, 4),
}
