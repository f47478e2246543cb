"""Where a media file should end, as its own container has it: one function for each container that says so.

ffmpeg reads what is there and ends well, so a file that was cut short is found here. What a header can hold is hostile:
every read is bounded, and nothing raises. It refuses to know what is in between, and what follows from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_CHUNKS = 1000  # of a WAV before its samples, or boxes of an MP4 side by side
STREAMED_BYTES = 0x7FFF0000  # from here on, a RIFF size is what a writer to a pipe puts for "unknown"
LITTLE_BYTES = 64  # what writers leave behind
PADDING_BYTES = 1 << 16  # of zeros, as in a file that was reserved before it was written
MP3_FRAME_BYTES = 2881  # the largest
ID3V1_BYTES = 128  # a tag behind the sound, which some writers count
OGG_PAGE_BYTES = 1 << 16  # the largest
OGG_HEADER_BYTES = 27  # then the table of lengths
ASF_HEADER_BYTES = 1 << 16  # in which the properties of the file stand, however many pictures follow
TS_PACKET_BYTES = 188
TS_SYNC = 0x47
TS_TAIL_PACKETS = 2048  # 385 kB: audio packets are a few kB long, and interleaved with seconds of video at most

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def promise(path: Path) -> tuple[float | None, int]:
    """Seconds that a header promises, and the byte at which it says that its content ends.

    None and 0 where it says nothing, or where the file was streamed, and so never knew its size.
    """
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            return _wav(file)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            size = struct.unpack("<I", head[4:8])[0]
            return None, size + 8 if size < STREAMED_BYTES else 0
        if head[4:8] == b"ftyp":
            return None, _last_box(file)
        if head == _ASF:
            return _asf(file)
        if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
            return None, _mp3(file, head)
    return None, 0


def ends_in_the_middle(path: Path) -> bool:
    """Whether the last packet of an Ogg or an MPEG transport stream is not whole, or does not say that it is the last.

    False for other files. A transport stream never says so, hence one that is cut between packets looks whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2 * TS_PACKET_BYTES + 1)
        if head[:4] == b"OggS":
            return not _ends_with_last_page(file, size)
        if len(head) > 2 * TS_PACKET_BYTES and set(head[::TS_PACKET_BYTES]) == {TS_SYNC}:
            return bool(size % TS_PACKET_BYTES) or _ends_within_a_packet(file, size)
    return False


def left_over(path: Path) -> int:
    """Bytes behind the samples of a WAV that are no chunk of it, and no zeros; 0 of other files.

    Its header was never brought up to date, or counts to 4 GiB only, or another file was put behind it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        end = _wav(file)[1] if head[:4] == b"RIFF" and head[8:] == b"WAVE" else 0
        for _ in range(MAX_CHUNKS if 0 < end < size else 0):
            end += end % 2
            file.seek(end)
            head = file.read(8)
            length = struct.unpack("<I", head[4:])[0] if len(head) == 8 else 0
            if size - end <= LITTLE_BYTES or not any(head + file.read(PADDING_BYTES)):
                return 0
            if (
                head[:4] == b"RIFF"
                or not head[:4].isascii()
                or not head[:4].decode().isprintable()
                or end + 8 + length > size
            ):
                return size - end
            end += 8 + length
    return 0


def _wav(file: IO[bytes]) -> tuple[float | None, int]:
    nothing = (None, 0)
    file.seek(12)
    bytes_per_second = 0
    for _ in range(MAX_CHUNKS):
        if len(head := file.read(8)) < 8:
            return nothing
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            known = bytes_per_second and 0 < size < STREAMED_BYTES
            return (size / bytes_per_second, file.tell() + size) if known else nothing
        start = file.tell()
        if name == b"fmt " and len(fields := file.read(12)) == 12:
            bytes_per_second = struct.unpack("<I", fields[8:])[0]
        file.seek(start + size + size % 2)
    return nothing


def _last_box(file: IO[bytes]) -> int:
    """The end of the last box of an MP4 (ISO/IEC 14496-12, section 4.2); 0 where one goes on to the end of the file."""
    end = 0
    for _ in range(MAX_CHUNKS):
        file.seek(end)
        head = file.read(16)
        is_large = head[:4] == b"\0\0\0\1"  # the size stands behind the name
        whole = 16 if is_large else 8
        if len(head) < whole:
            return end + whole if head else end
        size = struct.unpack(">Q", head[8:])[0] if is_large else struct.unpack(">I", head[:4])[0]
        if size < 8:
            return 0
        end += int(size)
        if end >= 1 << 62:  # no file, and no place to seek to
            return end
    return 0


def _asf(file: IO[bytes]) -> tuple[float | None, int]:
    """ASF specification, section 3.2: the size of the file, the time it plays, and the time it buffers before that."""
    file.seek(0)
    head = file.read(ASF_HEADER_BYTES)
    place = head.find(_ASF_PROPERTIES)
    fields = head[place + 40 : place + 88]  # behind the name of the object, its size, and the file's id
    if place < 0 or len(fields) < 48:
        return None, 0
    size, _, _, ticks, _, preroll = struct.unpack("<6Q", fields)
    seconds = round(ticks / 1e7 - preroll / 1e3, 3)
    return (seconds if seconds > 0 else None), size


def _mp3(file: IO[bytes], head: bytes) -> int:
    """The end of an MP3 by the Xing or Info header in its first frame, which a tag may precede; 0 without one."""
    start = 0
    if head[:3] == b"ID3":  # its size is four times seven bits (https://id3.org/id3v2.4.0-structure, section 3.1)
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    file.seek(start)
    frame = file.read(MP3_FRAME_BYTES)
    place = max(frame.find(b"Xing", 0, 44), frame.find(b"Info", 0, 44))
    fields = frame[place + 4 : place + 16]
    if place < 0 or len(fields) < 12 or not fields[3] & 2:
        return 0
    has_frames = fields[3] & 1  # their number comes before that of the bytes
    size = struct.unpack(">I", fields[8:] if has_frames else fields[4:8])[0]
    return start + int(size) - ID3V1_BYTES


def _ends_with_last_page(file: IO[bytes], size: int) -> bool:
    """Whether the last page of an Ogg is whole, and says that it is the last (RFC 3533, section 6)."""
    start = max(0, size - OGG_PAGE_BYTES)
    file.seek(start)
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < OGG_HEADER_BYTES:
        return False
    lengths = page[OGG_HEADER_BYTES : OGG_HEADER_BYTES + page[26]]
    whole = len(lengths) == page[26] and OGG_HEADER_BYTES + len(lengths) + sum(lengths) <= len(page)
    return whole and bool(page[5] & 4)


def _ends_within_a_packet(file: IO[bytes], size: int) -> bool:
    """Whether a packet of sound (PES, ISO/IEC 13818-1, section 2.4.3.6) misses bytes that it says it has."""
    missing: dict[int, int] = {}
    file.seek(max(0, size // TS_PACKET_BYTES - TS_TAIL_PACKETS) * TS_PACKET_BYTES)
    for stream, starts, payload in _ts_payloads(file.read()):
        if starts:
            missing.pop(stream, None)
            if payload[:3] == b"\0\0\1" and len(payload) >= 6 and (length := struct.unpack(">H", payload[4:6])[0]):
                missing[stream] = length + 6 - len(payload)
        elif stream in missing:
            missing[stream] -= len(payload)
    return any(left > 0 for left in missing.values())


def _ts_payloads(packets: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """The stream, whether a PES starts here, and the payload of each packet that has one."""
    for place in range(0, len(packets) - TS_PACKET_BYTES + 1, TS_PACKET_BYTES):
        packet = packets[place : place + TS_PACKET_BYTES]
        has_adaptation, has_payload = packet[3] & 0x20, packet[3] & 0x10
        if packet[0] == TS_SYNC and has_payload:
            start = 5 + packet[4] if has_adaptation else 4
            yield (packet[1] & 0x1F) << 8 | packet[2], bool(packet[1] & 0x40), packet[start:]
