"""What can be told about a media file that was read: what ffmpeg said of it, and what its own header promised.

ffmpeg ends well on nearly every damaged file, so its word alone is not taken: a header's duration, and where a
container says that it ends, are compared with what came. It refuses to know how ffmpeg is run, and who asks.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.endings import ends_in_the_middle, left_over, promise

# A header's promise counts as broken when this much is missing. Encoders pad, so it is never exact.
SHORT_SECONDS = 0.5
SHORT_FRACTION = 0.01

LINE_BYTES = 4096
MAX_MESSAGES = 50
MESSAGE_CHARACTERS = 200
WITHOUT_TIMES = ("mp3", "aac", "amr", "gsm", "g722", "avi")  # containers that are packets one behind the other, no more
MOST_CHANNELS = 1024  # and rates below 2³¹: whatever says more is no header, but a tag that looks like one

# `[aist#0:0/flac @ 0x55] [dec:flac @ 0x56] [error] message`: any number of sources, the level, the message.
_LINE = re.compile(r"(?:\[[^\]]* @ 0x[0-9a-f]+\] )*\[(\w+)\] (.*)")
_INPUT = re.compile(r"Input #0, ([\w,]+), from ")
_DURATION = re.compile(r"  Duration: ([0-9]{2,7}):([0-9]{2}):([0-9]{2}\.[0-9]+)")
_AUDIO = re.compile(r"  Stream #0:\d+.*?: Audio: (\w+).*?, ([0-9]{1,9}) Hz, ([^,]+)")
_DECODED = re.compile(r"  Input stream #0:\d+ \(audio\): .* decode errors \(([0-9]{1,18}) samples\)")
_OTHER_STREAM = re.compile(r"  Stream #0:\d+.*?: (?:Audio|Video): (?!.*\(attached pic\))")
_CORRUPTION = re.compile(r"corrupt|truncated|size mismatch|do not match")
_PATH = re.compile(r"'?file:\S+")
_GUESSED_DURATION = "Estimating duration from bitrate"
_LAYOUTS = {"mono": 1, "stereo": 2, "downmix": 2, "binaural": 2, "quad": 4, "hexagonal": 6, "octagonal": 8, "cube": 8}
_LAYOUTS |= {"hexadecagonal": 16, "ambisonic 1": 4, "ambisonic 2": 9, "ambisonic 3": 16}

# What ffmpeg says when it does not begin, in the order of who is right when it says several things.
_TOO_MANY_STREAMS = "max_streams"
_REFUSALS = (
    (_TOO_MANY_STREAMS, "rejected", "It has more than 64 streams."),
    ("Format not on whitelist", "rejected", "It is not in a format that is read, or only names other files."),
    ("not on whitelist", "rejected", "It points to another file or address, which is never followed."),
    ("Cannot allocate memory", "rejected", "Reading it takes more memory than one file may use."),
    ("moov atom not found", "no_audio", "Its index (moov atom) is missing: it was cut, or never finished."),
    (
        "Rematrix is needed",
        "rejected",
        "Nobody knows how to mix its channels: up to 16 can be read by --channels split.",
    ),
    ("matches no streams", "no_audio", "It has no audio stream."),
    ("Invalid data found", "no_audio", "ffmpeg does not recognise it as audio or video."),
    ("received no packets", "no_audio", "Nothing of its audio can be decoded."),
    ("End of file", "no_audio", "It ends within its header."),
    ("Input/output error", "no_audio", "Its header is damaged."),  # so ffmpeg calls it; the disk was read before
    ("Operation not permitted", "no_audio", "Its header is damaged."),
)


def verdict(log: Log, path: Path, decoded: float, returncode: int) -> tuple[str, str | None]:
    """Status and reason for the file at `path`, of which `decoded` seconds came before ffmpeg ended by itself.

    Fills in the expected seconds where only the header knows them.
    """
    if decoded == 0 or log.said(_TOO_MANY_STREAMS):
        return log.why_nothing(returncode)
    promised_seconds, promised_end = promise(path)
    if log.expected_seconds is None:  # ffmpeg looked at what is there, not at what was promised
        log.expected_seconds = promised_seconds
    ends_early = promised_end > path.stat().st_size or ends_in_the_middle(path)
    status, error = _judge_audio(log, decoded, ends_early, returncode)
    if status == "ok" and (rest := left_over(path)):
        return "damaged", f"{rest} bytes stand behind the end that its header names, and were not read."
    return status, error


def _judge_audio(log: Log, decoded: float, ends_early: bool, returncode: int) -> tuple[str, str | None]:
    """The verdict on a file that gave samples; only a file without a single doubt is "ok"."""
    expected = log.expected_seconds
    missing = (expected or 0.0) - decoded
    is_short = missing > max(SHORT_SECONDS, SHORT_FRACTION * decoded)
    off = ""
    if log.errors and log.container in WITHOUT_TIMES:
        off = f" {log.container} holds no times: those behind the damage may be off."
    if is_short and (log.only_audio or log.errors):
        return "truncated", f"The header promises {expected:.2f} seconds, but {decoded:.2f} could be decoded.{off}"
    if ends_early:
        return "truncated", f"The file ends before its container says that it does.{off}"
    if log.errors or returncode:
        return "damaged", f"ffmpeg ended with {returncode}, {log.errors} complaints, at last: {log.messages[-1]}.{off}"
    too_many = (log.heard_seconds or decoded) - decoded
    if too_many > SHORT_SECONDS:
        return "damaged", f"Its times overlap: {too_many:.2f} seconds of {log.heard_seconds:.2f} were dropped."
    if -too_many > SHORT_SECONDS and log.only_audio:
        return "damaged", f"Its times have gaps: {-too_many:.2f} seconds of silence stand for what is missing."
    return "ok", None


@dataclass
class Log:
    """What ffmpeg wrote to its standard error: the header it found, and its complaints, in bounded memory.

    stream: the audio stream that is read, counted from 0; codec, channels and sample_rate are its own.
    """

    stream: int = 0
    container: str | None = None
    codec: str | None = None
    channels: int | None = None
    sample_rate: int | None = None
    expected_seconds: float | None = None
    errors: int = 0
    messages: list[str] = field(default_factory=lambda: ["none"])
    header_read: threading.Event = field(default_factory=threading.Event)
    heard_seconds: float | None = None  # that the decoder made, before they were laid along their times
    output_channels: int | None = None  # of the samples that ffmpeg writes
    output_read: threading.Event = field(default_factory=threading.Event)
    _streams: int = 0
    _audio_streams: int = 0
    _guessed: bool = False
    _in_output: bool = False

    @property
    def only_audio(self) -> bool:
        """Whether the duration of the container can only be that of the audio; a video may outlast its sound."""
        return self._streams <= 1

    def drain(self, pipe: IO[bytes]) -> None:
        """Read a pipe to its end, so that ffmpeg never waits for us."""
        for line in iter(lambda: pipe.readline(LINE_BYTES), b""):
            self.feed(line.decode("utf-8", "replace").rstrip("\n"))
        self.header_read.set()
        self.output_read.set()

    def feed(self, line: str) -> None:
        """Take in one line."""
        line_found = _LINE.match(line)
        if not line_found:
            return
        level, message = line_found.groups()
        if level in ("error", "fatal", "panic") or (level == "warning" and self._tells_of_damage(message)):
            self.complain(message)
        elif level == "warning" and _GUESSED_DURATION in message:
            self._guessed = True
        elif level == "info" and self._in_output:
            self._output(message)
        elif level == "info":
            self._header(message)
        elif level == "verbose" and self.sample_rate and (found := _DECODED.match(message)):
            self.heard_seconds = int(found[1]) / self.sample_rate

    def said(self, what: str) -> bool:
        """Whether one of the complaints that are kept has this in it."""
        return any(what in message for message in self.messages)

    def _tells_of_damage(self, message: str) -> bool:
        # Of PCM, ffmpeg says so when the last packet is only shorter than the others, as in a WAV from a pipe.
        return bool(_CORRUPTION.search(message)) and not (self.codec or "").startswith("pcm_")

    def complain(self, message: str) -> None:
        """Count one complaint, and keep it, or the last of many."""
        self.errors += 1
        message = _PATH.sub("the file", message)[:MESSAGE_CHARACTERS].rstrip(". ")
        self.messages = [*self.messages[: MAX_MESSAGES - 1], message]

    def _header(self, message: str) -> None:
        if message.startswith(("Stream mapping:", "Output #0")):
            self.header_read.set()
            self._in_output = message.startswith("Output")
        elif self.header_read.is_set():
            return
        elif found := _INPUT.match(message):
            self.container = found[1]
        elif (found := _DURATION.match(message)) and not self._guessed:
            self.expected_seconds = 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
        self._streams += bool(_OTHER_STREAM.match(message))
        if found := _AUDIO.match(message):
            if self._audio_streams == self.stream:
                self.codec, self.sample_rate, self.channels = found[1], int(found[2]), _channels(found[3])
            self._audio_streams += 1

    def _output(self, message: str) -> None:
        if not self.output_read.is_set() and (found := _AUDIO.match(message)):
            self.output_channels = _channels(found[3])
            self.output_read.set()

    def why_nothing(self, returncode: int) -> tuple[str, str]:
        """The verdict on a file without a single sample."""
        if self._audio_streams and self.stream >= self._audio_streams:
            return "no_audio", f"Its audio streams are 0 to {self._audio_streams - 1}: it has no stream {self.stream}."
        for said, status, sentence in _REFUSALS:
            if self.said(said):
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
    if found := re.fullmatch(r"([0-9]+) channels.*|[0-9]{1,2}(\.[0-9]{1,2})*", name):
        number = int(found[1]) if found[1] else sum(map(int, name.split(".")))
        return number if 1 <= number <= MOST_CHANNELS else None
    return None
