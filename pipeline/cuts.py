"""Where a stream of samples is cut into parts: in a pause near the limit, the same cut for every channel.

    chunks as they come ──▶ cut_parts ──▶ PcmPart, PcmPart, … the last of them known when the stream ends

It holds one part and one chunk. It refuses to know where samples come from, and what a part is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.dimensions import HOP_LENGTH, SAMPLE_RATE
from pipeline.channels import Tracks, as_they_are
from pipeline.media import PcmChunk
from pipeline.voice import Speech, Voice, longest_pause, speech_of

# Where a part may end: in the last fifth of its limit, at most this long. The rest of the part is not looked at.
SEARCH_SECONDS = 30.0
SEARCH_FRACTION = 0.2
# Loudness is the energy of 0.3 s, the length of a pause between phrases, looked at every 50 ms.
FRAME_SAMPLES = 5 * HOP_LENGTH
PAUSE_FRAMES = 6


@dataclass(frozen=True)
class PcmPart:
    """One part of a PCM stream: (n,) int16 at 16 kHz, and the place of its first sample in the file.

    speech: where somebody speaks in it; None where nobody has looked. channel: as `Tracks` has it, like antiphase.
    """

    index: int
    first_sample: int
    pcm: PcmChunk
    is_last: bool
    speech: Speech | None = None
    channel: int | None = None
    antiphase: bool = False

    @property
    def start(self) -> float:
        """Seconds from the start of the file; exactly the `end` of the part before."""
        return self.first_sample / SAMPLE_RATE

    @property
    def end(self) -> float:
        return (self.first_sample + len(self.pcm)) / SAMPLE_RATE


NO_PART = PcmPart(0, 0, np.empty(0, np.int16), is_last=True)  # stands for a file without samples


def cut_parts(
    chunks: Iterable[PcmChunk],
    part_seconds: float,
    voice: Voice | None = None,
    listen: Callable[[int, PcmChunk], Tracks] = as_they_are,
) -> Iterator[PcmPart]:
    """Parts of at most `part_seconds`, each ending in a pause near the limit; joined, they are the stream.

    Chunks of every channel, (n, channels), make a part of each at every cut, with consecutive indices. Cuts lie on
    whole log-mel frames, and do not depend on how the stream comes in chunks. Holds one part and one chunk; infinity
    makes one part of everything. A part is only known to be the last when the stream ends.
    """
    limit = _limit_samples(part_seconds)
    held: list[PcmChunk] = []
    size = index = first = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        while size > limit:
            joined = np.concatenate(held) if len(held) > 1 else held[0]
            heard = _Heard(listen(first, joined[: int(limit)]), voice)
            cut = heard.best_cut()
            yield from heard.parts(index, first, cut, is_last=False)
            held, size, index, first = [joined[cut:]], size - cut, index + len(heard.tracks.numbers), first + cut
    if size:
        heard = _Heard(listen(first, np.concatenate(held)), voice)
        yield from heard.parts(index, first, size, is_last=True)


class _Heard:
    """The tracks of a full part, and the probabilities of speech in each of them where there is a detector."""

    def __init__(self, tracks: Tracks, voice: Voice | None) -> None:
        self.tracks = tracks
        self._likely = [voice.probabilities(pcm) for pcm in tracks.separate()] if voice else None

    def best_cut(self) -> int:
        """Where nobody speaks, on any track."""
        return best_cut(self.tracks.pcm, None if self._likely is None else np.maximum.reduce(self._likely))

    def parts(self, index: int, first: int, cut: int, is_last: bool) -> Iterator[PcmPart]:
        """One of each track, up to the cut; only the very last of a file is the last."""
        numbers = self.tracks.numbers
        for place, (number, pcm) in enumerate(zip(numbers, self.tracks.separate(), strict=True)):
            yield PcmPart(
                index + place,
                first,
                pcm[:cut],
                is_last and place == len(numbers) - 1,
                speech_of(self._likely[place], cut) if self._likely is not None else None,
                number,
                self.tracks.antiphase,
            )


def best_cut(pcm: PcmChunk, likely: NDArray[np.float32] | None = None) -> int:
    """The sample to cut a full part before: the quietest point of the longest pause near its end.

    pcm: (n,), or (n, channels), of which all must be quiet. likely: the probabilities of speech in it; without them, or
    without a pause, the quietest point near its end.
    """
    zone = min(SEARCH_SECONDS * SAMPLE_RATE, len(pcm) * SEARCH_FRACTION)
    start, end = len(pcm) - int(zone), len(pcm)
    pause = None if likely is None else longest_pause(likely, start, end)
    return quietest(pcm, *(pause or (start, end)))


def quietest(pcm: PcmChunk, start: int, end: int) -> int:
    """The middle of the quietest 0.3 s between two samples, a whole number of frames; the earliest if several are."""
    end -= end % HOP_LENGTH
    frames = (end - start) // FRAME_SAMPLES
    if frames < PAUSE_FRAMES:
        return end
    start = end - frames * FRAME_SAMPLES
    samples = pcm[start:end].astype(np.int64).reshape(frames, -1)  # of all channels
    energy = np.concatenate(([0], np.cumsum((samples * samples).sum(axis=1))))  # whole numbers: exact anywhere
    stretches = energy[PAUSE_FRAMES:] - energy[:-PAUSE_FRAMES]
    return start + (int(np.argmin(stretches)) + PAUSE_FRAMES // 2) * FRAME_SAMPLES


def _limit_samples(part_seconds: float) -> float:
    """The longest part in samples, a whole number of frames; infinity stays."""
    if math.isinf(part_seconds):
        return math.inf
    return max(1, int(part_seconds * SAMPLE_RATE) // HOP_LENGTH) * HOP_LENGTH
