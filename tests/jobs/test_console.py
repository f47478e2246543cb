"""Tables at 80 and 120 columns, values as short as they can be told, durations, and errors of one line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from rich.cells import cell_len

from jobs import console

Columns = Callable[[int], None]

SENTENCE = "The quick brown fox jumps over the lazy dog, and after that it sleeps for a while in the sun."


def shown(rows: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    console.show(pa.table(rows))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_table_that_fits_is_one_line_a_row(columns: Columns, capsys: pytest.CaptureFixture[str]) -> None:
    columns(80)
    rows = {"uri": ["a.wav", "longer.wav"], "start": [0.5, 120.25], "segments": [3, 12], "text": ["Hello.", None]}
    assert shown(rows, capsys) == [
        "uri          start  segments  text",
        "a.wav         0.50         3  Hello.",
        "longer.wav  120.25        12",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_only_the_text_wraps_and_between_words(
    columns: Columns, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    columns(width)
    values = {"language_probability": [0.98], "status": ["transcribed"], "text": [SENTENCE], "uri": ["s3://a/b.mp3"]}
    head, first, *more = shown(values, capsys)
    assert head.split() == ["language_probability", "status", "text", "uri"]
    assert first.split()[:2] == ["0.98", "transcribed"] and first.endswith("  s3://a/b.mp3")
    words = " ".join([first.split("transcribed")[1].removesuffix("s3://a/b.mp3"), *more]).split()
    assert words == SENTENCE.split()
    assert max(map(cell_len, (head, first, *more))) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_that_is_too_wide_stands_on_end(
    columns: Columns, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    columns(width)
    names = [f"name_of_column_{number}" for number in range(9)]
    lines = shown({name: [index, index + 1] for index, name in enumerate(names)} | {"text": ["x", SENTENCE]}, capsys)
    assert lines[0] == "row 1" and lines[1] == "name_of_column_0  0"
    assert lines.index("row 2") == 11 and lines[12] == "name_of_column_0  1"
    assert [line.split()[0] for line in lines[1:11]] == [*names, "text"]
    assert " ".join(" ".join(lines[21:]).removeprefix("text").split()) == SENTENCE
    assert max(map(cell_len, lines)) <= width


def test_no_word_of_a_header_is_ever_broken(columns: Columns, capsys: pytest.CaptureFixture[str]) -> None:
    for width in range(30, 130, 7):
        columns(width)
        rows = {"compression_ratio": [1.0], "no_speech_prob": [0.5], "text": [SENTENCE]}
        said = "\n".join(shown(rows, capsys))
        assert all(name in said for name in rows)


def test_wide_characters_count_double(columns: Columns, capsys: pytest.CaptureFixture[str]) -> None:
    columns(80)
    text = "いろはにほへと散りぬるを我が世誰ぞ常ならん"
    lines = shown({"uri": ["x" * 40, "y"], "text": [text, text]}, capsys)
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split() == ["uri", "text"]


def test_two_columns_of_one_name_are_both_shown(columns: Columns, capsys: pytest.CaptureFixture[str]) -> None:
    columns(80)
    console.show(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"]))
    assert capsys.readouterr().out.split() == ["n", "n", "1", "2"]


def test_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown({"text": []}, capsys) == ["(no rows)"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, ""),
        (True, "true"),
        (3, "3"),
        (0.0, "0.00"),
        (-0.2511, "-0.25"),
        (0.00042, "0.00042"),
        (1234.5, "1234.50"),
        (float("inf"), "inf"),
        (datetime(2026, 3, 1, 12, 30, 5, 999, UTC), "2026-03-01 12:30:05+00:00"),
        (["loop", "retried"], "loop, retried"),
        ([{"word": "Hi", "start": 0.5}], "{word: Hi, start: 0.50}"),
        ("[bold]no markup", "[bold]no markup"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("two\nlines\tof it", "two\nlines\tof it"),
    ],
)
def test_cells(value: Any, said: str) -> None:
    assert console.cell(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5999.0, "100 min"), (6000.0, "1.7 h"), (4.32e9, "1,200,000 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


def test_counts_and_speeds() -> None:
    assert [console.count(number, "file") for number in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert [console.times(factor) for factor in (0.17, 99.9, 1150.4)] == ["0.2 ×", "99.9 ×", "1,150 ×"]


def test_an_error_is_one_line_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("The file [red]\x1b[31m\n" + "long " * 40 + "is gone.")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "earwitness: The file [red]\\x1b[31m " + "long " * 40 + "is gone.\n"
