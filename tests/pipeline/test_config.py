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
from pipeline.config import (
    AUTO,
    MAX_PART_SECONDS,
    MIN_PART_SECONDS,
    PRECISIONS,
    SPLIT,
    Config,
    ReadOptions,
    RunOptions,
    configured,
    from_toml,
)

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
hotwords = "Ada, Grace"
beam_size = 5
patience = 2
word_timestamps = true
avg_logprob_threshold = -0.8
seed = 7

[read]
part_seconds = 120
max_hours = 2.5
retries = 5
voice_activity = false

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
            hotwords="Ada, Grace",
            beam_size=5,
            patience=2.0,
            word_timestamps=True,
            avg_logprob_threshold=-0.8,
            seed=7,
        ),
        read=ReadOptions(part_seconds=120.0, max_hours=2.5, retries=5, voice_activity=False),
        run=RunOptions(slots=8, precision="bfloat16", publish_seconds=30.0),
    )


def test_what_a_file_leaves_out_keeps_its_default(toml: Write) -> None:
    changed = from_toml(toml('model = "small"\n[decode]\nseed = 5\n'))
    assert changed == Config(model="small", decode=DecodeOptions(seed=5))
    assert from_toml(toml("")) == configured() == Config()


def test_values_are_of_the_type_of_their_option(toml: Write) -> None:
    """A list would hash differently from the tuple it stands for, and a whole number from its float."""
    decode = from_toml(toml("[decode]\ntemperatures = [0, 1]\n")).decode
    assert decode.temperatures == (0.0, 1.0) and isinstance(decode.temperatures, tuple)
    assert all(isinstance(temperature, float) for temperature in decode.temperatures)
    assert from_toml(toml("[read]\npart_seconds = inf\n")).read.part_seconds == math.inf


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('modle = "base"', "modle is not an option; allowed: decode, exact, model, read, run."),
        ("[reed]\nretries = 1", "reed is not an option; allowed: decode, exact, model, read, run."),
        ("[decode]\nlangauge = 'en'", "[decode] langauge is not an option; allowed: avg_logprob_threshold, "),
        ("[read]\nparts_seconds = 60", "[read] parts_seconds is not an option; allowed: channels, max_hours, "),
        ("[decode]\nexact = true", "[decode] exact is not an option; allowed: avg_logprob_threshold, "),
        ("[run]\nslot = 4", "[run] slot is not an option; allowed: cost_per_hour, decode_actors, gpus, "),
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
        ("[read]\nvoice_activity = 0", "[read] voice_activity is 0, which will not do: "),
        ("exact = 'yes'", "exact is 'yes', which will not do: "),
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
    with pytest.raises(UsageError, match="patience is 2, but there is no beam"):
        from_toml(toml("[decode]\npatience = 2"))


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


# --- flags over a file --------------------------------------------------------------------------------------------


def test_flags_win_and_leave_the_rest_of_their_table(toml: Write) -> None:
    flags = {"model": "tiny", "decode": {"language": None, "beam_size": 3}, "read": {}, "run": {"precision": "float16"}}
    file = toml(EVERYTHING)
    alone, both = from_toml(file), configured(file, flags)
    assert (both.model, both.decode.language, both.decode.beam_size) == ("tiny", None, 3)
    assert (both.run.precision, both.run.slots, both.read) == ("float16", 8, alone.read)
    assert replace(both.decode, language="en", beam_size=5) == alone.decode
    assert configured(None, flags).decode == DecodeOptions(beam_size=3)


def test_a_file_and_flags_need_make_sense_together_only(toml: Write) -> None:
    file = toml("[decode]\npatience = 2")
    assert configured(file, {"decode": {"beam_size": 5}}).decode == DecodeOptions(beam_size=5, patience=2.0)
    with pytest.raises(UsageError, match="say different things about the language"):
        configured(toml("[decode]\nlanguage_per_window = true"), {"decode": {"language": "de"}})


# --- exact --------------------------------------------------------------------------------------------------------

EXACT = Config(
    decode=DecodeOptions.exact(), read=ReadOptions(voice_activity=False), run=RunOptions(precision="float32")
)


def test_exact_is_said_in_code_in_a_file_or_by_a_flag(toml: Write) -> None:
    assert Config.exact() == from_toml(toml("exact = true")) == configured(None, {"exact": True}) == EXACT
    assert configured(toml("exact = false")) == Config() != EXACT
    assert configured(toml("exact = false"), {"exact": True}) == EXACT


def test_exact_keeps_what_else_is_given(toml: Write) -> None:
    file = toml("exact = true\nmodel = 'tiny'\n[decode]\nbeam_size = 5\n[read]\npart_seconds = inf\n[run]\nslots = 3")
    given = configured(file, {"decode": {"language": "fr"}})
    assert given.decode == Config.exact("tiny", beam_size=5, language="fr").decode
    assert (given.model, given.read.part_seconds, given.run.slots) == ("tiny", math.inf, 3)
    assert (given.read.voice_activity, given.run.precision) == (False, "float32")


@pytest.mark.parametrize(
    ("text", "flags", "named"),
    [
        ("exact = true\n[decode]\nstop_loops = true", {}, "stop_loops is True"),
        ("exact = true\n[run]\nprecision = 'bfloat16'", {}, "precision is 'bfloat16'"),
        ("exact = true\n[run]\nprecision = 'auto'", {}, "precision is 'auto'"),
        ("exact = true\n[read]\nvoice_activity = true", {}, "voice_activity is True"),
        ("exact = true", {"decode": {"hotwords": "Ada"}}, "hotwords is 'Ada'"),
        ("[decode]\ncontext_margin = 2", {"exact": True}, "context_margin is 2.0"),
        ("", {"exact": True, "run": {"precision": "float16"}}, "precision is 'float16'"),
    ],
)
def test_what_leads_away_from_exact_is_a_contradiction(
    toml: Write, text: str, flags: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        configured(toml(text), flags)
    assert str(caught.value) == (
        f"{named}, with which the output is not openai/whisper's: leave it out, or leave out exact."
    )


def test_what_exact_does_anyway_may_be_said(toml: Write) -> None:
    said = "exact = true\n[decode]\nstop_loops = false\n[read]\nvoice_activity = false\n[run]\nprecision = 'float32'"
    assert from_toml(toml(said)) == EXACT


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
    assert [RunOptions(precision=name).precision for name in PRECISIONS] == list(PRECISIONS)
    allowed = "auto, float32, bfloat16, float16"
    with pytest.raises(UsageError, match=f"^precision is 'int4': choose one of {allowed}.$"):
        RunOptions(precision="int4")


# --- the generation -----------------------------------------------------------------------------------------------

RUN = RunOptions(precision="float32")
USUAL = Config(run=RUN)
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "language": {"language": "de"},
    "task": {"task": "translate"},
    "temperatures": {"temperatures": (0.0,)},
    "compression_ratio_threshold": {"compression_ratio_threshold": None},
    "avg_logprob_threshold": {"avg_logprob_threshold": None},
    "no_speech_threshold": {"no_speech_threshold": None},
    "previous_text": {"previous_text": False},
    "initial_prompt": {"initial_prompt": "Names: Ada, Grace."},
    "hotwords": {"hotwords": "Ada, Grace"},
    "beam_size": {"beam_size": 5},
    "patience": {"beam_size": 5, "patience": 2.0},
    "length_penalty": {"beam_size": 5, "length_penalty": 0.6},
    "best_of": {"best_of": 5},
    "suppress_tokens": {"suppress_tokens": ()},
    "suppress_blank": {"suppress_blank": False},
    "max_initial_timestamp": {"max_initial_timestamp": None},
    "language_windows": {"language_windows": 3},
    "language_per_window": {"language_per_window": True},
    "language_window": {"language_window": "reference"},
    "context_margin": {"context_margin": None},
    "context_from": {"context_from": 0.0},
    "stop_loops": {"stop_loops": False},
    "word_timestamps": {"word_timestamps": True},
    "hallucination_silence": {"word_timestamps": True, "hallucination_silence": 2.0},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("name", [field.name for field in fields(DecodeOptions)])
def test_every_decode_option_makes_a_new_generation(name: str) -> None:
    """An option without an entry above fails here: whoever adds one decides whether it belongs to the generation."""
    changes = OTHER_VALUES[name]
    others = {other: value for other, value in changes.items() if other != name}
    before, after = (Config(decode=DecodeOptions(**given), run=RUN) for given in (others, changes))
    assert after.generation(SHA256) != before.generation(SHA256)


def test_the_weights_make_a_new_generation_and_their_name_does_not() -> None:
    assert USUAL.generation(SHA256) != USUAL.generation("0" * 64)
    assert Config("base", run=RUN).generation(SHA256) == Config("/models/base.pt", run=RUN).generation(SHA256)


def test_what_was_asked_of_reading_and_precision_makes_a_new_generation_and_no_other_option() -> None:
    usual = USUAL.generation(SHA256)
    assert replace(USUAL, run=RunOptions(precision="float16")).generation(SHA256) != usual
    for length in (60.0, float("inf")):
        assert replace(USUAL, read=ReadOptions(part_seconds=length)).generation(SHA256) != usual
    assert replace(USUAL, read=ReadOptions(max_hours=1.0)).generation(SHA256) != usual
    assert replace(USUAL, read=ReadOptions(channels=SPLIT)).generation(SHA256) != usual
    assert replace(USUAL, read=ReadOptions(stream=1)).generation(SHA256) != usual
    assert replace(USUAL, read=ReadOptions(voice_activity=False)).generation(SHA256) != usual
    spread = dict(slots=3, model_actors=2, decode_actors=5, parts_per_shard=1, publish_seconds=0.0)
    read = ReadOptions(timeout_seconds=10.0, retries=0)
    assert Config(run=replace(RUN, **spread), read=read).generation(SHA256) == usual


def test_there_is_no_generation_before_the_precision_is_settled() -> None:
    """Two machines would give other texts the same name."""
    assert Config().run.precision == AUTO
    with pytest.raises(AssertionError, match="settled"):
        Config().generation(SHA256)


def test_a_generation_is_a_name_that_lasts(toml: Write) -> None:
    """The same in every process and version, or everything stored so far would be transcribed again.

    A new option changes it, and so announces that it will be: say so in the changelog.
    """
    assert USUAL.generation(SHA256) == "591d0ecc2528846f"
    said = "[decode]\ntemperatures = [0, 0.2, 0.4, 0.6, 0.8, 1]\n[run]\nprecision = 'float32'"
    assert from_toml(toml(said)).generation(SHA256) == USUAL.generation(SHA256)
