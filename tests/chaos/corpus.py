"""Damaged and hostile files, made by ffmpeg and fixed seeds, and canaries that tell whether anybody followed them."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jobs.samples import fetch_samples
from model.dimensions import SAMPLE_RATE
from pipeline import parts
from pipeline.media import find_ffmpeg
from pipeline.sandbox import private_file

# Ten containers, and how ffmpeg writes them from a WAV. `m4a` has its index in front, as one made to be streamed.
CONTAINERS: dict[str, tuple[str, ...]] = {
    "wav": (),
    "mp3": (),
    "m4a": ("-movflags", "+faststart"),
    "flac": (),
    "ogg": ("-c:a", "libvorbis"),
    "opus": (),
    "webm": (),
    "ts": ("-c:a", "aac"),
    "wma": (),
    "g722": ("-ac", "1", "-ar", "16000"),
}
MANY_STREAMS = {"m4a": "mp4", "ts": "mpegts", "webm": "matroska", "wma": "asf", "opus": "ogg"}  # these can hold 64
BITEXACT = ("-fflags", "+bitexact", "-flags:a", "+bitexact")
SCRIPTS = ("ffconcat", "ffconcat-beside", "hls", "dash", "dash-beside", "dash-http", "sdp")
FOLLOWED = ("ffconcat-beside", "dash", "dash-beside")
IN_OPEN = 0x20  # <sys/inotify.h>


def ffmpeg(*arguments: str | Path) -> bytes:
    done = subprocess.run([find_ffmpeg(), "-y", "-nostdin", "-v", "error", *arguments], capture_output=True, check=True)
    return done.stdout


def speech() -> np.ndarray:
    """(n,) int16 at 16 kHz: seven seconds of English, three clips one behind the other."""
    as_pcm = ("-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "-")
    clips = sorted((fetch_samples() / "en").glob("*.wav"))
    return np.concatenate([np.frombuffer(ffmpeg("-i", clip, *as_pcm), "<i2") for clip in clips])


def as_wav(pcm: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """(n,) or (n, channels) int16."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1 if pcm.ndim == 1 else pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return content.getvalue()


def write_wav(path: Path, pcm: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    path.write_bytes(as_wav(pcm, rate))
    return path


def encode(pcm: np.ndarray, folder: Path, name: str) -> dict[str, Path]:
    """The same samples in every container: `folder/name.CONTAINER`."""
    source = write_wav(folder / f"{name}.source", pcm)
    made = {suffix: folder / f"{name}.{suffix}" for suffix in CONTAINERS}
    for suffix, options in CONTAINERS.items():
        ffmpeg("-i", source, *options, *BITEXACT, made[suffix])
    source.unlink()
    return made


# --- damage -------------------------------------------------------------------------------------------------------


def cut(data: bytes, fraction: float = 0.5) -> bytes:
    return data[: int(len(data) * fraction)]


def corrupted(data: bytes, seed: int = 5) -> bytes:
    """Random bytes in the place of 5 % of them, somewhat before the middle."""
    start, length = int(len(data) * 0.4), len(data) // 20
    return data[:start] + np.random.default_rng(seed).bytes(length) + data[start + length :]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four of: bytes changed, a block zeroed, moved, doubled or lost, the end lost, a number made extreme."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        _MUTATIONS[random.integers(len(_MUTATIONS))](changed, random)
    return bytes(changed)


def _block(data: bytearray, random: np.random.Generator) -> slice:
    start = int(random.integers(len(data) + 1))
    return slice(start, start + int(random.integers(1, max(2, len(data) // 8))))


def _flip(data: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, max(1, len(data)), random.integers(1, 50)):
        data[place : place + 1] = random.bytes(1)


def _flip_header(data: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, max(1, min(200, len(data))), random.integers(1, 8)):
        data[place : place + 1] = random.bytes(1)


def _zero(data: bytearray, random: np.random.Generator) -> None:
    block = _block(data, random)
    data[block] = bytes(len(data[block]))


def _move(data: bytearray, random: np.random.Generator) -> None:
    block = _block(data, random)
    moved = data[block]
    del data[block]
    place = int(random.integers(len(data) + 1))
    data[place:place] = moved


def _double(data: bytearray, random: np.random.Generator) -> None:
    block = _block(data, random)
    data[block.stop : block.stop] = data[block]


def _lose(data: bytearray, random: np.random.Generator) -> None:
    del data[_block(data, random)]


def _lose_end(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(len(data) + 1)) :]


def _extreme(data: bytearray, random: np.random.Generator) -> None:
    place = int(random.integers(max(1, min(500, len(data)))))
    data[place : place + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"][random.integers(4)]


_MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _flip_header,
    _zero,
    _move,
    _double,
    _lose,
    _lose_end,
    _extreme,
)


# --- hostile ------------------------------------------------------------------------------------------------------


def bombs(folder: Path) -> list[Path]:
    """Some kilobytes that claim to be hours, at one sample a second: a WAV and an AU."""
    wav = write_wav(folder / "bomb.wav", np.zeros(5000, np.int16), rate=1)
    au = folder / "bomb.au"
    au.write_bytes(struct.pack(">4s5I", b".snd", 24, 10_000, 3, 1, 1) + bytes(10_000))
    return [wav, au]


def scripts(folder: Path, canary: Path, address: str) -> list[Path]:
    """Text that names other files, in four formats that ffmpeg follows, under the suffix of every container.

    Plain ffmpeg follows FOLLOWED as a reader gives them to it: called "media", with the canary beside it, an .m4a for
    DASH. It asks for dash-http where HTTP is allowed. Of the rest, an absolute path in ffconcat is unsafe to it, HLS
    needs its suffix, and SDP needs RTP: other versions may be less strict.
    """
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile '{canary}'\nfile file:{canary}\nfile {address}/concat.wav\n",
        # The comment takes most of what a mutation does.
        "ffconcat-beside": f"ffconcat version 1.0\nfile {canary.name}\n#{1000 * '.'}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{canary}\n#EXTINF:9,\n{address}/a.ts\n"
        "#EXT-X-ENDLIST\n",
        "dash": _dash(f"file://{canary}"),
        "dash-beside": _dash(canary.name),
        "dash-http": _dash(f"{address}/dash.m4a"),
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\n"
        f"m=audio {address.rpartition(':')[2]} RTP/AVP 0\n",
    }
    made = []
    for name, text in texts.items():
        for suffix in CONTAINERS:
            made.append(folder / f"{name}.{suffix}")
            made[-1].write_text(text)
    return made


def _dash(url: str) -> str:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT7S"><Period>'
        '<AdaptationSet mimeType="audio/mp4"><Representation id="0" mimeType="audio/mp4" bandwidth="1">'
        f"<BaseURL>{url}</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>\n"
    )


def many_streams(clips: dict[str, Path], folder: Path, streams: int = 64) -> list[Path]:
    """Files of 64 audio streams, which are all the same."""
    made = []
    for suffix, muxer in MANY_STREAMS.items():
        made.append(folder / f"streams{streams}.{suffix}")
        ffmpeg("-i", clips[suffix], *["-map", "0:a"] * streams, "-c", "copy", "-f", muxer, made[-1])
    return made


# --- canaries -----------------------------------------------------------------------------------------------------


class Watched:
    """A file that tells whether anybody opened it, by inotify."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(path), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def was_opened(self) -> bool:
        """Whether anybody did since the last time this was asked."""
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def exposed(canary: Path) -> Iterator[None]:
    """Readers without a jail, with the canary beside every file they read: only ffmpeg's own bounds keep it from it."""

    @contextmanager
    def beside_canary(name: str) -> Iterator[Path]:
        with private_file(name) as path:
            path.with_name(canary.name).symlink_to(canary)
            yield path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EARWITNESS_BWRAP", "")
        patch.setattr(parts, "private_file", beside_canary)
        yield


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """The address of an HTTP server on this machine, and what it was asked for; it has nothing to give."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
