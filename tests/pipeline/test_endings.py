"""Where containers say that they end: real files cut at any byte, and headers made up."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.endings import TS_PACKET_BYTES, ends_in_the_middle, left_over, promise
from tests.chaos.corpus import CONTAINERS, encode, ffmpeg
from tests.pipeline.reading import noise

SECONDS = 2.0
SAY_SO = {"wav", "m4a", "wma", "ogg", "opus"}  # of these, any byte that is missing is missed


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    made = encode(noise(SECONDS), tmp_path_factory.mktemp("endings"), "clip")
    return {suffix: path.read_bytes() for suffix, path in made.items()}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by every example anew."""
    return tmp_path_factory.mktemp("endings") / "media"


def ends_early(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return promise(path)[1] > len(data) or ends_in_the_middle(path)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_whole_file_does_not_end_early(clips: dict[str, bytes], path: Path, suffix: str) -> None:
    assert not ends_early(path, clips[suffix])


@pytest.mark.parametrize("suffix", sorted(SAY_SO))
def test_a_single_missing_byte_is_missed(clips: dict[str, bytes], path: Path, suffix: str) -> None:
    assert ends_early(path, clips[suffix][:-1])


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from(sorted(SAY_SO)), share=st.floats(0.4, 0.99))
def test_any_cut_behind_the_header_is_missed(clips: dict[str, bytes], path: Path, suffix: str, share: float) -> None:
    data = clips[suffix]
    assert ends_early(path, data[: int(len(data) * share)])


@pytest.mark.parametrize("tagged", [True, False])
def test_an_mp3_says_how_long_it_is_but_for_a_tag(clips: dict[str, bytes], path: Path, tagged: bool) -> None:
    data = clips["mp3"]
    assert data[:3] == b"ID3"
    if not tagged:
        data = data[10 + data[9] :]
        assert data[0] == 0xFF
    assert not ends_early(path, data) and not ends_early(path, data + b"TAG" + bytes(125))
    assert not ends_early(path, data[:-128]) and ends_early(path, data[:-129]) and ends_early(path, data[:3000])
    assert not ends_early(path, data.replace(b"Info", b"Nofo")[:3000]), "without a header, nothing is promised"


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.4, 0.99))
def test_a_transport_stream_ends_with_a_whole_packet(clips: dict[str, bytes], path: Path, share: float) -> None:
    size = int(len(clips["ts"]) * share)
    assert size % TS_PACKET_BYTES == 0 or ends_early(path, clips["ts"][:size])


def test_a_transport_stream_cut_between_its_packets_misses_the_rest_of_its_sound(
    clips: dict[str, bytes], path: Path
) -> None:
    """But for a cut where a packet of sound happens to end."""
    packets = len(clips["ts"]) // TS_PACKET_BYTES
    missed = [ends_early(path, clips["ts"][: count * TS_PACKET_BYTES]) for count in range(packets // 2, packets)]
    assert 0.7 < np.mean(missed) < 1.0


def test_seconds_are_those_of_the_header(clips: dict[str, bytes], path: Path) -> None:
    for suffix in ("wav", "wma"):
        for data in (clips[suffix], clips[suffix][:-5000]):
            path.write_bytes(data)
            assert promise(path)[0] == pytest.approx(SECONDS, abs=0.1)
    path.write_bytes(clips["flac"])
    assert promise(path) == (None, 0)


@pytest.mark.parametrize("data", [b"", b"\xff", b"ID3", b"OggS", b"RIFF", b"G" * 377])
def test_a_file_that_ends_in_its_first_bytes_promises_nothing(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert promise(path) == (None, 0)


def test_an_avi_says_how_long_it_is(path: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    ffmpeg("-f", "lavfi", "-i", "sine=d=2", "-f", "lavfi", "-i", "color=s=32x32:r=5:d=2", film)
    data = film.read_bytes()
    assert not ends_early(path, data) and ends_early(path, data[:-1])


def test_an_mp4_whose_last_box_is_open_promises_nothing(path: Path) -> None:
    head = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    assert not ends_early(path, head + struct.pack(">I4s", 0, b"mdat") + bytes(100))
    assert ends_early(path, head + struct.pack(">I4s", 109, b"mdat") + bytes(100))
    assert not ends_early(path, head + struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100))
    assert ends_early(path, head + struct.pack(">I4sQ", 1, b"mdat", 1 << 63) + bytes(100))
    assert ends_early(path, head + struct.pack(">I4sQ", 1, b"mdat", 117)[:9])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0])
def test_a_streamed_wav_promises_nothing(clips: dict[str, bytes], path: Path, size: int) -> None:
    data = bytearray(clips["wav"])
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    assert promise(path) == (None, 0)


@settings(max_examples=300, deadline=None)
@given(
    magic=st.sampled_from(
        [
            b"ID3\4\0\0\0\0\0\7",
            b"\xff\xfb\x90\0Xing",
            b"RIFF\xff\xff\xff\xffWAVE",
            b"RIFF\1\0\0\0AVI ",
            b"\0\0\0\x18ftypisom",
            b"OggS",
            b"\x47",
        ]
    ),
    noise=st.binary(max_size=2000),
    repeat=st.integers(1, 3),
)
def test_nothing_that_a_header_says_can_raise(path: Path, magic: bytes, noise: bytes, repeat: int) -> None:
    path.write_bytes((magic + noise) * repeat)
    seconds, end = promise(path)
    assert end >= 0 and (seconds is None or seconds >= 0)
    assert ends_in_the_middle(path) in (True, False)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), suffix=st.sampled_from(["ts", "wma", "ogg", "m4a"]), changes=st.integers(1, 200))
def test_nothing_that_is_damaged_can_raise(
    clips: dict[str, bytes], path: Path, seed: int, suffix: str, changes: int
) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(clips[suffix])
    for place in random.integers(0, len(data), changes):
        data[place] = random.integers(256)
    path.write_bytes(data[: random.integers(len(data))])
    seconds, end = promise(path)
    assert end >= 0 and (seconds is None or seconds >= 0)
    assert ends_in_the_middle(path) in (True, False)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def test_what_stands_behind_the_samples_of_a_wav_is_counted(clips: dict[str, bytes], path: Path) -> None:
    data = clips["wav"]
    place = data.index(b"data") + 4
    (size,) = struct.unpack("<I", data[place : place + 4])
    never_updated = data[:place] + struct.pack("<I", size // 4) + data[place + 4 :]
    tags = chunk(b"LIST", b"INFOISFT") + chunk(b"id3 ", b"ID3" + bytes(98)) + chunk(b"bext", b"x" * 77)
    sound = data[place + 4 :]
    expected = {
        data: 0,
        never_updated: size - size // 4,
        data + data: len(data),
        data + tags: 0,
        data + tags + sound: len(sound),
        data + bytes(100_000): 0,
        data + b"\x80" * 60: 0,
        clips["flac"] + data: 0,
        data[:place]: 0,
    }
    for content, number in expected.items():
        path.write_bytes(content)
        assert left_over(path) == number


@given(st.binary(max_size=200))
def test_nothing_behind_a_wav_raises(path: Path, rest: bytes) -> None:
    header = (
        b"RIFF" + struct.pack("<I", 36) + b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))
    )
    path.write_bytes(header + chunk(b"data", b"1234") + rest)
    assert 0 <= left_over(path) <= len(rest)
