"""Which signals of a file are transcribed: the mix of its channels, or each of them; or one, where the mix is no use.

Stereo whose channels are each other's opposite, as a swapped wire makes it, mixes to silence (anti-phase). A mix that
is nearly silent is therefore compared with the channels behind it, and where one of them is loud, it takes the mix's
place: for as long as that lasts, since a jingle, or whoever else is on the line, may be in phase. It refuses to know
how signals are cut, and what is said in them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from model.dimensions import SAMPLE_RATE
from pipeline.config import SPLIT
from pipeline.media import MAX_SPLIT_CHANNELS, Decoding, PcmChunk

# A mix below -35 dBFS is looked behind. Speech is recorded some 10 dB louder; where it is not, or in silence, the look
# costs a second decoding, and changes nothing. Opposite channels at -26 dBFS mix to less than -75, but for Vorbis at
# low rates: its rounding leaves -42.
NEARLY_SILENT = 32768 * 10 ** (-35 / 20)
# Of a loud mix, so silent a stretch is looked behind as well. Pauses have more noise, but in films and music.
SILENT = 32768 * 10 ** (-60 / 20)
STRETCH = 2 * SAMPLE_RATE  # at least, in samples
# One loud channel among C comes out of a mix at 1/C of itself. 8 dB less is no mixing but a cancelling.
CANCELLED = 2.5
LOUD = 32768 * 10 ** (-50 / 20)  # a channel below this is noise; without it, the mix of two silences would count


@dataclass(frozen=True)
class Tracks:
    """The signals of one stretch of a file. `numbers` of its channels count from 0; (None,) is the mix of all.

    pcm: int16 at 16 kHz, (n,) of one signal or (n, tracks) of several. antiphase: the mix would have been silent, all
    the time or for a while, so it is a channel instead, there.
    """

    pcm: PcmChunk
    numbers: tuple[int | None, ...]
    antiphase: bool = False

    def separate(self) -> Iterator[PcmChunk]:
        """Each signal, (n,)."""
        columns = self.pcm.reshape(len(self.pcm), -1)
        return (np.ascontiguousarray(columns[:, place]) for place in range(columns.shape[1]))


def as_they_are(first: int, pcm: PcmChunk) -> Tracks:
    """The mix, or every channel, whichever came; it starts at sample `first` of the file."""
    return Tracks(pcm, (None,) if pcm.ndim == 1 else tuple(range(pcm.shape[1])))


class LoudestChannel:
    """What to hear of a file being decoded: its samples as they are, or its loudest channel where they cancel out.

    The channels are decoded by a second ffmpeg, which is started when a mix of several is silent for the first time,
    and follows from there; nothing else costs anything. Memory: one part of every channel.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._mix = decoding
        self._channels: Decoding | None = None
        self._chunks: Generator[PcmChunk, None, None] | None = None
        self._held: list[PcmChunk] = []  # (n, channels), from sample `_first` on
        self._first = 0

    @property
    def waited_seconds(self) -> float:
        """Time spent waiting for ffmpeg, both of them."""
        return self._mix.waited_seconds + (self._channels.waited_seconds if self._channels else 0.0)

    def __call__(self, first: int, pcm: PcmChunk) -> Tracks:
        """What to hear of (n,) or (n, channels) samples, of which `first` is the first. Later calls never go back."""
        tracks = as_they_are(first, pcm)
        if not self._is_mixed() or not is_suspicious(pcm):
            return tracks
        channels = self._behind(first, len(pcm))
        if len(channels) < len(pcm):  # it failed where the other did not; the mix is what there is
            return tracks
        heard, taken = pcm.copy(), []
        for stretch in stretches(len(pcm)):
            if (loudest := cancelled(pcm[stretch], channels[stretch])) is not None:
                heard[stretch] = channels[stretch, loudest]
                taken.append(loudest)
        return Tracks(heard, (statistics.mode(taken),), antiphase=True) if taken else tracks

    def close(self) -> None:
        """End the second ffmpeg, if there is one."""
        if self._chunks is not None:
            self._chunks.close()

    def _is_mixed(self) -> bool:
        several = 2 <= (self._mix.report.channels or 0) <= MAX_SPLIT_CHANNELS
        return several and self._mix.options.channels != SPLIT

    def _behind(self, first: int, samples: int) -> PcmChunk:
        """(n, channels): the stretch as it is before mixing; shorter where that ends early."""
        if self._chunks is None:
            self._channels = Decoding(self._mix.path, self._mix.options, every_channel=True)
            self._chunks = iter(self._channels)
        held = sum(map(len, self._held))
        while self._first + held < first + samples and (chunk := next(self._chunks, None)) is not None:
            self._held.append(chunk)
            held += len(chunk)
            while self._held and self._first + len(self._held[0]) <= first:
                gone = len(self._held.pop(0))
                self._first, held = self._first + gone, held - gone
        if not self._held:
            return np.empty((0, 1), np.int16)
        joined = np.concatenate(self._held)[first - self._first :]
        self._held, self._first = [joined], first
        return joined[:samples]


def stretches(samples: int) -> list[slice]:
    """So many samples in equal stretches, as short as they may be."""
    number = max(1, samples // STRETCH)
    return [slice(samples * turn // number, samples * (turn + 1) // number) for turn in range(number)]


def is_suspicious(mix: PcmChunk) -> bool:
    """Whether a mix, (n,), is as quiet as cancelled channels leave it: all of it, or a stretch of it more so."""
    return loudness(mix) < NEARLY_SILENT or any(loudness(mix[stretch]) < SILENT for stretch in stretches(len(mix)))


def cancelled(mix: PcmChunk, channels: PcmChunk) -> int | None:
    """The loudest channel, (n, channels), if it is loud and the mix, (n,), has lost it; else None."""
    levels = [loudness(channels[:, number]) for number in range(channels.shape[1])]
    loudest = int(np.argmax(levels))
    lost = loudness(mix) * CANCELLED * len(levels) < levels[loudest]
    return loudest if lost and levels[loudest] >= LOUD else None


def loudness(pcm: PcmChunk) -> float:
    """Root of the mean square of samples of any shape; 0 of none."""
    flat = pcm.ravel()
    return math.sqrt(np.einsum("i,i->", flat, flat, dtype=np.float64) / flat.size) if flat.size else 0.0
