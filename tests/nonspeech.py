"""One hundred clips in which nobody speaks: silence, noise, tones, simple music, and the sounds of a telephone line.

Each is made from its own random stream, so clip 42 is the same whichever others are made. What a recogniser writes on
any of them is invented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE

Samples = NDArray[np.float64]
SHORTEST, LONGEST = 3.0, 12.0  # seconds
EDGE_SECONDS = 0.005  # over which a note begins and ends, so that it does not click

# What each kind does, and how many of the hundred it makes; its own clips are numbered from 0.
KINDS: dict[str, tuple[int, Callable[[np.random.Generator, float, int], Samples]]]


@dataclass(frozen=True)
class Clip:
    name: str  # the kind and its number
    pcm: NDArray[np.int16]  # (n,) at 16 kHz


def clips(seed: int = 0) -> Iterator[Clip]:
    """The hundred, one at a time."""
    for kind, (count, make) in KINDS.items():
        for number in range(count):
            name = f"{kind}-{number}"
            random = np.random.default_rng([seed, *name.encode()])
            wave = make(random, random.uniform(SHORTEST, LONGEST), number)
            yield Clip(name, np.clip(np.rint(wave * 32767), -32768, 32767).astype(np.int16))


# --- building blocks ----------------------------------------------------------------------------------------------


def time_axis(seconds: float) -> Samples:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def decibels(level: float) -> float:
    """Amplitude for a level below full scale."""
    return float(10 ** (level / 20))


def at_level(wave: Samples, level: float) -> Samples:
    """The wave at so many dBFS (root mean square)."""
    return wave * (decibels(level) / np.sqrt(np.mean(wave**2)))


def colored(random: np.random.Generator, seconds: float, slope: float) -> Samples:
    """Noise whose power falls by f^-slope: 0 is white, 1 pink, 2 brown."""
    size = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(random.normal(size=size))
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, 20.0) ** (-slope / 2)
    return np.fft.irfft(spectrum, size)


def tones(seconds: float, *frequencies: float) -> Samples:
    """Sines of equal strength that add up to at most 1."""
    t = time_axis(seconds)
    return np.mean([np.sin(2 * np.pi * f * t) for f in frequencies], axis=0)


def with_edges(wave: Samples) -> Samples:
    edge = np.linspace(0, 1, min(len(wave) // 2, int(EDGE_SECONDS * SAMPLE_RATE)))
    wave = wave.copy()
    wave[: len(edge)] *= edge
    wave[len(wave) - len(edge) :] *= edge[::-1]
    return wave


def repeated(seconds: float, *pattern: Samples) -> Samples:
    """The pattern over and over, cut at the end."""
    once = np.concatenate(pattern)
    size = int(seconds * SAMPLE_RATE)
    return np.tile(once, size // len(once) + 1)[:size]


def pause(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE))


def note(frequency: float, seconds: float, harmonics: int, decay: float) -> Samples:
    """A plucked or blown note: harmonics that fall off, under an envelope that decays so many times in a second."""
    t = time_axis(seconds)
    wave = sum(np.sin(2 * np.pi * frequency * k * t) / k for k in range(1, harmonics + 1))
    return with_edges(wave * np.exp(-decay * t) / 2)


def semitone(steps: float) -> float:
    """Hz, counted from the A of 220 Hz."""
    return float(220.0 * 2 ** (steps / 12))


# --- silence and noise --------------------------------------------------------------------------------------------


def silence(random: np.random.Generator, seconds: float, number: int) -> Samples:
    return pause(seconds)


def dither(random: np.random.Generator, seconds: float, number: int) -> Samples:
    return random.uniform(-1.5, 1.5, int(seconds * SAMPLE_RATE)) / 32767


def room_tone(random: np.random.Generator, seconds: float, number: int) -> Samples:
    air = at_level(colored(random, seconds, 1.5), -65 + 4 * number)
    return air + decibels(-70 + 4 * number) * tones(seconds, 50.0, 100.0, 150.0)


def noise(slope: float) -> Callable[[np.random.Generator, float, int], Samples]:
    """Noise of one colour: -60, -50, … -20 dBFS."""
    return lambda random, seconds, number: at_level(colored(random, seconds, slope), -60 + 10 * number)


def gusts(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Wind or surf: pink noise that swells and falls within seconds."""
    swell = 1 + np.sin(2 * np.pi * random.uniform(0.1, 0.6) * time_axis(seconds) + random.uniform(0, 6))
    return at_level(colored(random, seconds, 1.0) * swell**2, -35 + 5 * number)


def crackle(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Rain or an old record: impulses at random, 10, 100, 1000 a second."""
    size = int(seconds * SAMPLE_RATE)
    struck = random.random(size) < 10.0 ** (number + 1) / SAMPLE_RATE
    return np.where(struck, random.normal(0, 0.1, size), 0.0)


def applause(random: np.random.Generator, seconds: float, number: int) -> Samples:
    wave = pause(seconds)
    for start in random.integers(0, len(wave) - 800, int(seconds * (10, 40, 160)[number])):
        wave[start : start + 800] += random.normal(0, 1, 800) * np.exp(-np.arange(800) / 100)
    return at_level(wave, -25)


# --- tones and machines -------------------------------------------------------------------------------------------


def tone(random: np.random.Generator, seconds: float, number: int) -> Samples:
    return decibels(-12) * tones(seconds, (100.0, 220.0, 440.0, 1000.0, 3000.0)[number])


def siren(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """A tone that wavers: a theremin, a siren, an alarm."""
    depth, rate = ((0.02, 5.5), (0.3, 0.5), (0.5, 3.0))[number]
    t = time_axis(seconds)
    phase = 600 * t - 600 * depth / (2 * np.pi * rate) * np.cos(2 * np.pi * rate * t)
    return decibels(-15) * np.sin(2 * np.pi * phase)


def sweep(random: np.random.Generator, seconds: float, number: int) -> Samples:
    low, high = sorted(random.uniform(60, 6000, 2))
    start, end = (low, high) if number % 2 == 0 else (high, low)
    t = time_axis(seconds)
    return decibels(-15) * np.sin(2 * np.pi * (start * t + (end - start) * t**2 / (2 * seconds)))


def hum(random: np.random.Generator, seconds: float, number: int) -> Samples:
    mains = (50.0, 60.0)[number % 2]
    wave = sum(np.sin(2 * np.pi * mains * k * time_axis(seconds)) / k for k in range(1, 12, 1 + number // 2))
    return at_level(wave + 0.05 * colored(random, seconds, 0.0), -30)


def clicks(random: np.random.Generator, seconds: float, number: int) -> Samples:
    tick = random.normal(0, 0.3, 160) * np.exp(-np.arange(160) / 30)
    return repeated(seconds, tick, pause((1.0, 0.5, 0.25, 0.1)[number]))


def engine(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Strokes of 25 to 100 a second in a resonant body: the nearest a machine comes to a voice without a throat."""
    strokes = pause(seconds)
    strokes[:: int(SAMPLE_RATE / (25 * (number + 1)))] = 1.0
    ring = np.exp(-np.arange(800) / 80) * np.sin(2 * np.pi * random.uniform(150, 500) * np.arange(800) / SAMPLE_RATE)
    return at_level(np.convolve(strokes, ring)[: len(strokes)] + 0.02 * colored(random, seconds, 1.0), -25)


# --- music --------------------------------------------------------------------------------------------------------


def chord(random: np.random.Generator, seconds: float, number: int) -> Samples:
    steps = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 11), (-12, 0, 7, 16), (0, 1, 6))[number]
    struck = np.mean([note(semitone(step), 2.0, 6, 1.0) for step in steps], axis=0)
    return 0.5 * repeated(seconds, struck)


def melody(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Notes of a major scale; from a flute (few harmonics, sustained) to a guitar (many, dying away)."""
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    parts, harmonics, decay = [], 1 + number % 6 * 2, number / 3
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        pitch = semitone(random.choice(scale) + 12 * (number % 3))
        parts.append(note(pitch, random.choice([0.2, 0.4, 0.8]), harmonics, decay))
    return 0.5 * np.concatenate(parts)[: int(seconds * SAMPLE_RATE)]


def drums(random: np.random.Generator, seconds: float, number: int) -> Samples:
    t = time_axis(0.25)
    kick = np.sin(2 * np.pi * 60 * t) * np.exp(-20 * t)
    snare = random.normal(0, 0.4, len(t)) * np.exp(-25 * t)
    hat = np.diff(random.normal(0, 0.3, len(t) + 1)) * np.exp(-60 * t)
    bar = [(kick, snare, hat)[choice] for choice in random.integers(0, 3, 8)]
    return 0.6 * repeated(seconds, *bar)


def band(random: np.random.Generator, seconds: float, number: int) -> Samples:
    beat, tune = drums(random, seconds, number), melody(random, seconds, number)
    return 0.4 * beat + 0.6 * tune + 0.2 * chord(random, seconds, 0)


def chiptune(random: np.random.Generator, seconds: float, number: int) -> Samples:
    wave = [np.sign(tones(0.15, semitone(step))) for step in random.integers(0, 24, 16)]
    return decibels(-20) * repeated(seconds, *wave)


def bells(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Partials that are no multiples of one tone, dying away."""
    t = time_axis(1.5)
    partials = semitone(12 * number) * np.array([0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76])
    return 0.2 * repeated(seconds, sum(np.sin(2 * np.pi * f * t) for f in partials) / 4 * np.exp(-3 * t))


# --- on the telephone ---------------------------------------------------------------------------------------------


def touch_tones(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Keys of a telephone (ITU-T Q.23), 0.1 s each."""
    keys = [(random.choice([697, 770, 852, 941]), random.choice([1209, 1336, 1477])) for _ in range(12)]
    return 0.3 * repeated(seconds, *(part for key in keys for part in (tones(0.1, *key), pause(0.1))))


def line_signal(random: np.random.Generator, seconds: float, number: int) -> Samples:
    """Ringing (North America, Europe), busy, dial tone, special information, fax, modem carrier, answering machine."""
    patterns = (
        (tones(2.0, 440.0, 480.0), pause(4.0)),
        (tones(1.0, 425.0), pause(4.0)),
        (tones(0.5, 480.0, 620.0), pause(0.5)),
        (tones(2.0, 350.0, 440.0),),
        (tones(0.33, 950.0), tones(0.33, 1400.0), tones(0.33, 1800.0), pause(1.0)),
        (tones(0.5, 1100.0), pause(3.0)),
        (tones(0.45, 2100.0), at_level(colored(random, 2.0, 0.0), -10)),
        (pause(1.0), tones(0.4, 1000.0), pause(20.0)),
    )
    return 0.3 * repeated(seconds, *patterns[number]) + at_level(colored(random, seconds, 1.0), -60)


KINDS = {
    "silence": (2, silence),
    "dither": (2, dither),
    "room-tone": (6, room_tone),
    "white-noise": (5, noise(0.0)),
    "pink-noise": (5, noise(1.0)),
    "brown-noise": (5, noise(2.0)),
    "gusts": (4, gusts),
    "crackle": (3, crackle),
    "applause": (3, applause),
    "tone": (5, tone),
    "siren": (3, siren),
    "sweep": (4, sweep),
    "hum": (4, hum),
    "clicks": (4, clicks),
    "engine": (4, engine),
    "chord": (5, chord),
    "melody": (9, melody),
    "drums": (4, drums),
    "band": (5, band),
    "chiptune": (3, chiptune),
    "bells": (3, bells),
    "touch-tones": (4, touch_tones),
    "line": (8, line_signal),
}
