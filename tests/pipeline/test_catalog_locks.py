"""A query reads the tables and nothing else, and writes nowhere: each lock tested with the other open."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from model.errors import UsageError
from pipeline.catalog import connect, query, select
from pipeline.writer import Writer
from tests.pipeline.tables import Results, publish
from tests.writers import WriterAt


@pytest.fixture
def store(tmp_path: Path, writer_at: WriterAt) -> Writer:
    return writer_at(str(tmp_path / "archive"))


ESCAPES = [
    "COPY (SELECT 1) TO '{outside}/new.csv'",
    "COPY (SELECT 1 AS a) TO '{object}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT 1 AS a) TO 'earwitness://{path}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO 'earwitness://{path}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO '{object}' (FORMAT parquet, USE_TMP_FILE false)",
    "ATTACH '{outside}/new.db'",
    "EXPORT DATABASE '{outside}/export'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('{outside}/secret.txt')",
    "SELECT * FROM read_text('earwitness:/../../../../../../../{outside}/secret.txt')",
    "SELECT * FROM read_text('earwitness://../../../../../../../../{outside}/secret.txt')",
    "SELECT * FROM sniff_csv('{outside}/secret.txt')",
    "SELECT * FROM '{outside}/secret.parquet'",
    "SELECT * FROM read_parquet('{object}')",
    "SELECT * FROM read_parquet('s3://tests/x.parquet')",
    "SELECT * FROM glob('{outside}/*')",
    "SELECT * FROM glob('..')",
    "SELECT * FROM glob('../*')",
    "SELECT getenv('HOME')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM parquet_metadata('{object}')",
    "SELECT * FROM read_csv('https://example.com/x.csv')",
    "SELECT * FROM read_parquet('hf://datasets/x/y/z.parquet')",
    "SELECT * FROM duckdb_secrets() WHERE 1 / (SELECT count(*) FROM read_text('/etc/hostname')) > 0",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "IMPORT DATABASE '{outside}/export'",
    "COPY segments FROM '{outside}/secret.txt'",
    "PRAGMA enable_profiling = 'json'",
    "PRAGMA profiling_output = '{outside}/profile.json'",
    "RESET lock_configuration",
    "SET allowed_directories = ['/']",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "INSTALL httpfs",
    "LOAD httpfs",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_query_reads_or_writes_outside(store: Writer, results: Results, tmp_path: Path, escape: str) -> None:
    """Each lock by itself: our own check of the statement, and DuckDB's settings when that check is bypassed."""
    publish(store, results("a"))
    (path,) = store.objects.list("segments/data")
    target = tmp_path / "archive" / path
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    before = target.read_bytes()
    sql = escape.format(outside=outside, object=target, path=path)
    with closing(connect(store)) as connection:
        with pytest.raises(UsageError):
            select(connection, sql)
        with pytest.raises((duckdb.Error, PermissionError)):
            connection.execute(sql)
    assert target.read_bytes() == before
    assert [file.name for file in outside.iterdir()] == ["secret.txt"]


@pytest.mark.parametrize(
    "sql",
    [
        "DROP VIEW segments",
        "CREATE TABLE x AS SELECT 1",
        "DELETE FROM steps.shown",
        "ATTACH ':memory:' AS other",
        "CALL pragma_version()",
        "CHECKPOINT",
        "SELECT 1; SELECT 2",
        "",
        "-- none",
    ],
)
def test_only_one_select_is_run(store: Writer, sql: str) -> None:
    with pytest.raises(UsageError, match="A query is one SELECT"):
        query(store, sql)
