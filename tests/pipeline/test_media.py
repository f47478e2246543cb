"""Reading with real ffmpeg: clean, damaged and hostile files, and what is left behind afterwards."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.dimensions import SAMPLE_RATE
from model.errors import UsageError
from pipeline import evidence, media
from pipeline.config import ReadOptions
from pipeline.endings import promise
from pipeline.evidence import Log
from pipeline.media import Decoding, MediaReport, find_ffmpeg, name_for
from tests.pipeline import reading

SECONDS = 5.0
ENCODED = ("mp3", "m4a", "flac", "ogg", "opus", "webm")


def tone(seconds: float, rate: int, channels: int) -> np.ndarray:
    """(n, channels) int16: tones under a little noise, another in each channel."""
    time_ = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(1).normal(0, 300, (len(time_), channels))
    tones = [8000 * np.sin(2 * np.pi * (220 + 110 * channel) * time_) for channel in range(channels)]
    return (np.stack(tones, axis=1) + noise).astype("<i2")


def write_wav(path: Path, pcm: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return path


def run_ffmpeg(*arguments: str | Path) -> bytes:
    done = subprocess.run([find_ffmpeg(), "-v", "error", "-nostdin", *arguments], capture_output=True, check=True)
    return done.stdout


def read(path: Path, options: ReadOptions | None = None) -> tuple[np.ndarray, MediaReport]:
    decoding = Decoding(path, options)
    chunks = list(decoding)
    return np.concatenate(chunks) if chunks else np.empty(0, np.int16), decoding.report


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same five seconds as 44.1 kHz stereo WAV, and in every compressed format."""
    folder = tmp_path_factory.mktemp("clips")
    found = {"wav": write_wav(folder / "clip.wav", tone(SECONDS, 44_100, 2), 44_100)}
    for suffix in ENCODED:
        found[suffix] = folder / f"clip.{suffix}"
        run_ffmpeg("-i", found["wav"], found[suffix])
    return found


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], int]]:
    """Puts a shell script in the place of ffmpeg; what it returns gives the script's process id."""

    def install(body: str) -> Callable[[], int]:
        script = tmp_path / "stand-in"
        script.write_text(f'#!/bin/sh\n: > "$0.$$"\n{body}\n')  # an empty file: all that its limits let it write
        script.chmod(0o755)
        monkeypatch.setenv("EARWITNESS_FFMPEG", str(script))
        monkeypatch.setenv("EARWITNESS_BWRAP", "")  # which would hide the file it writes
        return lambda: int(next(tmp_path.glob("stand-in.*")).suffix[1:])

    return install


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_clean_16_khz_wav_comes_out_bit_for_bit(tmp_path: Path) -> None:
    pcm = tone(SECONDS, SAMPLE_RATE, 1)
    samples, report = read(write_wav(tmp_path / "a.wav", pcm, SAMPLE_RATE))
    assert np.array_equal(samples, pcm[:, 0])
    assert report == MediaReport("ok", None, "wav", "pcm_s16le", 1, SAMPLE_RATE, SECONDS, SECONDS, 0)


@pytest.mark.parametrize("rate, channels", [(8_000, 1), (11_025, 1), (22_050, 2), (48_000, 2)])
def test_other_rates_give_the_samples_that_openai_whisper_gets(tmp_path: Path, rate: int, channels: int) -> None:
    path = write_wav(tmp_path / "a.wav", tone(SECONDS, rate, channels), rate)
    assert np.array_equal(read(path)[0], as_whisper_loads(path))


@pytest.mark.parametrize("suffix", ENCODED)
def test_compressed_formats_give_the_samples_that_openai_whisper_gets(clips: dict[str, Path], suffix: str) -> None:
    samples, report = read(clips[suffix])
    assert np.array_equal(samples, as_whisper_loads(clips[suffix]))
    assert (report.status, report.error, report.channels) == ("ok", None, 2)
    assert report.expected_seconds == pytest.approx(report.decoded_seconds, abs=0.02)


def as_whisper_loads(path: Path) -> np.ndarray:
    """The command of openai/whisper's `load_audio`, without our filters and limits."""
    pcm = run_ffmpeg("-i", path, "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", "16000", "-")
    return np.frombuffer(pcm, "<i2")


def test_the_header_is_reported(clips: dict[str, Path]) -> None:
    reports = {suffix: read(clips[suffix])[1] for suffix in ("wav", "m4a", "opus")}
    assert (reports["wav"].container, reports["wav"].codec, reports["wav"].sample_rate) == ("wav", "pcm_s16le", 44_100)
    assert (reports["m4a"].container, reports["m4a"].codec) == ("mov,mp4,m4a,3gp,3g2,mj2", "aac")
    assert (reports["opus"].container, reports["opus"].codec, reports["opus"].sample_rate) == ("ogg", "opus", 48_000)


def test_the_header_is_known_from_the_first_chunk_on(clips: dict[str, Path]) -> None:
    decoding = Decoding(clips["flac"])
    for _ in decoding:
        assert (decoding.report.codec, decoding.report.expected_seconds) == ("flac", SECONDS)
        break


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "opus", "webm"])
def test_half_a_file_is_truncated_and_half_is_read(clips: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    samples, report = read(cut(clips[suffix], tmp_path, 0.5))
    assert report.status == "truncated"
    assert report.error
    assert 0.35 * SECONDS < len(samples) / SAMPLE_RATE < 0.65 * SECONDS


def test_half_an_m4a_has_lost_its_index(clips: dict[str, Path], tmp_path: Path) -> None:
    samples, report = read(cut(clips["m4a"], tmp_path, 0.5))
    assert report.status == "no_audio" and "moov" in str(report.error)
    assert not len(samples)


def test_half_an_m4a_with_its_index_in_front_is_truncated(clips: dict[str, Path], tmp_path: Path) -> None:
    streamable = tmp_path / "front.m4a"
    run_ffmpeg("-i", clips["wav"], "-movflags", "+faststart", streamable)
    assert read(cut(streamable, tmp_path, 0.5))[1].status == "truncated"


def cut(path: Path, folder: Path, fraction: float) -> Path:
    half = folder / f"cut{path.suffix}"
    half.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    return half


def test_a_wav_that_misses_its_last_samples_is_truncated(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(clips["wav"].read_bytes()[:-400])  # 2 ms: far below what durations would show
    assert read(path)[1].status == "truncated"


def test_a_wav_from_a_pipe_promises_nothing_and_is_ok(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "streamed.wav"
    path.write_bytes(run_ffmpeg("-i", clips["wav"], "-f", "wav", "-"))
    assert promise(path) == (None, 0)
    assert read(path)[1].status == "ok"


def test_the_promise_of_a_wav_is_read_behind_other_chunks(clips: dict[str, Path], tmp_path: Path) -> None:
    plain = clips["wav"].read_bytes()
    padded = tmp_path / "padded.wav"
    padded.write_bytes(plain[:12] + b"JUNK" + struct.pack("<I", 5) + b"12345\0" + plain[12:])
    assert promise(clips["wav"]) == (SECONDS, len(plain))
    assert promise(padded) == (SECONDS, len(plain) + 14)


def test_damage_in_the_middle_is_reported_and_does_not_move_what_follows(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    data = bytearray(clips["flac"].read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path = tmp_path / "damaged.flac"
    path.write_bytes(data)
    samples, report = read(path)
    assert (report.status, report.decode_errors > 0) == ("damaged", True)
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


def test_a_video_that_outlasts_its_sound_is_not_truncated(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    picture = ("-f", "lavfi", "-i", f"color=s=32x32:r=5:d={2 * SECONDS}")
    run_ffmpeg(*picture, "-i", clips["wav"], "-c:v", "mpeg4", path)
    report = read(path)[1]
    assert report.expected_seconds == pytest.approx(2 * SECONDS, abs=0.3)
    assert report.decoded_seconds == pytest.approx(SECONDS, abs=0.1)
    assert report.status == "ok"


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (np.random.default_rng(2).bytes(50_000), "recognise"),
        (b"Minutes of the meeting: nobody came.\n" * 99, "recognise"),
    ],
    ids=["empty", "random", "text"],
)
def test_what_is_no_media_is_no_audio(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    samples, report = read(path)
    assert report.status == "no_audio" and reason in str(report.error)
    assert not len(samples)


def test_a_silent_film_and_an_empty_wav_are_no_audio(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "color=s=32x32:r=5:d=1", "-c:v", "mpeg4", film)
    assert (read(film)[1].status, read(film)[1].error) == ("no_audio", "It has no audio stream.")
    empty = write_wav(tmp_path / "empty.wav", np.empty((0, 1), "<i2"), SAMPLE_RATE)
    assert read(empty)[1].status == "no_audio"


def test_a_script_that_names_another_file_is_rejected_unread(clips: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "script.wav"
    script.write_text("ffconcat version 1.0\nfile canary.wav\n")
    canary = tmp_path / "canary.wav"
    canary.write_bytes(clips["wav"].read_bytes())
    assert run_ffmpeg("-i", script, "-f", "s16le", "-"), "plain ffmpeg is expected to follow the script"
    canary.unlink()
    os.mkfifo(canary)  # whoever opens this waits for a writer that never comes
    samples, report = read(script, ReadOptions(timeout_seconds=20))
    assert report.status == "rejected" and not len(samples)


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"]
)
def test_a_playlist_is_never_followed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.mp3"
    path.write_text(text + "#EXT-X-ENDLIST\n")
    assert read(path)[1].status in ("rejected", "no_audio")


def bomb(path: Path) -> Path:
    """10 kB of WAV that claim 5,000 seconds: one sample a second."""
    return write_wav(path, np.zeros((5000, 1), "<i2"), rate=1)


def test_a_file_that_is_too_thin_to_be_audio_is_rejected(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.wav")
    decoding = Decoding(path)
    sizes = [chunk.nbytes for chunk in decoding]
    bound = media.UNCHECKED_SECONDS + path.stat().st_size / media.MIN_BYTES_PER_SECOND
    assert decoding.report.status == "rejected"
    assert decoding.report.decoded_seconds == pytest.approx(bound, abs=1e-3)
    assert sum(sizes) == 2 * int(bound * SAMPLE_RATE)
    assert max(sizes) <= media.PIPE_BYTES


def test_a_file_beyond_max_hours_is_truncated_to_the_sample(clips: dict[str, Path]) -> None:
    samples, report = read(clips["wav"], ReadOptions(max_hours=2 / 3600))
    assert len(samples) == 2 * SAMPLE_RATE
    assert report.status == "truncated" and "max_hours" in str(report.error)


def test_a_file_of_exactly_max_hours_is_ok(clips: dict[str, Path]) -> None:
    assert read(clips["wav"], ReadOptions(max_hours=SECONDS / 3600))[1].status == "ok"


@pytest.mark.parametrize("name", ["a\nb.wav", "'\".wav", "%20#?.wav", "-i.wav", "concat:a.wav|b.wav", "🎙 ü.wav"])
def test_any_name_is_only_a_name(clips: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clips["wav"].read_bytes())
    samples, report = read(path)
    assert report.status == "ok"
    assert len(samples) == SECONDS * SAMPLE_RATE


def test_a_relative_path_is_read(clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.wav").write_bytes(clips["wav"].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read(Path("below/a.wav"))[1].status == "ok"


def test_an_ffmpeg_that_hangs_is_stopped_with_its_children(
    clips: dict[str, Path], stand_in: Callable[[str], Callable[[], int]]
) -> None:
    process = stand_in("sleep 600 & sleep 600")
    started = time.monotonic()
    report = read(clips["wav"], ReadOptions(timeout_seconds=0.5))[1]
    assert report.status == "timeout" and "0.5 seconds" in str(report.error)
    assert time.monotonic() - started < 10
    assert not members(process())


def members(group: int) -> list[str]:
    """The `comm` of every process of a group that has not ended; a zombie has, and waits to be collected."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:  # ended while we looked
            continue
        state, _, its_group = fields.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


def test_a_slow_consumer_is_no_timeout(clips: dict[str, Path]) -> None:
    decoding = Decoding(clips["wav"], ReadOptions(timeout_seconds=1.0))
    for _ in decoding:
        time.sleep(0.5)
    assert decoding.report.status == "ok"
    assert decoding.waited_seconds < 1.0


def test_leaving_early_ends_ffmpeg(clips: dict[str, Path], stand_in: Callable[[str], Callable[[], int]]) -> None:
    process = stand_in("while :; do echo 12345678; done")
    chunks = iter(Decoding(clips["wav"]))
    next(chunks)
    assert is_running(process())
    chunks.close()
    assert not is_running(process())


def test_ffmpeg_ends_when_its_reader_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "long.wav", tone(60, SAMPLE_RATE, 1), SAMPLE_RATE)
    script = tmp_path / "real"
    script.write_text(f'#!/bin/sh\necho "$$" >&2\nexec "{find_ffmpeg()}" "$@"\n')
    script.chmod(0o755)
    code = (
        "import pipeline.evidence, pipeline.media, pathlib, sys, time\n"
        "pipeline.evidence.Log.drain = lambda log, pipe: print(int(pipe.readline()), flush=True)\n"
        f"chunks = iter(pipeline.media.Decoding(pathlib.Path({str(path)!r})))\n"
        "next(chunks); time.sleep(600)\n"
    )
    stand_in = {"EARWITNESS_BWRAP": "", "EARWITNESS_FFMPEG": str(script)}
    environment = os.environ | stand_in | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None
        process = int(reader.stdout.readline())
        assert is_running(process)
        reader.kill()
    deadline = time.monotonic() + 10
    while is_running(process) and not is_zombie(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(process) or is_zombie(process)


def is_zombie(process: int) -> bool:
    """Ended, but not yet collected by whatever became its parent."""
    return "State:\tZ" in Path(f"/proc/{process}/status").read_text()


def test_a_crash_is_a_failure(clips: dict[str, Path], stand_in: Callable[[str], Callable[[], int]]) -> None:
    stand_in("kill -SEGV $$")
    report = read(clips["wav"])[1]
    assert report.status == "failed" and signal.SIGSEGV.name in str(report.error)


def test_samples_with_a_bad_exit_are_never_ok(
    clips: dict[str, Path], stand_in: Callable[[str], Callable[[], int]]
) -> None:
    stand_in("head -c 33 /dev/zero; exit 3")
    samples, report = read(clips["wav"])
    assert len(samples) == 16  # and half a sample, which is none
    assert report.status != "ok"


def test_an_ffmpeg_that_is_no_program_is_a_usage_error(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_FFMPEG", "/no/such/ffmpeg")
    with pytest.raises(UsageError, match="/no/such/ffmpeg"):
        read(clips["wav"])


# Lines of ffmpeg 5.1.9, as Debian 12 has it.
DEBIAN = """\
[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0c8] [warning] something else
[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:/tmp/x/media':
[info]   Metadata:
[info]     title           : Stream #0:0: Audio: fake, 1 Hz, mono
[info]   Duration: 01:02:03.50, start: 0.000000, bitrate: 130 kb/s
[info]   Stream #0:0[0x1](und): Audio: aac (LC) (mp4a / 0x6134706D), 44100 Hz, 5.1(side), fltp, 128 kb/s (default)
[info]   Stream #0:1[0x2]: Video: mjpeg (Baseline), yuvj420p(pc), 600x600, 90k tbr, 90k tbn (attached pic)
[info] Stream mapping:
[info]   Stream #0:0: Audio: pcm_s16le, 16000 Hz, mono, s16, 256 kb/s
[aac @ 0x55d0c9] [error] channel element 1.0 is not allocated
[aist#0:0/aac @ 0x55] [dec:aac @ 0x56] [warning] corrupt input packet in stream 0
[error] Error opening input file file:/tmp/x/media.
""".splitlines()


def test_a_log_is_understood() -> None:
    log = Log()
    for line in DEBIAN:
        log.feed(line)
    assert (log.container, log.codec, log.sample_rate, log.channels) == ("mov,mp4,m4a,3gp,3g2,mj2", "aac", 44_100, 6)
    assert log.expected_seconds == 3723.5
    assert log.only_audio  # a cover picture has no duration of its own
    assert log.errors == 3
    assert log.messages[-1] == "Error opening input file the file"


def test_a_guessed_duration_is_no_promise() -> None:
    log = Log()
    log.feed("[in#0/aac @ 0x55] [warning] Estimating duration from bitrate, this may be inaccurate")
    log.feed("[info]   Duration: 00:00:12.73, bitrate: 126 kb/s")
    assert log.expected_seconds is None


def test_a_flood_of_complaints_takes_bounded_memory() -> None:
    log = Log()
    for number in range(10_000):
        log.feed(f"[x @ 0x1] [error] {number} {'y' * 1000}")
    assert log.errors == 10_000
    assert len(log.messages) <= evidence.MAX_MESSAGES
    assert max(map(len, log.messages)) <= evidence.MESSAGE_CHARACTERS
    assert log.messages[-1].startswith("9999 ")


@pytest.mark.parametrize(
    "layout, channels",
    [
        ("mono", 1),
        ("stereo", 2),
        ("2.1", 3),
        ("5.1(side)", 6),
        ("7.1.4", 12),
        ("3 channels (FL+FR+LFE)", 3),
        ("odd", None),
    ],
)
def test_layouts_are_counted(layout: str, channels: int | None) -> None:
    log = Log()
    log.feed(f"[info]   Stream #0:0: Audio: flac, 8000 Hz, {layout}, s16")
    assert log.channels == channels


def test_the_channels_of_the_output_are_those_that_come_out() -> None:
    """A header may say something else than what is decoded; a stream's own place in the file counts."""
    log = Log(stream=1)
    for line in (
        "[info] Input #0, matroska,webm, from 'file:/x':",
        "[info]   Stream #0:0: Audio: aac (LC), 44100 Hz, mono, fltp",
        "[info]   Stream #0:1(fra): Audio: flac, 8000 Hz, stereo, s16",
        "[info]   Stream #0:2: Audio: opus, 48000 Hz, 5.1, fltp",
        "[info] Stream mapping:",
        "[info] Output #0, s16le, to 'pipe:1':",
    ):
        log.feed(line)
    assert (log.codec, log.sample_rate, log.channels, log.output_channels) == ("flac", 8000, 2, None)
    assert not log.output_read.is_set()
    log.feed("[info]   Stream #0:0: Audio: pcm_s16le, 16000 Hz, quad, s16, 1024 kb/s")
    assert (log.channels, log.output_channels, log.output_read.is_set()) == (2, 4, True)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://archive/a.G722", "media.g722"),
        ("file:///a/b.gsm", "media.gsm"),
        ("file:///a/b.mp3", "media"),
        ("file:///a.gsm/none", "media"),
        ("file:///x/-i .wav\n", "media"),
    ],
)
def test_only_a_codec_without_a_header_keeps_its_suffix(uri: str, name: str) -> None:
    assert name_for(uri) == name


def test_telephone_speech_without_a_header_is_read_by_its_suffix(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / name_for("a.g722")
    run_ffmpeg("-i", clips["wav"], "-ac", "1", "-ar", "16000", path)
    report = read(path)[1]
    assert (report.status, report.container, report.expected_seconds) == ("ok", "g722", None)
    assert report.decoded_seconds == pytest.approx(SECONDS, abs=0.01)
    assert read(path.rename(tmp_path / "media"))[1].status == "no_audio"


def test_the_command_allows_local_files_only() -> None:
    arguments = media.command(Path("/x/concat:a|b"), 60.0)
    allowed = dict(zip(arguments, arguments[1:], strict=False))
    assert allowed["-protocol_whitelist"] == "file"
    assert allowed["-i"] == "file:/x/concat:a|b"
    assert not {"concat", "hls", "dash", "image2"} & set(allowed["-format_whitelist"].split(","))


# --- what a file says through ffmpeg ------------------------------------------------------------------------------

FORGED = (
    "  Stream #0:0: Audio: evil, 99999999999 Hz, mono",
    "  Stream #0:0: Audio: evil, 8000 Hz, 99999999999 channels",
    "  Stream #0:0: Audio: evil, 8000 Hz, ..",
    "  Duration: 99999999999999999999:00:00.00, start: 0",
    "Stream mapping:",
    "Output #0, s16le, to",
)


@pytest.mark.parametrize("options", [ReadOptions(), ReadOptions(channels="split")], ids=["mix", "split"])
@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_a_tag_that_looks_like_a_header_harms_nobody(
    clips: dict[str, Path], tmp_path: Path, suffix: str, options: ReadOptions
) -> None:
    """ffmpeg prints the names of tags as they are, with their line breaks."""
    for number, line in enumerate(FORGED):
        path = tmp_path / f"{number}.{suffix}"
        tag = f"a\n[info] Output #0\n[info] {line}\n[info]   Stream #0:0: Audio: evil, 8000 Hz, 0 channels\n[info] q"
        run_ffmpeg("-i", clips[suffix], "-c", "copy", "-metadata", f"{tag}=x", path)
        (*_, last) = reading.read(reading.manifest(path), options)
        assert (last["status"] == "ok") == (options.channels == "mix"), (line, last)
        assert last["status"] in ("ok", "rejected") and (last["end"] > 4.9) == (last["status"] == "ok")


@given(
    st.lists(
        st.sampled_from(["[info] ", "[verbose] ", *FORGED, "Stream #0:0: Audio: a, ", "1 Hz, ", "9", ".", "(", "x"])
    )
)
def test_any_line_is_survived(pieces: list[str]) -> None:
    log = Log()
    log.feed("[info] " + "".join(pieces))
    assert (log.channels or 1) <= evidence.MOST_CHANNELS and (log.sample_rate or 0) < 1 << 31


# --- times that overlap, or leave gaps ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["flac", "webm"])
def test_what_lies_over_something_else_is_told(clips: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    """Two files joined by `cat`: the second begins at 0 again."""
    path = tmp_path / f"twice.{suffix}"
    path.write_bytes(clips[suffix].read_bytes() * 2)
    pcm, report = read(path)
    assert len(pcm) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    assert report.status == "damaged"
    assert report.error is not None and report.error.startswith("Its times overlap: 5.0")


def test_a_wav_that_is_longer_than_its_header_says_is_told(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "twice.wav"
    path.write_bytes(clips["wav"].read_bytes() * 2)
    pcm, report = read(path)
    assert (len(pcm) / SAMPLE_RATE, report.status) == (SECONDS, "damaged")
    rest = clips["wav"].stat().st_size
    assert report.error == f"{rest} bytes stand behind the end that its header names, and were not read."


def test_silence_that_stands_for_lost_packets_is_told(clips: dict[str, Path], tmp_path: Path) -> None:
    run_ffmpeg("-i", clips["flac"], "-c:a", "aac", tmp_path / "whole.ts")
    data = (tmp_path / "whole.ts").read_bytes()
    start, length = (len(data) * number // 10 // 188 * 188 for number in (4, 2))
    path = tmp_path / "gap.ts"
    path.write_bytes(data[:start] + data[start + length :])  # whole packets of MPEG-TS, of which nobody complains
    pcm, report = read(path)
    assert len(pcm) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    assert report.status == "damaged", report


def test_an_mp3_that_is_too_short_says_that_its_times_may_be_off(clips: dict[str, Path], tmp_path: Path) -> None:
    data = clips["mp3"].read_bytes()
    start, length = len(data) * 4 // 10, len(data) // 4
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data[:start] + bytes(length) + data[start + length :])
    _, report = read(path)
    assert report.status == "truncated"
    assert report.error is not None and report.error.endswith("mp3 holds no times: those behind the damage may be off.")


# --- too much of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [9, 17, 32])
def test_channels_that_nobody_can_mix_are_told(tmp_path: Path, channels: int) -> None:
    path = write_wav(tmp_path / "many.wav", tone(1.0, 16_000, channels), 16_000)
    _, report = read(path)
    assert report.status == "rejected"
    assert report.error == "Nobody knows how to mix its channels: up to 16 can be read by --channels split."
    _, report = read(path, ReadOptions(channels="split"))
    assert report.status == ("ok" if channels <= 16 else "rejected")


@pytest.mark.parametrize("suffix", ["mp4", "mka", "ts"])
def test_more_streams_than_are_looked_at_are_told(clips: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"many.{suffix}"
    run_ffmpeg("-i", clips["mp3"], *(["-map", "0:a"] * 65), "-c:a", "aac" if suffix == "ts" else "copy", path)
    _, report = read(path)
    assert (report.status, report.error) == ("rejected", "It has more than 64 streams.")
