"""Queries in every format, read back by what reads such files, and the shell, by hand and through a pipe."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from jobs.sql import GREETING, PROMPT, ask
from model.errors import UsageError
from pipeline.sink import prepare
from pipeline.store import Store

Call = Callable[..., Any]  # gives `Done` of conftest.py
SEGMENTS = "SELECT uri, start, text, tokens FROM segments ORDER BY uri, start"


def rows_of(store: Store, query: str, output: str, capsysbinary: pytest.CaptureFixture[bytes]) -> bytes:
    ask(store.objects.url, query, output)
    said = capsysbinary.readouterr()
    assert said.err == b""
    return said.out


def test_a_table_is_the_default(earwitness: Call, store: Store) -> None:
    done = earwitness("sql", store.objects.url, "SELECT count(*) AS segments, max(start) AS latest FROM segments")
    assert (done.code, done.out.split(), done.err) == (0, ["segments", "latest", "12", "70.00"], "")


def test_csv_is_read_back(store: Store, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    data = rows_of(store, SEGMENTS, "csv", capsysbinary)
    table = pyarrow.csv.read_csv(io.BytesIO(data))
    assert table.column_names == ["uri", "start", "text", "tokens"] and table.num_rows == 12
    assert table["text"][0].as_py() == " part 0 segment 0"
    assert json.loads(table["tokens"][1].as_py()) == [50364, 1, 50564]


def test_csv_of_difficult_text(store: Store, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    query = """SELECT 'a "quoted", text' AS a, 'two' || chr(10) || 'lines' AS b, '你好' AS c, {'word': 'é'} AS d,
        NULL AS e"""
    text = rows_of(store, query, "csv", capsysbinary).decode()
    _, row = csv.reader(io.StringIO(text))
    assert row == ['a "quoted", text', "two\nlines", "你好", '{"word": "é"}', ""]


def test_json_is_one_object_a_line(store: Store, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = rows_of(store, SEGMENTS, "json", capsysbinary).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12
    assert rows[1] == {
        "uri": "s3://archive/a.mp3",
        "start": 5.0,
        "text": " part 0 segment 1",
        "tokens": [50364, 1, 50564],
    }


def test_json_has_no_infinity(
    store: Store, results: Callable[..., pa.Table], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`--part-seconds inf` stands in the ledger."""
    store.publish([prepare(store.objects, results("whole", parts=1, part_seconds=float("inf")))])
    query = """SELECT part_seconds, [part_seconds] AS list, {'n': 'nan'::FLOAT} AS n, committed_at
        FROM parts WHERE media_id = 'whole'"""
    row = json.loads(rows_of(store, query, "json", capsysbinary), parse_constant=pytest.fail)
    assert (row["part_seconds"], row["list"], row["n"]) == ("inf", ["inf"], {"n": "nan"})
    assert row["committed_at"].startswith("20")


def test_parquet_is_read_back(store: Store, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    data = rows_of(store, SEGMENTS, "parquet", capsysbinary)
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert table.column_names == ["uri", "start", "text", "tokens"]
    assert table["tokens"].to_pylist()[0] == [50364, 0, 50564]


def test_parquet_is_not_for_eyes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UsageError, match="send them to a file, as in `> rows.parquet`"):
        ask(store.objects.url, SEGMENTS, "parquet")


@pytest.mark.parametrize("output", ["csv", "parquet"])
def test_a_type_that_a_format_cannot_hold(store: Store, output: str) -> None:
    with pytest.raises(UsageError, match=f"^A column has a type that {output} cannot hold .*: cast it in the query.$"):
        ask(store.objects.url, "SELECT INTERVAL 1 DAY AS d", output)


@pytest.mark.parametrize(
    "value", ["DATE '20000-01-01'", "'infinity'::TIMESTAMP", "TIMESTAMP_NS '2020-01-01 00:00:00.1234'"]
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_date_that_python_cannot_hold_is_no_bug(store: Store, output: str, value: str) -> None:
    try:
        ask(store.objects.url, f"SELECT {value} AS d", output)
    except UsageError as error:
        assert str(error).startswith(f"A value is none that a {output} can hold (")
    ask(store.objects.url, f"SELECT CAST({value} AS VARCHAR) AS d", output)


@pytest.mark.parametrize("output", ["json", "parquet"])
def test_two_columns_of_one_name_are_not_lost(store: Store, output: str) -> None:
    with pytest.raises(UsageError, match=f"^Two columns are called 'a', which {output} cannot hold: give one another"):
        ask(store.objects.url, "SELECT 1 AS a, 2 AS a", output)


def test_a_query_that_is_no_text(store: Store) -> None:
    with pytest.raises(UsageError, match="^The query is not text in UTF-8: write it as such.$"):
        ask(store.objects.url, "SELECT '\udcff'", "table")


def test_a_wrong_format_is_told_before_the_tables_are_read() -> None:
    with pytest.raises(UsageError, match="--format is 'yaml': choose one of table, csv, json, parquet."):
        ask("nowhere", "SELECT 1", "yaml")


# --- the shell ----------------------------------------------------------------------------------------------------


class Keyboard(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


def test_through_a_pipe_every_line_is_a_query(earwitness: Call, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one\n\n  \nSELECT count(*) AS n FROM segments"))
    done = earwitness("sql", store.objects.url)
    assert (done.code, done.out.split(), done.err) == (0, ["one", "1", "n", "12"], "")


def test_through_a_pipe_a_wrong_query_ends_the_shell(
    earwitness: Call, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one\nSELEC 2\nSELECT 3 AS three\n"))
    done = earwitness("sql", store.objects.url)
    assert (done.code, done.out.split()) == (2, ["one", "1"])
    assert done.err == 'earwitness: The query cannot be run: Parser Error: syntax error at or near "SELEC".\n'


@pytest.mark.parametrize("goodbye", ["\nSELECT 3 AS three\n", ""], ids=["empty line", "Ctrl-D"])
def test_a_person_may_be_wrong_and_go_on(
    earwitness: Call, store: Store, monkeypatch: pytest.MonkeyPatch, goodbye: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(f"SELEC 1\nSELECT 2 AS two\n{goodbye}"))
    done = earwitness("sql", store.objects.url)
    assert done.code == 0
    assert done.out.replace(PROMPT, "").split() == ["two", "2"] and done.out.count(PROMPT) == 3
    greeting, wrong, *_ = done.err.splitlines()
    assert greeting == GREETING and "SELEC" in wrong


def test_ctrl_c_at_the_prompt_leaves_the_shell(earwitness: Call, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(Keyboard):
        def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupting())
    assert earwitness("sql", store.objects.url).code == 0
