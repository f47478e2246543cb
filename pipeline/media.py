"""Reading one untrusted media file with ffmpeg: the only subprocess of the project.

    private_file() ──▶ a folder with one file ──▶ Decoding ──▶ int16 chunks, 16 kHz mono ──▶ Decoding.report

It refuses to know where the file came from, how its samples are cut, and what becomes of them.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE
from model.errors import UsageError
from pipeline.config import ReadOptions

PcmChunk = NDArray[np.int16]

# Everything people record in; playlists (concat, hls, dash) are left out, because they name other files.
CONTAINERS = (
    "wav,w64,mp3,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,flac,aac,mpegts,mpeg,asf,avi,aiff,caf,au,amr,gsm,g722,wv"
)
MAX_STREAMS = 64
MEMORY_BYTES = 1 << 30  # address space of ffmpeg; 400 MB is the least that it starts in
# The thinnest real audio, digital silence as 8 kHz FLAC, spends 26 bytes on a second; a WAV "of 1 Hz" turns 20 kB
# into 640 MB of samples. Whatever is thinner than this, beyond a first minute, is not audio.
MIN_BYTES_PER_SECOND = 8
UNCHECKED_SECONDS = 60.0
# A header's promise counts as broken when this much is missing. Encoders pad, so it is never exact.
SHORT_SECONDS = 0.5
SHORT_FRACTION = 0.01

BYTES_PER_SAMPLE = 2
PIPE_BYTES = 1 << 16
LINE_BYTES = 4096
MAX_CHUNKS = 1000  # of a WAV, before its samples
STREAMED_BYTES = 0x7FFF0000  # from here on, a WAV's size is what a writer to a pipe puts for "unknown"
MAX_MESSAGES = 50
MESSAGE_CHARACTERS = 200
GRACE_SECONDS = 5.0  # to end after the last sample, and to be gone once killed

# A shell sets the limits, then becomes ffmpeg: a `preexec_fn` would run Python between fork and exec, which can
# deadlock in a process with threads (a Ray worker), and forbids vfork. A limit that cannot be set is already stricter.
_WITH_LIMITS = """
ulimit -v {kibibytes}; ulimit -t {seconds}; ulimit -f 0; ulimit -c 0
exec "$@"
"""


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


@contextmanager
def private_file() -> Iterator[Path]:
    """A path for one file under a constant name, alone in a fresh folder; both are gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="earwitness-media-") as folder:
        yield Path(folder, "media")


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


def command(path: Path, seconds: float) -> list[str]:
    """The ffmpeg command that turns the first audio stream of `path` into 16 kHz mono s16le on its standard output.

    `aresample=async` keeps the clock over damage, where packets are missing, and changes nothing elsewhere.
    """
    bounds = dict(protocol_whitelist="file", format_whitelist=CONTAINERS, max_streams=MAX_STREAMS)
    # Without the prefix, a name like `concat:a|b` would be a protocol.
    source = ffmpeg.input(f"file:{path}", threads=1, **bounds)
    only = dict(map="0:a:0", vn=None, sn=None, dn=None, t=seconds)
    pcm = dict(af="aresample=async=1:first_pts=0", ac=1, ar=SAMPLE_RATE, format="s16le")
    samples = source.output("pipe:1", **only, **pcm)
    quiet = samples.global_args("-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info")
    return [str(argument) for argument in quiet.compile(cmd=find_ffmpeg())]


class Decoding:
    """One run of ffmpeg over one local file: iterate once over its samples, then read `report`.

    Chunks are (n,) int16 at 16 kHz, at most PIPE_BYTES each. Nothing that the file can do raises; it ends the chunks,
    and shows in the report. ffmpeg is gone when the iteration ends, however it ends.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        options = options or ReadOptions()
        self.waited_seconds = 0.0  # for ffmpeg; the timeout counts these, and not those of a slow consumer
        self._path = path.absolute()
        self._timeout = options.timeout_seconds
        self._allowed = 3600 * options.max_hours
        self._size = path.stat().st_size
        self._believed = UNCHECKED_SECONDS + self._size / MIN_BYTES_PER_SECOND
        self._most_samples = int(min(self._allowed, self._believed) * SAMPLE_RATE)
        self._log = Log()
        self._samples = 0
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
        process = _start(command(self._path, most_seconds), self._timeout, self._path.parent)
        reader = threading.Thread(target=self._log.drain, args=(process.stderr,), daemon=True)
        reader.start()
        stopped: tuple[str, str] | None = None
        try:
            yield from self._chunks(process)
            stopped = self._bound()
            if stopped is None:
                process.wait(GRACE_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            stopped = ("timeout", f"ffmpeg was stopped: it needs more than {self._timeout:g} seconds.")
        finally:
            _end(process, reader)
        self._verdict = stopped or self._judge(process.returncode)

    def _chunks(self, process: subprocess.Popen[bytes]) -> Iterator[PcmChunk]:
        """Samples until the end of the pipe or the bound; an odd byte waits for its other half."""
        assert process.stdout is not None
        half = b""
        while self._samples <= self._most_samples and (piece := self._read(process.stdout)):
            data = half + piece
            whole = len(data) - len(data) % BYTES_PER_SAMPLE
            half = data[whole:]
            chunk = np.frombuffer(data[:whole], "<i2")[: self._most_samples - self._samples]
            self._samples += whole // BYTES_PER_SAMPLE
            if len(chunk):
                yield chunk

    def _read(self, pipe: IO[bytes]) -> bytes:
        """The next bytes, empty at the end. Raises: `TimeoutError` when the time for the whole file is spent."""
        poll = select.poll()  # not select(): a worker may hold more than 1,024 files
        poll.register(pipe, select.POLLIN)
        started = time.monotonic()
        ready = poll.poll(1000 * max(0.0, self._timeout - self.waited_seconds))
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
        log = self._log
        if returncode < 0:
            name = signal.Signals(-returncode).name
            return "failed", f"ffmpeg was ended by {name}: it crashed, or met its limit on memory or time."
        if self._samples == 0:
            return log.why_nothing(returncode)
        promised_seconds, promised_end = wav_promise(self._path)
        if log.expected_seconds is None:  # ffmpeg looked at what is there, not at what was promised
            log.expected_seconds = promised_seconds
        ends_early = promised_end > self._size or lacks_last_ogg_page(self._path)
        return _judge_audio(log, self._samples / SAMPLE_RATE, ends_early, returncode)


def _judge_audio(log: Log, decoded: float, ends_early: bool, returncode: int) -> tuple[str, str | None]:
    """The verdict on a file that gave samples; only a file without a single doubt is "ok"."""
    expected = log.expected_seconds
    missing = (expected or 0.0) - decoded
    is_short = missing > max(SHORT_SECONDS, SHORT_FRACTION * decoded)
    if is_short and (log.only_audio or log.errors):
        return "truncated", f"The header promises {expected:.2f} seconds, but {decoded:.2f} could be decoded."
    if ends_early:
        return "truncated", "The file ends before its container says that it does."
    if log.errors or returncode:
        return "damaged", f"ffmpeg ended with {returncode}, {log.errors} complaints, at last: {log.messages[-1]}."
    return "ok", None


def _start(arguments: list[str], timeout: float, folder: Path) -> subprocess.Popen[bytes]:
    """ffmpeg in its own process group, in `folder`, without our environment: a decoder needs no credentials.

    When this process is killed, ffmpeg finds its pipe broken at the next write, and ends.
    """
    script = _WITH_LIMITS.format(kibibytes=MEMORY_BYTES // 1024, seconds=int(timeout) + 1)
    kept = ("PATH", "LD_LIBRARY_PATH")
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=-1,
        cwd=folder,
        env={name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"},
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE_SECONDS)
    reader.join(GRACE_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


# `[aist#0:0/flac @ 0x55] [dec:flac @ 0x56] [error] message`: any number of sources, the level, the message.
_LINE = re.compile(r"(?:\[[^\]]* @ 0x[0-9a-f]+\] )*\[(\w+)\] (.*)")
_INPUT = re.compile(r"Input #0, ([\w,]+), from ")
_DURATION = re.compile(r"  Duration: (\d+):(\d\d):(\d\d\.\d+)")
_AUDIO = re.compile(r"  Stream #0:\d+.*?: Audio: (\w+).*?, (\d+) Hz, ([^,]+)")
_OTHER_STREAM = re.compile(r"  Stream #0:\d+.*?: (?:Audio|Video): (?!.*\(attached pic\))")
_CORRUPTION = re.compile(r"corrupt|truncated|size mismatch|do not match")
_PATH = re.compile(r"'?file:\S+")
_GUESSED_DURATION = "Estimating duration from bitrate"
_LAYOUTS = {"mono": 1, "stereo": 2, "downmix": 2, "quad": 4}

# What ffmpeg says when it does not begin, in the order of who is right when it says several things.
_REFUSALS = (
    ("Format not on whitelist", "rejected", "It is not in a format that is read, or only names other files."),
    ("not on whitelist", "rejected", "It points to another file or address, which is never followed."),
    ("Cannot allocate memory", "rejected", "Reading it takes more memory than one file may use."),
    ("moov atom not found", "no_audio", "Its index (moov atom) is missing: it was cut, or never finished."),
    ("matches no streams", "no_audio", "It has no audio stream."),
    ("Invalid data found", "no_audio", "ffmpeg does not recognise it as audio or video."),
)


@dataclass
class Log:
    """What ffmpeg wrote to its standard error: the header it found, and its complaints, in bounded memory."""

    container: str | None = None
    codec: str | None = None
    channels: int | None = None
    sample_rate: int | None = None
    expected_seconds: float | None = None
    errors: int = 0
    messages: list[str] = field(default_factory=lambda: ["none"])
    header_read: threading.Event = field(default_factory=threading.Event)
    _streams: int = 0
    _guessed: bool = False

    @property
    def only_audio(self) -> bool:
        """Whether the duration of the container can only be that of the audio; a video may outlast its sound."""
        return self._streams <= 1

    def drain(self, pipe: IO[bytes]) -> None:
        """Read a pipe to its end, so that ffmpeg never waits for us."""
        for line in iter(lambda: pipe.readline(LINE_BYTES), b""):
            self.feed(line.decode("utf-8", "replace").rstrip("\n"))
        self.header_read.set()

    def feed(self, line: str) -> None:
        """Take in one line."""
        found = _LINE.match(line)
        if not found:
            return
        level, message = found.groups()
        if level in ("error", "fatal", "panic") or (level == "warning" and self._tells_of_damage(message)):
            self._complaint(message)
        elif level == "warning" and _GUESSED_DURATION in message:
            self._guessed = True
        elif level == "info" and not self.header_read.is_set():
            self._header(message)

    def _tells_of_damage(self, message: str) -> bool:
        # Of PCM, ffmpeg says so when the last packet is only shorter than the others, as in a WAV from a pipe.
        return bool(_CORRUPTION.search(message)) and not (self.codec or "").startswith("pcm_")

    def _complaint(self, message: str) -> None:
        self.errors += 1
        message = _PATH.sub("the file", message)[:MESSAGE_CHARACTERS].rstrip(". ")
        self.messages = [*self.messages[: MAX_MESSAGES - 1], message]

    def _header(self, message: str) -> None:
        if message.startswith(("Stream mapping:", "Output #0")):
            self.header_read.set()
        elif found := _INPUT.match(message):
            self.container = found[1]
        elif (found := _DURATION.match(message)) and not self._guessed:
            self.expected_seconds = 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
        self._streams += bool(_OTHER_STREAM.match(message))
        if self.codec is None and (found := _AUDIO.match(message)):
            self.codec, self.sample_rate, self.channels = found[1], int(found[2]), _channels(found[3])

    def why_nothing(self, returncode: int) -> tuple[str, str]:
        """The verdict on a file without a single sample."""
        for said, status, sentence in _REFUSALS:
            if any(said in message for message in self.messages):
                return status, sentence
        if returncode == 0:
            return "no_audio", "Its audio stream holds no samples."
        if self.codec is not None:
            return "no_audio", f"Nothing of its audio can be decoded; ffmpeg: {self.messages[-1]}."
        return "failed", f"ffmpeg ended with {returncode}: {self.messages[-1]}."


def _channels(layout: str) -> int | None:
    """Channels of a layout as ffmpeg writes it: `stereo`, `5.1(side)`, `3 channels (FL+FR+LFE)`."""
    name = layout.split("(")[0].strip()
    if name in _LAYOUTS:
        return _LAYOUTS[name]
    if found := re.match(r"(\d+) channels|([\d.]+)$", name):
        return int(found[1]) if found[1] else sum(int(digit) for digit in name.split("."))
    return None


def wav_promise(path: Path) -> tuple[float | None, int]:
    """Seconds, and the byte at which its samples end, as a RIFF WAV's header has it.

    (None, 0) for other files, and for a WAV that was streamed, and so never knew its size.
    """
    nothing = (None, 0)
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return nothing
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


def lacks_last_ogg_page(path: Path) -> bool:
    """Whether this is Ogg, and its last page does not say that it is the last (RFC 3533, section 6)."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, path.stat().st_size - PIPE_BYTES))  # a page is smaller than 64 KiB
        tail = file.read()
    flags = tail[tail.rfind(b"OggS") + 5 :][:1]
    return not (flags and flags[0] & 4)
