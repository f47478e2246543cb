"""Reading one untrusted media file with ffmpeg: the only place where a foreign program touches an archive.

    private_file() ──▶ a folder with one file ──▶ Decoding ──▶ int16 chunks, 16 kHz mono ──▶ Decoding.report

It refuses to know where the file came from, how its samples are cut, and what becomes of them.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE
from model.errors import MediaError, UsageError
from pipeline import sandbox
from pipeline.config import SPLIT, ReadOptions
from pipeline.evidence import Log, verdict

PcmChunk = NDArray[np.int16]

# Everything people record in; playlists (concat, hls, dash) are left out, because they name other files.
CONTAINERS = (
    "wav,w64,mp3,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,flac,aac,mpegts,mpeg,asf,avi,aiff,caf,au,amr,gsm,g722,wv"
)
# Codecs without a header: nothing but the suffix tells ffmpeg what they are.
BARE_SUFFIXES = (".g722", ".gsm")
MAX_STREAMS = 64
# The thinnest real audio, digital silence as 8 kHz FLAC, spends 26 bytes on a second; a WAV "of 1 Hz" turns 20 kB
# into 640 MB of samples. Whatever is thinner than this, beyond a first minute, is not audio.
MIN_BYTES_PER_SECOND = 8
UNCHECKED_SECONDS = 60.0

NO_GAP_CLOSED = ("-dts_delta_threshold", "1000000")  # seconds

MAX_SPLIT_CHANNELS = 16  # each has a part in memory, at 29 MB for 15 minutes

BYTES_PER_SAMPLE = 2
PIPE_BYTES = 1 << 16
GRACE_SECONDS = 5.0  # to end after the last sample


@dataclass(frozen=True)
class MediaReport:
    """What reading one file came to. `status` is one of `records.STATUSES`; `error` one sentence, or None."""

    status: str
    error: str | None
    container: str | None = None
    codec: str | None = None
    channels: int | None = None
    sample_rate: int | None = None
    expected_seconds: float | None = None  # what the header promised; None when it promises nothing
    decoded_seconds: float = 0.0
    decode_errors: int = 0  # lines in which ffmpeg complained


def find_ffmpeg() -> str:
    """Path of the binary: $EARWITNESS_FFMPEG, else what `imageio-ffmpeg` finds: its own, or the one on PATH.

    Raises: `UsageError` when there is none.
    """
    chosen = os.environ.get("EARWITNESS_FFMPEG")
    if chosen:
        program = shutil.which(chosen)
        if program is None:
            raise UsageError(f"EARWITNESS_FFMPEG is {chosen!r}, which is no program: give the path of ffmpeg.")
        return os.path.abspath(program)
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UsageError("There is no ffmpeg: install it, or set EARWITNESS_FFMPEG to its path.") from error


def name_for(uri: str) -> str:
    """What the copy of an object is called: always the same, but for the suffix that some formats are known by."""
    suffix = PurePosixPath(uri).suffix.lower()
    return f"media{suffix}" if suffix in BARE_SUFFIXES else "media"


def command(path: Path, seconds: float, stream: int = 0, every_channel: bool = False) -> list[str]:
    """The ffmpeg command that turns an audio stream of `path` into 16 kHz s16le on its standard output.

    stream: counted from 0. every_channel: one sample of each in turn; else they are mixed as openai/whisper does.
    `aresample=async` keeps the clock over damage, where packets are missing, and drops what goes back in time. A gap of
    any length is one: without the threshold, ffmpeg closes those above 10 s in Ogg, MPEG-TS and MPEG-PS.
    """
    bounds = dict(protocol_whitelist="file", format_whitelist=CONTAINERS, max_streams=MAX_STREAMS)
    # Without the prefix, a name like `concat:a|b` would be a protocol.
    source = ffmpeg.input(f"file:{path}", threads=1, **bounds)
    only = dict(map=f"0:a:{stream}", vn=None, sn=None, dn=None, t=seconds)
    pcm = dict(af="aresample=async=1:first_pts=0", ar=SAMPLE_RATE, format="s16le")
    samples = source.output("pipe:1", **only, **pcm, **({} if every_channel else {"ac": 1}))
    quiet = samples.global_args("-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+verbose", *NO_GAP_CLOSED)
    return [str(argument) for argument in quiet.compile(cmd=find_ffmpeg())]


class Decoding:
    """One run of ffmpeg over one local file: iterate once over its samples, then read `report`.

    Chunks are int16 at 16 kHz, at most PIPE_BYTES each: (n,) of the mix, or (n, channels) where every channel is
    wanted, by the options or by the caller. damage: a complaint about the file that is known already. Nothing that the
    file can do raises; it ends the chunks, and shows in the report. ffmpeg is gone when the iteration ends, however it
    ends.
    """

    def __init__(
        self, path: Path, options: ReadOptions | None = None, every_channel: bool = False, damage: str | None = None
    ) -> None:
        self.path = path.absolute()
        self.options = options or ReadOptions()
        self.waited_seconds = 0.0  # for ffmpeg; the timeout counts these, and not those of a slow consumer
        self._every_channel = every_channel or self.options.channels == SPLIT
        self._allowed = 3600 * self.options.max_hours
        self._size = path.stat().st_size
        self._believed = UNCHECKED_SECONDS + self._size / MIN_BYTES_PER_SECOND
        self._most_samples = int(min(self._allowed, self._believed) * SAMPLE_RATE)
        self._log = Log(self.options.stream or 0)
        if damage is not None:
            self._log.complain(damage)
        self._samples = 0  # of each channel
        self._verdict: tuple[str, str | None] = ("ok", None)

    @property
    def report(self) -> MediaReport:
        """The evidence so far: the header from the first chunk on, the verdict when the iteration has ended."""
        log = self._log
        if self._samples:
            log.header_read.wait(GRACE_SECONDS)  # ffmpeg wrote it before the first sample; the other thread reads it
        seconds = (log.expected_seconds, self._samples / SAMPLE_RATE)
        return MediaReport(
            *self._verdict, log.container, log.codec, log.channels, log.sample_rate, *seconds, log.errors
        )

    def __iter__(self) -> Generator[PcmChunk, None, None]:
        if self._size == 0:
            self._verdict = ("no_audio", "The file is empty.")
            return
        most_seconds = self._most_samples / SAMPLE_RATE + 1  # a second more shows that the file goes on
        arguments = command(self.path, most_seconds, self.options.stream or 0, self._every_channel)
        process = sandbox.start(arguments, self.path, self.options.timeout_seconds)
        reader = threading.Thread(target=self._log.drain, args=(process.stderr,), daemon=True)
        reader.start()
        stopped: tuple[str, str] | None = None
        try:
            yield from self._chunks(process)
            stopped = self._bound()
            if stopped is None:
                process.wait(GRACE_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            stopped = ("timeout", f"ffmpeg was stopped: it needs more than {self.options.timeout_seconds:g} seconds.")
        except MediaError as error:
            stopped = (error.status, str(error))
        finally:
            _end(process, reader)
        self._verdict = stopped or self._judge(process.returncode)

    def _chunks(self, process: subprocess.Popen[bytes]) -> Iterator[PcmChunk]:
        """Samples until the end of the pipe or the bound; an odd byte waits for its other half."""
        assert process.stdout is not None
        rest = b""
        while self._samples <= self._most_samples and (piece := self._read(process.stdout)):
            channels = self._channels()
            data = rest + piece
            whole = len(data) - len(data) % (channels * BYTES_PER_SAMPLE)
            rest = data[whole:]
            samples = np.frombuffer(data[:whole], "<i2")
            chunk = samples.reshape(-1, channels) if self._every_channel else samples
            left = self._most_samples - self._samples
            self._samples += len(chunk)
            if len(chunk[:left]):
                yield chunk[:left]

    def _channels(self) -> int:
        """Channels in the pipe. Raises: `MediaError` when they are too many to be split, or of an unknown number."""
        if not self._every_channel:
            return 1
        self._log.output_read.wait(GRACE_SECONDS)  # ffmpeg wrote it before the first sample, like the header
        channels = self._log.output_channels
        if channels is None or channels > MAX_SPLIT_CHANNELS:
            has = "an unknown number of channels" if channels is None else f"{channels} channels"
            raise MediaError("rejected", f"It has {has}, of which up to {MAX_SPLIT_CHANNELS} can be split: mix them.")
        return channels

    def _read(self, pipe: IO[bytes]) -> bytes:
        """The next bytes, empty at the end. Raises: `TimeoutError` when the time for the whole file is spent."""
        poll = select.poll()  # not select(): a worker may hold more than 1,024 files
        poll.register(pipe, select.POLLIN)
        started = time.monotonic()
        ready = poll.poll(1000 * max(0.0, self.options.timeout_seconds - self.waited_seconds))
        self.waited_seconds += time.monotonic() - started
        if not ready:
            raise TimeoutError
        return os.read(pipe.fileno(), PIPE_BYTES)

    def _bound(self) -> tuple[str, str] | None:
        """The verdict on a file that goes on beyond what is read of it; None when it ended before."""
        if self._samples <= self._most_samples:
            return None
        self._samples = self._most_samples
        if self._allowed <= self._believed:
            return "truncated", f"Only the first {self._allowed / 3600:g} hours were read, as max_hours allows."
        return "rejected", f"{self._size} bytes claim to hold more than {self._believed:.0f} seconds of audio."

    def _judge(self, returncode: int) -> tuple[str, str | None]:
        if name := sandbox.ended_by(returncode):
            return "failed", f"ffmpeg was ended by {name}: it crashed, or met its limit on memory or time."
        return verdict(self._log, self.path, self._samples / SAMPLE_RATE, returncode)


def _end(process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    sandbox.end(process)
    reader.join(GRACE_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
