"""What a user can do wrong ends in one sentence and the documented exit code; what is right prints what it should."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from jobs import cli
from model.errors import INTERRUPTED, LeaseError
from pipeline import catalog
from pipeline.config import Config
from pipeline.store import Store

Call = Callable[..., Any]  # gives `Done` of conftest.py

COMMAND = [sys.executable, "-c", "from jobs.cli import main; main()"]
SOON = 10.0  # seconds from Ctrl-C to the prompt
PATIENCE = 100.0  # for Ray to start and a model to be heard from, on a busy machine
CONFIGURATIONS = {
    "broken.toml": b"model = \n",
    "binary.toml": b"\xff\xfe\x00",
    "misspelt.toml": b"[decode]\ntemprature = 0.2\n",
    "typed.toml": b"[decode]\ntemperatures = 'hot'\n",
    "flat.toml": b"decode = 3\n",
    "exact.toml": b"exact = true\n",
}


def assert_one_sentence(done: Any, code: int, said: str) -> None:
    assert done.code == code
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert re.fullmatch(r"earwitness: \S.*[^.]\.", line)
    assert not re.search(r"[.!?] [A-Z]", line), "more than one sentence"
    assert said in line


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder below, and when it was last changed."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# --- wrong use ----------------------------------------------------------------------------------------------------

NEW = "--to new --model tiny.en"
WRONG = [
    # the command line itself
    ("trancsribe archive --to new", 2, "No such command 'trancsribe', did you mean 'transcribe': see `earwitness"),
    ("models lst", 2, "did you mean 'list': see `earwitness models --help`"),
    ("--verbose status tables", 2, "No such option --verbose"),
    (f"transcribe archive {NEW} --frobnicate", 2, "No such option --frobnicate: see `earwitness transcribe --help`"),
    (f"transcribe archive {NEW} --langage en", 2, "No such option --langage (perhaps --language, "),
    ("transcribe archive", 2, "Missing option '--to'"),
    ("transcribe --to new", 2, "Missing argument 'SOURCE'"),
    ("transcribe archive --to", 2, "'--to' requires an argument"),
    ("status", 2, "Missing argument 'DEST': see `earwitness status --help`"),
    # options
    (f"transcribe archive {NEW} --language klingon", 2, "The language 'klingon' is not one of Whisper's 100"),
    (f"transcribe archive {NEW} --language fr", 2, "cannot do the language 'fr': leave it out, or choose a model"),
    (f"transcribe archive {NEW} --task translate", 2, "cannot do the task 'translate'"),
    (f"transcribe archive {NEW} --task sing", 2, "task is 'sing': choose one of transcribe, translate"),
    (f"transcribe archive {NEW} --part-seconds 4", 2, "part_seconds is 4: give 5 to 900 seconds, or inf"),
    (f"transcribe archive {NEW} --part-seconds 901", 2, "part_seconds is 901"),
    (f"transcribe archive {NEW} --channels both", 2, "channels is 'both': give mix or split."),
    (f"transcribe archive {NEW} --stream -1", 2, "stream is -1: give at least 0."),
    (f"transcribe archive {NEW} --part-seconds soon", 2, "'--part-seconds': Input should be a valid number: see"),
    (f"transcribe archive {NEW} --precision int4", 2, "precision is 'int4': choose one of auto, float32, bfloat16, "),
    (f"transcribe archive {NEW} --beam-size many", 2, "'--beam-size': Input should be a valid integer"),
    (f"transcribe archive {NEW} --patience 2", 2, "patience is 2, but there is no beam: give a beam_size above 1"),
    (f"transcribe archive {NEW} --length-penalty 1", 2, "length_penalty is 1, but there is one candidate"),
    (f"transcribe archive {NEW} --best-of 0", 2, "best_of is 0: give at least 1"),
    (f"transcribe archive {NEW} --suppress-tokens 1,x", 2, "--suppress-tokens is '1,x': give ids with commas"),
    (f"transcribe archive {NEW} --suppress-tokens -2", 2, "suppress_tokens holds -2"),
    (f"transcribe archive {NEW} --hallucination-silence 2", 2, "measured between words: set word_timestamps"),
    (f"transcribe archive {NEW} --language en --language-windows 3", 2, "say different things about the language"),
    (f"transcribe archive {NEW} --exact --hotwords Ada", 2, "hotwords is 'Ada', with which the output is not openai/"),
    (
        f"transcribe archive {NEW} --exact --precision bfloat16",
        2,
        "precision is 'bfloat16', with which the output is not",
    ),
    (f"transcribe archive {NEW} --config exact.toml --voice-activity", 2, "voice_activity is True, with which"),
    (f"transcribe archive {NEW} --config none.toml", 2, "none.toml cannot be read: No such file"),
    (f"transcribe archive {NEW} --config letters", 2, "letters cannot be read: Is a directory"),
    (f"transcribe archive {NEW} --config broken.toml", 2, "broken.toml is not TOML: Invalid value (at line 1"),
    (f"transcribe archive {NEW} --config binary.toml", 2, "binary.toml is not TOML"),
    (f"transcribe archive {NEW} --config misspelt.toml", 2, "[decode] temprature is not an option; allowed: "),
    (f"transcribe archive {NEW} --config typed.toml", 2, "[decode] temperatures is 'hot', which will not do: "),
    (f"transcribe archive {NEW} --config flat.toml", 2, "decode is a table: write [decode]"),
    # Ray
    (f"transcribe archive {NEW} --address 127.0.0.1:1", 2, "No Ray cluster answers at 127.0.0.1:1"),
    (f"transcribe archive {NEW} --address ray://127.0.0.1:1", 2, "No Ray cluster answers at ray://127.0.0.1:1"),
    (f"transcribe archive {NEW} --address http://127.0.0.1:1", 2, "not one of Ray's: give HOST:PORT, ray://HOST:PORT"),
    (f"transcribe archive {NEW} --address head", 2, "The address head is not one of Ray's"),
    (f"transcribe archive {NEW} --address head:99999", 2, "The address head:99999 is not one of Ray's"),
    # sources
    (f"transcribe nowhere {NEW}", 3, "nowhere does not exist: there is no such file, folder or bucket"),
    (f"transcribe archive nowhere {NEW}", 3, "nowhere does not exist"),
    (f"transcribe empty {NEW}", 3, "empty holds no audio: name files, or folders that hold .wav, .mp3"),
    (f"transcribe letters {NEW}", 3, "letters holds no audio"),
    (f"transcribe archive/*.mp3 {NEW}", 3, "archive/*.mp3 matches nothing"),
    (f"transcribe gopher://x/y {NEW}", 3, "gopher://x/y is not an address that can be listed"),
    (f"transcribe  {NEW}", 3, "A source is empty"),
    # destinations
    ("transcribe archive --to letters --model tiny.en", 4, "holds other files and no earwitness.json: choose a new or"),
    ("transcribe archive --to file --model tiny.en", 4, "The destination file cannot be used"),
    ("transcribe archive --to file/in --model tiny.en", 4, "The destination file/in cannot be used"),
    ("transcribe archive --to file/in --model tiny.en --dry-run", 4, "The destination file/in cannot be used"),
    ("transcribe archive --to gopher://x --model tiny.en", 4, "give a folder or s3://BUCKET/PREFIX"),
    ("transcribe archive --to s3:// --model tiny.en", 4, "give a folder or s3://BUCKET/PREFIX"),
    ("transcribe archive --to  --model tiny.en", 4, "The destination '' cannot hold tables"),
    ("status empty", 4, "empty holds no transcripts: run `earwitness transcribe SOURCE --to empty` first"),
    ("status nowhere", 4, "nowhere holds no transcripts"),
    ("status letters", 4, "letters holds other files"),
    # models
    ("transcribe archive --to new --model huge", 5, "There is no model 'huge': choose one of tiny, tiny.en, base,"),
    ("transcribe archive --to new --model bsae", 5, "There is no model 'bsae' (closest: base)"),
    ("transcribe archive --to new --model ./mine.pt", 5, "The model ./mine.pt does not exist"),
    ("transcribe archive --to new --model file", 5, "file is no checkpoint"),
    ("transcribe archive --to new --model letters", 5, "The model letters holds no config.json"),
    ("models pull bsae", 5, "There is no model 'bsae' (closest: base)"),
    # queries
    ("sql empty SELECT_1", 4, "empty holds no transcripts"),
    ("sql nowhere", 4, "nowhere holds no transcripts"),
    ("sql tables SELEC_1", 2, 'The query cannot be run: Parser Error: syntax error at or near "SELEC"'),
    ("sql tables SELECT_nothing_FROM_segments", 2, 'column "nothing" not found'),
    ("sql tables DELETE_FROM_segments", 2, "A query is one SELECT"),
    ("sql tables SELECT_1 --format xml", 2, "--format is 'xml': choose one of table, csv, json, parquet"),
]


@pytest.mark.parametrize(("line", "code", "said"), WRONG, ids=[line for line, _, _ in WRONG])
def test_wrong_use_is_one_sentence(
    earwitness: Call, place: Path, request: pytest.FixtureRequest, line: str, code: int, said: str
) -> None:
    """A blank between arguments, "_" for a blank within one, and two blanks for an empty one."""
    for name, text in CONFIGURATIONS.items():
        (place / name).write_bytes(text)
    if "tables" in line:
        request.getfixturevalue("store")
    request.getfixturevalue("monkeypatch").setattr("ray.is_initialized", lambda: False)  # by the tests before
    before = tree(place)
    assert_one_sentence(earwitness(*(part.replace("_", " ") for part in line.split(" "))), code, said)
    assert tree(place) == before


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An environment without any credentials, and file systems that have not seen another."""
    file_systems = fsspec.get_filesystem_class("s3")
    file_systems.clear_instance_cache()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield monkeypatch
    file_systems.clear_instance_cache()


S3_CALLS = [(f"transcribe s3://archive/calls {NEW}", 3), ("transcribe archive --to s3://out/x --model tiny.en", 4)]


@pytest.mark.parametrize(("line", "code"), S3_CALLS)
def test_s3_without_credentials(
    earwitness: Call, place: Path, nobody: pytest.MonkeyPatch, line: str, code: int
) -> None:
    done = earwitness(*line.split())
    assert_one_sentence(done, code, "Unable to locate credentials; check the AWS_* variables")


@pytest.mark.parametrize(("line", "code"), S3_CALLS)
def test_s3_where_nothing_answers(
    earwitness: Call, place: Path, nobody: pytest.MonkeyPatch, line: str, code: int
) -> None:
    nobody.setenv("AWS_ACCESS_KEY_ID", "K")
    nobody.setenv("AWS_SECRET_ACCESS_KEY", "S")
    nobody.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert_one_sentence(earwitness(*line.split()), code, "Could not connect")


@pytest.mark.parametrize(("locked", "code", "said"), [("archive", 3, "may not be read"), ("out", 4, "make the folder")])
def test_no_permission(place: Path, locked: str, code: int, said: str) -> None:
    """Root passes every door; a root that gave up the right to does not."""
    (place / "out").mkdir()
    (place / locked).chmod(0o500 if locked == "out" else 0o000)
    rights = ["-dac_override", "-dac_read_search"]
    as_anyone = ["setpriv", f"--bounding-set={','.join(rights)}"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_anyone, *COMMAND, "transcribe", "archive", "--to", "out", "--model", "tiny.en"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    (place / locked).chmod(0o700)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_bug_shows_its_traceback(earwitness: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.status.show_status", lambda dest, as_json: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        earwitness("status", "tables")


def test_every_exit_code_is_in_the_help(earwitness: Call) -> None:
    told = re.findall(r"^ {4}(\d+)  ", earwitness("--help").out, re.MULTILINE)
    codes = {code for _, code, _ in WRONG} | {LeaseError.exit_code}  # that one is in test_upkeep.py
    assert [int(code) for code in told] == [0, 1, *sorted(codes), INTERRUPTED]


def test_a_reader_that_has_had_enough_is_no_error(store: Store) -> None:
    rows = "SELECT a.text FROM segments a, segments b, segments c, segments d, segments e"
    command = [*COMMAND, "sql", store.objects.url, rows, "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == cli.PIPE_CLOSED


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "models", "--help", "-h", "transcribe --help", "sql -h", "models pull --help"])
def test_help_fits_and_starts_at_once(earwitness: Call, line: str) -> None:
    done = earwitness(*line.split())
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0].startswith("Usage: earwitness") and lines[-1].strip()
    assert max(map(len, lines)) <= 80
    assert "..." not in done.out.replace("}...", "").replace("[ARGS]...", ""), "a description is cut short"
    assert "<str>" not in done.out and "<bool>" not in done.out


def test_what_decides_a_text_is_told_under_headings(earwitness: Call) -> None:
    told = earwitness("transcribe", "--help").out
    groups = dict(re.findall(r"^(\w[\w ]*):\n((?:  .+\n?)+)", told, re.MULTILINE))
    assert list(groups) == ["Options", "Text", "Search", "Language", "Sound", "Silence and length"]
    assert {"--to DEST", "--exact", "--json", "-h, --help"} <= set(re.split(r"\n? {2,}", groups["Options"]))
    assert re.findall(r"--\S+", groups["Search"]) == ["--beam-size", "--patience", "--length-penalty", "--best-of"]
    assert "  --[no-]voice-activity  " in groups["Silence and length"]


def test_version(earwitness: Call) -> None:
    assert re.fullmatch(r"earwitness \d+\.\d+\.\d+\n", earwitness("--version").out)


def test_reading_commands_need_neither_torch_nor_ray(store: Store) -> None:
    """Each takes seconds to import."""
    program = """
import sys
from jobs.cli import main
for line in sys.argv[1:]:
    sys.argv = ["earwitness", *line.split(" ")]
    main()
sys.exit(f"imported: {slow}" if (slow := {"torch", "ray"} & set(sys.modules)) else 0)
"""
    lines = ["--help", "models list", f"status {store.objects.url}", f"sql {store.objects.url} FROM\tfiles"]
    done = subprocess.run([sys.executable, "-c", program, *lines], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- a dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(earwitness: Call, place: Path) -> None:
    before = tree(place)
    done = earwitness("transcribe", "archive", *NEW.split(), "--dry-run")
    assert done.code == 0
    assert done.out == "Dry run: nothing was transcribed or written.\n"
    assert re.fullmatch(
        r"tiny.en: 2 of 2 files to do, about \d+ s of audio, \d+ slots on [CG]PU, \d+ readers?\n", done.err
    )
    assert tree(place) == before


def test_a_dry_run_over_tables_writes_nothing(earwitness: Call, place: Path, store: Store) -> None:
    before = tree(place)
    done = earwitness("transcribe", "archive", "--to", "tables", "--model", "tiny.en", "--dry-run", "--json")
    (line,) = done.out.splitlines()
    summary = json.loads(line)
    assert (done.code, done.err) == (0, "")
    assert (summary["listed"], summary["pending"], summary["parts"], summary["speed"]) == (2, 2, 0, 0.0)
    assert tree(place) == before


def test_options_override_the_configuration(earwitness: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    monkeypatch.setattr("jobs.transcribe.execute", lambda request, watcher: requests.append(request))
    text = "model = 'base'\n[decode]\nlanguage = 'de'\nprevious_text = false\n[read]\nmax_hours = 2\n"
    (place / "run.toml").write_text(text)
    line = "transcribe archive more --to out --config run.toml --model tiny --language auto --part-seconds inf"
    earwitness(*line.split(), "--initial-prompt", "Kubernetes", "--address", "head:6379")
    earwitness("transcribe", "archive", "--to", "out", "--config", "run.toml", "--previous-text")
    first, second = requests
    assert (first.sources, first.to, first.address, first.dry_run) == (("archive", "more"), "out", "head:6379", False)
    assert (first.config.model, first.config.decode.language) == ("tiny", None)
    assert (first.config.read.part_seconds, first.config.read.max_hours) == (float("inf"), 2.0)
    assert (first.config.decode.initial_prompt, first.config.decode.previous_text) == ("Kubernetes", False)
    assert (second.config.model, second.config.decode.language) == ("base", "de")
    assert second.config.decode.previous_text is True


FLAGS = {
    "--precision bfloat16": ("run", {"precision": "bfloat16"}),
    "--hotwords Ada": ("decode", {"hotwords": "Ada"}),
    "--beam-size 5 --patience 2 --length-penalty 0.5": (
        "decode",
        {"beam_size": 5, "patience": 2.0, "length_penalty": 0.5},
    ),
    "--best-of 3": ("decode", {"best_of": 3}),
    "--channels split --stream 1": ("read", {"channels": "split", "stream": 1}),
    "--word-timestamps --hallucination-silence 2": (
        "decode",
        {"word_timestamps": True, "hallucination_silence": 2.0},
    ),
    "--language-windows 4": ("decode", {"language_windows": 4}),
    "--language-per-window": ("decode", {"language_per_window": True}),
    "--suppress-tokens 5,-1": ("decode", {"suppress_tokens": (5, -1)}),
    "--no-voice-activity": ("read", {"voice_activity": False}),
}


@pytest.mark.parametrize("line", FLAGS)
def test_each_flag_sets_its_option_and_no_other(
    earwitness: Call, place: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    requests = []
    monkeypatch.setattr("jobs.transcribe.execute", lambda request, watcher: requests.append(request))
    earwitness("transcribe", "archive", "--to", "out", *line.split())
    section, changes = FLAGS[line]
    usual = Config()
    assert requests[0].config == replace(usual, **{section: replace(getattr(usual, section), **changes)})


def test_exact_starts_from_the_references_options(
    earwitness: Call, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    monkeypatch.setattr("jobs.transcribe.execute", lambda request, watcher: requests.append(request))
    (place / "exact.toml").write_text("exact = true")
    line = ["transcribe", "archive", "--to", "out", "--beam-size", "5"]
    earwitness(*line, "--exact")
    earwitness(*line, "--config", "exact.toml")
    assert [request.config for request in requests] == [Config.exact(beam_size=5)] * 2


# --- a run --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_an_interrupted_run_ends_at_once_and_the_next_one_completes(place: Path) -> None:
    command = [*COMMAND, "transcribe", "archive", "--to", "out", "--model", "tiny.en"]
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), "EARWITNESS_BWRAP": ""}
    environment.pop("COLUMNS", None)

    terminal = Terminal(command, environment)
    terminal.read_until(b"starting")
    pressed = time.monotonic()
    os.killpg(terminal.pid, signal.SIGINT)
    assert terminal.wait() == INTERRUPTED
    assert time.monotonic() - pressed < SOON
    lines = terminal.lines()
    assert lines[0].startswith("tiny.en: 2 of 2 files to do, about ")
    assert lines[-1].startswith("earwitness: Interrupted: what was stored stays")
    assert lines[1].startswith("Without bubblewrap, ")
    frames = lines[2:-1]
    for frame in frames:
        assert re.fullmatch(r"━+ (starting|\d+ s of \d+ s · [\d.]+ × real time · 0 failed.*)", frame), lines
    assert max(map(len, lines[1:-1])) <= Terminal.COLUMNS

    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    files = catalog.query(Store.open("out"), "SELECT complete, status FROM files").to_pylist()
    assert files == [{"complete": True, "status": "ok"}] * 2
    assert summary["listed"] == 2 and summary["failed_parts"] == 0
    assert sum(pq.read_metadata(path).num_rows for path in place.glob("out/parts/data/*/*.parquet")) == 2


class Terminal:
    """A command on a terminal of 80 columns, in a session of its own."""

    COLUMNS = 80

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._handle, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self.COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            command, env=environment, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        self.pid = self._process.pid
        self._seen = b""

    def read_until(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self._seen:
            assert time.monotonic() < deadline, self._seen.decode()
            self._seen += os.read(self._handle, 65536)

    def wait(self) -> int:
        try:
            while more := os.read(self._handle, 65536):
                self._seen += more
        except OSError:  # how Linux says that nobody writes any more
            pass
        os.close(self._handle)
        return self._process.wait(PATIENCE)

    def lines(self) -> list[str]:
        """What was on the lines, one after the other, without the steering in between."""
        uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", self._seen.decode())
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", uncoloured)
        return [line.strip() for line in text.splitlines() if line.strip()]
