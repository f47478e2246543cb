"""Plain SQL over a destination: DuckDB views of one snapshot, read-only and shut off from everything else.

DuckDB gets no folder and no credentials, only the file system of `snapshot.py`. What keeps a query inside, each lock
tested: `enable_external_access=false` with that file system as the only allowed directory; `lock_configuration=true`;
no extension is installed or loaded; only SELECT and EXPLAIN are run. An allow list of real files would not do: DuckDB
1.5.5 lets `COPY … (use_tmp_file false)` overwrite an allowed file.

Which rows a view shows. Of the attempts at one part one that has text counts over one that has none, then the latest,
and of twins, which two workers stored under different names, the first name; a segment is shown only with the ledger
row of its own shard. A copy, an object with the same bytes as another, is shown with the rows of its owner under its
own name, as long as it has no text of its own. Of several generations of a file the newest one that is whole counts,
so a file changes over at once when a new model has finished it. Of several versions of one uri only the one that was
seen last is shown, from the moment it is seen; all_media, all_parts and all_segments have the others too. An object
that has left the archive stays. It refuses to know how any row came about.
"""

from __future__ import annotations

from contextlib import closing

import duckdb
import pyarrow as pa

from model.errors import DestinationError, EarwitnessError, UsageError
from model.options import DecodeOptions
from model.segments import SEEK_RULES
from pipeline.config import ReadOptions
from pipeline.records import STATUSES, WITH_TEXT, WORTH_ANOTHER_TRY
from pipeline.sink import parquet_bytes
from pipeline.snapshot import PROTOCOL, SnapshotFileSystem
from pipeline.spill import spill_folder
from pipeline.store import TABLES, Store

READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)

# When a person should listen. The first three are the thresholds of the reference; below a mean log probability of -0.7
# the model gave its own words less than even odds, and so it did to the language below 0.5.
REVIEW_LOGPROB = -0.7
REVIEW_LANGUAGE = 0.5
_REFERENCE = DecodeOptions()

# In this order: the last one makes them final.
SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # a name in a query is never a variable of this program
    "parquet_metadata_cache": "true",
    "validate_external_file_cache": "'NO_VALIDATION'",  # objects never change
    "allowed_directories": f"['{PROTOCOL}://']",
    "enable_external_access": "false",
    "lock_configuration": "true",
}

_SEEK_RULES = ", ".join(f"'{rule}'" for rule in SEEK_RULES)  # say where a window was cut, not that it is in doubt
_TEXT = ", ".join(f"'{status}'" for status in WITH_TEXT)
_AGAIN = ", ".join(f"'{status}'" for status in WORTH_ANOTHER_TRY)
_ONCE = "(channel IS NULL OR channel = 0 OR antiphase)"  # of channels that are parts of their own, the first
_SEVERITY = "[" + ", ".join(f"'{status}'" for status in STATUSES) + "]"

# What users see is built on these steps, in a schema of their own. `shown` is worked out once per connection; every
# view would otherwise sort the ledger again. It says which rows are shown, and those of a copy under which name.
STEPS = f"""
CREATE SCHEMA steps;
CREATE VIEW steps.media AS FROM read_parquet('{PROTOCOL}://media/*');
CREATE TABLE steps.superseded AS
    SELECT DISTINCT media_id FROM steps.media JOIN (
        SELECT uri, arg_max(media_id, seen_at) AS current FROM steps.media
        GROUP BY uri HAVING min(media_id) <> max(media_id)
    ) AS versions USING (uri) WHERE media_id <> current;
CREATE VIEW steps.ledger AS
    SELECT * EXCLUDE (filename), parse_filename(filename) AS _shard,
        status IN ({_TEXT}) AND same_as IS NULL AS _has_text
    FROM read_parquet('{PROTOCOL}://parts/*', filename = true);
CREATE VIEW steps.segments AS
    SELECT * EXCLUDE (filename), parse_filename(filename) AS _shard
    FROM read_parquet('{PROTOCOL}://segments/*', filename = true);
CREATE TABLE steps.copies AS
    SELECT media_id AS copy, arg_max(same_as, attempts) AS media_id, generation, any_value(uri) AS uri
    FROM steps.ledger WHERE same_as IS NOT NULL GROUP BY copy, generation;
CREATE TABLE steps.shown AS
    WITH own AS MATERIALIZED (
        SELECT part_id, _shard, media_id, generation, "index", is_last, _has_text, committed_at
        FROM steps.ledger WHERE same_as IS NULL
        QUALIFY row_number() OVER (
            PARTITION BY media_id, generation, "index" ORDER BY _has_text DESC, attempts DESC, _shard) = 1),
    still AS (
        FROM steps.copies SEMI JOIN own USING (media_id, generation)
        ANTI JOIN (SELECT media_id AS copy, generation FROM own WHERE _has_text) USING (copy, generation)),
    chosen AS (
        SELECT *, NULL::VARCHAR AS _media, NULL::VARCHAR AS _uri
        FROM own ANTI JOIN (SELECT copy AS media_id, generation FROM still) USING (media_id, generation)
        UNION ALL
        SELECT part_id, _shard, copy, generation, "index", is_last, _has_text, committed_at, copy, uri
        FROM still JOIN own USING (media_id, generation)),
    newest AS (
        SELECT media_id, generation, max("index") FILTER (is_last) + 1 AS parts_total,
            count(*) FILTER (_has_text) AS parts_done,
            coalesce(bool_and(_has_text) AND parts_done = parts_total, false) AS complete
        FROM chosen ANTI JOIN steps.superseded USING (media_id) GROUP BY media_id, generation
        QUALIFY row_number() OVER (
            PARTITION BY media_id ORDER BY complete DESC, max(committed_at) DESC, generation) = 1)
    SELECT part_id, _shard, _media, _uri, newest.media_id IS NOT NULL AS newest, parts_total, parts_done, complete,
        chosen.media_id NOT IN (FROM steps.superseded) AS current
    FROM chosen LEFT JOIN newest USING (media_id, generation);
DROP TABLE steps.copies;
CREATE TABLE steps.copied AS
    SELECT part_id, _shard, _media, _uri, newest, current FROM steps.shown WHERE _media IS NOT NULL;
"""
# A copy's rows have names of their own, and a branch of their own: the other takes a condition on a name down to the
# objects, and this one costs little where there is no copy, which DuckDB sees by a table that is empty.
_NAMED = """_media AS media_id, _uri AS uri, md5(concat(_media, ' ', part_id)) AS part_id"""


def _named(table: str, hidden: str, replaced: str, condition: str) -> str:
    """The shown rows of a table of `steps`, each under the name it is shown by."""
    return f"""
        SELECT * EXCLUDE ({hidden}) FROM steps.{table}
        SEMI JOIN (FROM steps.shown WHERE _media IS NULL AND {condition}) USING (part_id, _shard)
        UNION ALL
        SELECT * EXCLUDE ({hidden}, _media, _uri, newest, current) REPLACE ({_NAMED}{replaced}) FROM steps.{table}
        JOIN (FROM steps.copied WHERE {condition}) USING (part_id, _shard)"""


def _parts(condition: str) -> str:
    return _named("ledger", "_shard, _has_text", ", media_id AS same_as", condition)


def _segments(condition: str) -> str:
    return _named("segments", "_shard", "", condition)


# Made once the limit is known: files that failed in more runs than that.
QUARANTINED = f"""
CREATE TABLE steps.quarantined AS
    SELECT media_id, generation FROM steps.ledger WHERE same_as IS NULL AND status IN ({_AGAIN})
    GROUP BY ALL HAVING count(DISTINCT attempts) > {{retries}}"""
_GIVEN_UP = f"""(status IN ({_AGAIN})
    AND (coalesce(same_as, media_id), generation) IN (SELECT (media_id, generation) FROM steps.quarantined))"""

VIEWS = {
    "all_parts": "SELECT * EXCLUDE (_shard, _has_text) FROM steps.ledger",
    "all_segments": _segments("true"),
    "parts": _parts("newest"),
    "segments": _segments("newest"),
    "words": """
        SELECT uri, word.start AS "start", word."end" AS "end", word.word AS word, word.probability AS probability,
            language, segment_index, word_index, media_id, part_id, generation
        FROM (SELECT *, unnest(words) AS word, generate_subscripts(words, 1) - 1 AS word_index FROM segments)""",
    "all_media": """
        SELECT media_id, any_value(uri) AS uri, any_value(version) AS version, any_value(bytes) AS bytes,
            any_value(modified_at) AS modified_at, max(seen_at) AS seen_at
        FROM steps.media GROUP BY media_id""",
    "media": "FROM all_media ANTI JOIN steps.superseded USING (media_id)",
    "runs": f"FROM read_parquet('{PROTOCOL}://history/*')",
    "files": f"""
        WITH read AS (
            SELECT coalesce(_media, media_id) AS media_id, coalesce(any_value(_uri), any_value(uri)) AS uri,
                any_value(generation) AS generation,
                arg_max(status, list_position({_SEVERITY}, status)) AS status,
                arg_max(error, list_position({_SEVERITY}, status)) FILTER (error IS NOT NULL) AS error,
                coalesce(sum("end" - "start") FILTER (_has_text AND {_ONCE}), 0) AS seconds,
                arg_max(language, "end" - "start") AS language,
                count(*) FILTER (NOT _has_text) AS parts_failed, bool_or({_GIVEN_UP}) AS quarantined,
                max(expected_seconds) AS expected_seconds,
                coalesce(max(decoded_seconds), sum("end" - "start") FILTER ({_ONCE})) AS decoded_seconds,
                coalesce(sum(covered_seconds), 0) AS covered_seconds,
                greatest(1, count(DISTINCT channel) FILTER (antiphase IS NOT true)) AS channels,
                coalesce(sum(segments), 0)::BIGINT AS segments,
                any_value(parts_done) AS parts_done, any_value(parts_total) AS parts_total,
                any_value(complete) AS complete
            FROM steps.ledger JOIN (FROM steps.shown WHERE newest) USING (part_id, _shard) GROUP BY 1)
        SELECT media_id, coalesce(read.uri, media.uri) AS uri, coalesce(status, 'pending') AS status, error,
            coalesce(seconds, 0) AS seconds, coalesce(seconds, 0) / 3600 AS hours, language,
            coalesce(parts_done, 0) AS parts_done, coalesce(parts_failed, 0) AS parts_failed, parts_total,
            coalesce(complete, false) AS complete, coalesce(quarantined, false) AS quarantined,
            expected_seconds, decoded_seconds, covered_seconds, channels,
            coalesce(segments, 0) AS segments, media.version, media.bytes, read.generation
        FROM media FULL JOIN read USING (media_id)""",
    "failures": f"""
        SELECT uri, "index", "start", "end", status, error, attempts, {_GIVEN_UP} AS quarantined, generation, worker,
            committed_at, media_id, part_id
        FROM ({_parts("current")}) WHERE status NOT IN ({_TEXT})
        ORDER BY committed_at DESC, uri, "index" """,
    "review_queue": f"""
        SELECT uri, "start", "end", text, len(reasons) AS doubts, reasons, avg_logprob, * EXCLUDE (
            uri, "start", "end", text, reasons, avg_logprob)
        FROM (SELECT *, list_distinct(list_concat(
                list_filter(rules_fired, lambda rule: rule NOT IN ({_SEEK_RULES})), list_filter([
                CASE WHEN avg_logprob < {REVIEW_LOGPROB} THEN 'low_logprob' END,
                CASE WHEN compression_ratio > {_REFERENCE.compression_ratio_threshold} THEN 'repetitive' END,
                CASE WHEN no_speech_prob > {_REFERENCE.no_speech_threshold} THEN 'maybe_no_speech' END,
                CASE WHEN language_probability < {REVIEW_LANGUAGE} THEN 'unsure_language' END,
                CASE WHEN attempts > 1 THEN 'retried' END], lambda reason: reason IS NOT NULL))) AS reasons
            FROM segments)
        WHERE len(reasons) > 0 ORDER BY doubts DESC, avg_logprob, uri, "start" """,
    "coverage": """
        SELECT uri, decoded_seconds, covered_seconds, channels,
            CASE WHEN decoded_seconds > 0 THEN covered_seconds / (decoded_seconds * channels) END AS share, media_id
        FROM files WHERE status <> 'pending'""",
}


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """A connection to the views of the newest snapshot; it stays on that snapshot. Run queries through `select`.

    Raises: `DestinationError` when the tables cannot be read.
    """
    connection = duckdb.connect()
    try:
        connection.register_filesystem(_filesystem(store))
        connection.execute(f"SET temp_directory = '{spill_folder()}'")
        for name, value in SETTINGS.items():
            connection.execute(f"SET {name} = {value}")
        connection.execute(STEPS + QUARANTINED.format(retries=_retries(store)))
        for name, sql in VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {sql}")
    except duckdb.Error as error:
        connection.close()
        raise _explained(error) from error
    return connection


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The rows of one SELECT or EXPLAIN.

    Raises: `UsageError` when it is another statement, none, several, or wrong, with DuckDB's first sentence;
    `DestinationError` when the tables cannot be read.
    """
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise UsageError("The query is not text in UTF-8: write it as such.") from None
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in READING:
            raise UsageError("A query is one SELECT (or WITH, FROM, DESCRIBE, EXPLAIN): the tables cannot be changed.")
        table: pa.Table = connection.execute(statements[0]).to_arrow_table()
        return table
    except duckdb.Error as error:
        raise _explained(error) from error


def query(store: Store, sql: str) -> pa.Table:
    """The rows of one SELECT over the views of the newest snapshot. Raises: as `select`."""
    with closing(connect(store)) as connection:
        return select(connection, sql)


def _retries(store: Store) -> int:
    """How often the latest run tries a part again before it is given up."""
    latest = store.latest_run() or {}
    return int(latest.get("config", {}).get("read", {}).get("retries", ReadOptions().retries))


def _explained(error: duckdb.Error) -> EarwitnessError:
    sentence = str(error).splitlines()[0]
    kind, _, said = sentence.partition(": ")
    if kind.endswith(DestinationError.__name__):  # raised in our file system: DuckDB puts the name before the sentence
        return DestinationError(said)
    return UsageError(f"The query cannot be run: {sentence.rstrip('.!')}.")


def _filesystem(store: Store) -> SnapshotFileSystem:
    # Segments before and after the parts, so that those of every part are seen: they are published before it, and
    # taken away after it when shards are merged. Of a shard without parts nothing is shown.
    sizes: dict[str, int] = {}
    for name in ("media", "segments", "parts", "segments", "history"):
        sizes |= {f"{name}/{path}": size for path, size in store.snapshot(name).items()}
    # An object without rows stands first in each table: it gives the columns before there is any file, and saves
    # a request after.
    extra = {f"{name}/.columns": parquet_bytes(schema.empty_table()) for name, schema in TABLES.items()}
    return SnapshotFileSystem(store.objects, sizes, extra)
