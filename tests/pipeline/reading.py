"""Signals, WAV files and manifests for the tests of reading, and the reading stage run over them."""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.dimensions import SAMPLE_RATE
from pipeline import records
from pipeline.config import ReadOptions
from pipeline.cuts import PcmPart
from pipeline.inventory import MediaObject, list_media
from pipeline.parts import ReadParts

N_MELS = 80
GENERATION = "0123456789abcdef"
PART_SECONDS = 4.0
FILE_SECONDS = 10.0


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) int16 whose loudness changes every quarter of a second."""
    random = np.random.default_rng(seed)
    samples = int(seconds * SAMPLE_RATE)
    loudness = np.repeat(random.uniform(10, 6000, samples // 4000 + 1), 4000)[:samples]
    return (random.normal(0, 1, samples) * loudness).clip(-32768, 32767).astype(np.int16)


def in_chunks(pcm: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """The samples in chunks of the given sizes, over and over."""
    position = turn = 0
    while position < len(pcm):
        size = sizes[turn % len(sizes)]
        yield pcm[position : position + size]
        position, turn = position + size, turn + 1


def loud_with_pauses(seconds: float, *pauses: tuple[float, float]) -> np.ndarray:
    pcm = np.full(int(seconds * SAMPLE_RATE), 5000, np.int16)
    for start, end in pauses:
        pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = 3
    return pcm


def describe(found: list[PcmPart]) -> list[tuple[int, float, bytes, bool]]:
    return [(part.index, part.start, hashlib.sha256(part.pcm).digest(), part.is_last) for part in found]


def write_wav(path: Path, pcm: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def manifest(*paths: Path, part_seconds: float = PART_SECONDS, done: tuple[int, ...] = ()) -> pa.Table:
    return manifest_of(list_media([str(path) for path in paths]), part_seconds, done)


def manifest_of(
    listed: Iterable[MediaObject], part_seconds: float = PART_SECONDS, done: tuple[int, ...] = ()
) -> pa.Table:
    rows = []
    for media in listed:
        columns = dict(media_id=media.media_id, uri=media.uri, version=media.version, bytes=media.bytes)
        rows.append(columns | dict(part_seconds=part_seconds, done_parts=list(done), attempt=2))
    return pa.Table.from_pylist(rows, schema=records.MANIFEST)


def read(table: pa.Table, options: ReadOptions | None = None) -> list[dict[str, Any]]:
    tables = list(ReadParts(N_MELS, GENERATION, options)(table))
    assert all(one.num_rows == 1 and one.schema == records.AUDIO for one in tables)
    return [one.to_pylist()[0] for one in tables]


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["part_id"] for row in rows]
