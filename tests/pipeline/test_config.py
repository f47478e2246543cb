"""One Config from a file or from code: every name checked, every value of its type, and what makes a new generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import UsageError
from model.options import DecodeOptions
from pipeline.config import MAX_PART_SECONDS, MIN_PART_SECONDS, Config, ReadOptions, RunOptions, from_toml

SHA256 = "1a5afae06a4db91c" * 4

Write = Callable[[str], Path]

EVERYTHING = """
model = "tiny.en"

[decode]
language = "English"
temperatures = [0, 0.5]
previous_text = false
initial_prompt = "Ümlaut, GmbH"
suppress_tokens = []
avg_logprob_threshold = -0.8
seed = 7

[read]
part_seconds = 120
max_hours = 2.5
retries = 5

[run]
slots = 8
precision = "bfloat16"
publish_seconds = 30
"""


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- from a file --------------------------------------------------------------------------------------------------


def test_every_section_of_a_file_is_read(toml: Write) -> None:
    assert from_toml(toml(EVERYTHING)) == Config(
        model="tiny.en",
        decode=DecodeOptions(
            language="en",
            temperatures=(0.0, 0.5),
            previous_text=False,
            initial_prompt="Ümlaut, GmbH",
            suppress_tokens=(),
            avg_logprob_threshold=-0.8,
            seed=7,
        ),
        read=ReadOptions(part_seconds=120.0, max_hours=2.5, retries=5),
        run=RunOptions(slots=8, precision="bfloat16", publish_seconds=30.0),
    )


def test_what_a_file_leaves_out_stays_as_it_was(toml: Write) -> None:
    base = Config(model="small", decode=DecodeOptions(language="fr", seed=3), run=RunOptions(slots=4))
    changed = from_toml(toml('model = "base"\n[decode]\nseed = 5\n'), base)
    assert changed == replace(base, model="base", decode=DecodeOptions(language="fr", seed=5))
    assert from_toml(toml("")) == Config()


def test_values_are_of_the_type_of_their_option(toml: Write) -> None:
    """A list would hash differently from the tuple it stands for, and a whole number from its float."""
    decode = from_toml(toml("[decode]\ntemperatures = [0, 1]\n")).decode
    assert decode.temperatures == (0.0, 1.0) and isinstance(decode.temperatures, tuple)
    assert all(isinstance(temperature, float) for temperature in decode.temperatures)
    assert from_toml(toml("[read]\npart_seconds = inf\n")).read.part_seconds == math.inf


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('modle = "base"', "modle is not an option; allowed: decode, model, read, run."),
        ("[reed]\nretries = 1", "reed is not an option; allowed: decode, model, read, run."),
        ("[decode]\nlangauge = 'en'", "[decode] langauge is not an option; allowed: avg_logprob_threshold, "),
        (
            "[read]\nparts_seconds = 60",
            "[read] parts_seconds is not an option; allowed: max_hours, part_seconds, retries, timeout_seconds.",
        ),
        ("[run]\nslot = 4", "[run] slot is not an option; allowed: decode_actors, model_actors, parts_per_shard, "),
        ("[decode.beam]\nsize = 5", "[decode] beam is not an option; allowed: "),
    ],
)
def test_a_misspelt_name_fails_with_those_allowed(toml: Write, text: str, sentence: str) -> None:
    path = toml(text)
    with pytest.raises(UsageError) as caught:
        from_toml(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("section", ["decode", "read", "run"])
def test_the_names_allowed_are_all_those_of_the_section(toml: Write, section: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_toml(toml(f"[{section}]\nx = 1"))
    allowed = str(caught.value).partition("allowed: ")[2].rstrip(".").split(", ")
    assert allowed == sorted(field.name for field in fields(getattr(Config(), section)))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[run]\nslots = 'many'", "[run] slots is 'many', which will not do: "),
        ("[run]\nslots = 2.5", "[run] slots is 2.5, which will not do: "),
        ("[decode]\ntemperatures = 0.5", "[decode] temperatures is 0.5, which will not do: "),
        ("[decode]\nlanguage = 7", "[decode] language is 7, which will not do: "),
        ("[decode]\nprevious_text = 'perhaps'", "[decode] previous_text is 'perhaps', which will not do: "),
        ("[read]\nretries = 2026-01-01", "[read] retries is datetime.date(2026, 1, 1), which will not do: "),
        ("[model]\nname = 'base'", "model is {'name': 'base'}, which will not do: "),
        ("read = 60", "read is a table: write [read] and its options below it."),
    ],
)
def test_a_value_of_another_type_fails(toml: Write, text: str, where: str) -> None:
    path = toml(text)
    with pytest.raises(UsageError) as caught:
        from_toml(path)
    assert str(caught.value).startswith(f"{path}: {where}")
    assert "\n" not in str(caught.value)


def test_a_value_that_is_not_allowed_fails_as_it_does_in_code(toml: Write) -> None:
    with pytest.raises(UsageError, match="task is 'summarise': choose one of transcribe, translate."):
        from_toml(toml("[decode]\ntask = 'summarise'"))
    with pytest.raises(UsageError, match="part_seconds is 1: give 5 to 900 seconds, or inf"):
        from_toml(toml("[read]\npart_seconds = 1"))


@pytest.mark.parametrize("content", [b"model = base", b"[read\n", b"model = '\xff\xfe'"])
def test_what_is_no_toml_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^The configuration {path} is not TOML: .*[^.]\\.$"):
        from_toml(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(UsageError, match=f"^The configuration {missing} cannot be read: No such file or directory.$"):
        from_toml(missing)
    with pytest.raises(UsageError, match=f"^The configuration {tmp_path} cannot be read: Is a directory.$"):
        from_toml(tmp_path)


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [None, MIN_PART_SECONDS, 61.5, MAX_PART_SECONDS, math.inf])
def test_part_seconds_within_the_bounds(length: float | None) -> None:
    assert ReadOptions(part_seconds=length).part_seconds == length


@pytest.mark.parametrize("length", [0.0, 4.999, 900.1, -60.0, -math.inf, math.nan])
def test_part_seconds_beyond_the_bounds(length: float) -> None:
    with pytest.raises(
        UsageError, match="^part_seconds is .*: give 5 to 900 seconds, or inf to keep every file whole.$"
    ):
        ReadOptions(part_seconds=length)


@pytest.mark.parametrize("name", ["slots", "model_actors", "decode_actors", "parts_per_shard"])
def test_counts_start_at_one(name: str) -> None:
    assert getattr(RunOptions(**{name: 1}), name) == 1
    with pytest.raises(UsageError, match=f"^{name} is 0: give at least 1.$"):
        RunOptions(**{name: 0})


def test_an_unknown_precision_fails_with_those_allowed() -> None:
    with pytest.raises(UsageError, match="^precision is 'int8': choose one of float32, bfloat16, float16.$"):
        RunOptions(precision="int8")


# --- the generation -----------------------------------------------------------------------------------------------

OTHER_VALUES: dict[str, Any] = {
    "language": "de",
    "task": "translate",
    "temperatures": (0.0,),
    "compression_ratio_threshold": None,
    "avg_logprob_threshold": None,
    "no_speech_threshold": None,
    "previous_text": False,
    "initial_prompt": "Names: Ada, Grace.",
    "suppress_tokens": (),
    "suppress_blank": False,
    "max_initial_timestamp": None,
    "language_window": "shared",
    "seed": 1,
}


@pytest.mark.parametrize("name", [field.name for field in fields(DecodeOptions)])
def test_every_decode_option_makes_a_new_generation(name: str) -> None:
    """An option without an entry above fails here: whoever adds one decides whether it belongs to the generation."""
    changed = Config(decode=replace(DecodeOptions(), **{name: OTHER_VALUES[name]}))
    assert changed.generation(SHA256) != Config().generation(SHA256)


def test_the_weights_make_a_new_generation_and_their_name_does_not() -> None:
    assert Config().generation(SHA256) != Config().generation("0" * 64)
    assert Config(model="base").generation(SHA256) == Config(model="/models/base.pt").generation(SHA256)


def test_what_was_asked_of_cuts_and_precision_makes_a_new_generation_and_no_other_option() -> None:
    usual = Config().generation(SHA256)
    assert Config(run=RunOptions(precision="float16")).generation(SHA256) != usual
    for length in (60.0, float("inf")):
        assert Config(read=ReadOptions(part_seconds=length)).generation(SHA256) != usual
    assert Config(read=ReadOptions(max_hours=1.0)).generation(SHA256) != usual
    spread = RunOptions(slots=3, model_actors=2, decode_actors=5, parts_per_shard=1, publish_seconds=0.0)
    read = ReadOptions(timeout_seconds=10.0, retries=0)
    assert Config(run=spread, read=read).generation(SHA256) == usual


def test_a_generation_is_a_name_that_lasts(toml: Write) -> None:
    """The same in every process and version, or everything stored so far would be transcribed again.

    A new option changes it, and so announces that it will be: say so in the changelog.
    """
    assert Config().generation(SHA256) == "e269432753e2ed5d"
    assert (
        from_toml(toml("[decode]\ntemperatures = [0, 0.2, 0.4, 0.6, 0.8, 1]")).generation(SHA256) == "e269432753e2ed5d"
    )
