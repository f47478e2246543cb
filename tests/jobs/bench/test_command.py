"""`earwitness bench` from end to end, with real weights and all three engines, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import command
from jobs.bench.contenders import OURS, Contender
from jobs.bench.prompts import LICENCE_FILE, default_folder
from jobs.samples import fetch_samples
from model.errors import ModelError
from pipeline.weights import locate
from tests.jobs.bench.scripted import MODULE

Call = Callable[..., Any]  # gives `Done` of tests/jobs/conftest.py


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two spoken English clips."""
    for name in ("hello_world", "quick_brown_fox"):
        for suffix in (".wav", ".txt"):
            (tmp_path / "en").mkdir(exist_ok=True)
            shutil.copy(fetch_samples() / "en" / f"{name}{suffix}", tmp_path / "en")
    return tmp_path


@pytest.mark.parity
@pytest.mark.timeout(300)  # four processes that load torch
def test_all_engines_hear_the_same(earwitness: Call, folder: Path) -> None:
    try:
        locate("tiny.en")
    except ModelError as error:
        pytest.skip(str(error))
    names = "ours,openai-greedy,faster-int8-b8"
    options = ["--model", "tiny.en", "--suite", "folder", "--rounds", "1", "--threads", "1", "--json"]
    done = earwitness("bench", str(folder), *options, "--contenders", names)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [c["name"] for c in told["contenders"]] == sorted(names.split(","), key=_place)
    for contender in told["contenders"]:
        assert contender["word_error_rate"] < 0.2 and contender["peak_bytes"] > 100e6, contender["name"]
    assert told["language"] is None and len(told["recordings"]) == 2


def _place(name: str) -> int:
    return [contender.name for contender in command.choose(("*",), 2)].index(name)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Two contenders without a model take part, whoever is asked for."""
    contenders = [Contender(OURS, MODULE), Contender("openai-greedy", MODULE, {"seconds": 0.3, "suffix": " again"})]
    monkeypatch.setattr(command, "choose", lambda names, files: contenders)
    return contenders


def test_a_table_goes_to_standard_output_and_progress_to_the_other(
    scripted: list[Contender], earwitness: Call, folder: Path, columns: Callable[[int], None]
) -> None:
    columns(80)
    done = earwitness("bench", str(folder), "--suite", "folder", "--rounds", "2", "--threads", "1")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("folder: 2 files,") and max(map(len, lines)) <= 80
    (ours,) = (line.split() for line in lines if line.startswith("ours "))
    (theirs,) = (line.split() for line in lines if line.startswith("openai-greedy "))
    assert (ours[3], ours[4]) == ("1.00", "0.00") and float(theirs[3]) > 1
    assert float(theirs[4]) == pytest.approx(100 * 2 / 11, abs=0.01)  # a word too many in each of two texts
    rounds = [line.split(" ×")[0].rsplit(" ", 1)[0] for line in done.err.splitlines() if "×" in line]
    assert rounds == [f"round {n} of 2: {c.name}" for n in (1, 2) for c in scripted]


def test_json_is_all_there_is_on_standard_output(scripted: list[Contender], earwitness: Call, folder: Path) -> None:
    options = ["--suite", "folder", "--rounds", "1", "--threads", "3", "--language", "en", "--slots", "5", "--json"]
    told = json.loads(earwitness("bench", str(folder), *options).out)
    assert told["setup"] == {
        "model": "base", "threads": 3, "precision": "auto", "slots": 5, "part_seconds": None,
    }  # fmt: skip
    assert told["language"] == "en" and told["contenders"][0]["runs"][0]["stages"]["threads"] == 3.0
    heard = told["recordings"][0]["heard"]
    assert heard["openai-greedy"] == heard[OURS] + " again" == told["recordings"][0]["text"] + " again"


def test_without_a_folder_the_prompts_of_the_cache_serve(
    scripted: list[Contender], earwitness: Call, cache: Path, say: Callable[..., Path]
) -> None:
    say(default_folder() / "en" / "hello.wav", "Hello there.")
    (default_folder() / LICENCE_FILE).write_text("as fetched")
    told = json.loads(earwitness("bench", "--suite", "folder", "--rounds", "1", "--json").out)
    assert [recording["name"] for recording in told["recordings"]] == ["en/hello"]


def test_a_profile_is_of_our_engine_alone(earwitness: Call, folder: Path) -> None:
    try:
        locate("tiny.en")
    except ModelError as error:
        pytest.skip(str(error))
    done = earwitness("bench", str(folder), "--profile", "--suite", "folder", "--model", "tiny.en", "--threads", "1")
    assert done.code == 0, done.err
    assert done.out.startswith("operator ") and "function calls" in done.out
    assert max(map(len, done.out.splitlines()[:20])) <= 80


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--suite", "short"], "The suite is 'short': choose one of long, hour, clips, folder."),
        (["--suite", "folder", "--contenders", "nobody"], "There is no contender 'nobody': choose from ours,"),
        (["--suite", "folder", "--rounds", "0"], "Invalid value for '--rounds'"),
    ],
)
def test_wrong_use_is_one_sentence(earwitness: Call, folder: Path, arguments: list[str], sentence: str) -> None:
    done = earwitness("bench", str(folder), *arguments)
    assert done.code == 2 and sentence in done.err and done.out == ""


def test_an_english_model_is_not_asked_for_french(earwitness: Call, folder: Path) -> None:
    (folder / "en").rename(folder / "fr")
    done = earwitness("bench", str(folder), "--suite", "folder", "--model", "tiny.en")
    assert done.code == 2 and "tiny.en knows English only, and the suite folder has other languages" in done.err


def test_missing_packages_are_named(earwitness: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NEEDED", ("no_such_package",))
    done = earwitness("bench", str(folder))
    assert done.code == 2 and "pip install 'earwitness[bench,demo,parity]'" in done.err


def test_a_model_that_faster_whisper_cannot_read(earwitness: Call, folder: Path) -> None:
    options = ["--suite", "folder", "--model", "small", "--contenders", "faster-int8"]
    done = earwitness("bench", str(folder), *options)
    assert done.code == 2
    assert "faster-whisper cannot read the weights of 'small': choose base or tiny.en" in done.err
