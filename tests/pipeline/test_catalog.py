"""The views: which rows they show, what they say of a file, and that a query cannot leave them."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.errors import DestinationError, UsageError
from model.segments import SEEK_RULES
from pipeline import snapshot
from pipeline.catalog import VIEWS, connect, query, select
from pipeline.records import MEDIA, PARTS, SEGMENTS
from pipeline.sink import prepare
from pipeline.writer import Writer
from tests.pipeline.tables import Results, doubtful, one, publish, spoken, with_rules
from tests.writers import WriterAt


@pytest.fixture
def store(tmp_path: Path, writer_at: WriterAt) -> Writer:
    return writer_at(str(tmp_path / "archive"))


def test_before_the_first_row_every_view_has_its_columns(destination: str, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    assert query(store, "FROM segments").column_names == SEGMENTS.names
    assert query(store, "FROM parts").column_names == PARTS.names
    assert query(store, "FROM media").column_names == MEDIA.names
    for view in VIEWS:
        assert query(store, f"SELECT * FROM {view}").num_rows == 0


def test_segments_come_back_as_they_were_stored(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    publish(store, results("a"), results("b", rules_fired=None))
    rows = query(store, "SELECT * FROM segments WHERE media_id = 'a' ORDER BY start").to_pylist()
    assert [row["text"] for row in rows[:2]] == [" part 0 segment 0", " part 0 segment 1"]
    assert rows[0]["tokens"] == [50364, 0, 50564]
    assert query(store, "SHOW TABLES")["name"].to_pylist() == sorted(VIEWS)


def test_the_newest_whole_generation_is_shown(store: Writer, results: Results) -> None:
    publish(store, results("a", generation="1" * 16))
    half = results("a", parts=2, generation="2" * 16)
    publish(store, half.slice(0, 1))
    assert one(store, "SELECT DISTINCT generation AS g FROM segments") == {"g": "1" * 16}
    publish(store, half.slice(1, 1))
    assert one(store, "SELECT DISTINCT generation AS g FROM segments") == {"g": "2" * 16}
    assert one(store, "SELECT count(*) AS n FROM parts") == {"n": 2}
    assert one(store, "SELECT count(*) AS n FROM all_parts") == {"n": 4}
    assert one(store, "SELECT count(*) AS n FROM all_segments") == {"n": 12}


def test_a_failed_new_generation_does_not_hide_the_old_text(store: Writer, results: Results) -> None:
    publish(store, results("a", generation="1" * 16))
    publish(store, results("a", parts=1, generation="2" * 16, status="failed", segment_rows=None))
    assert one(store, "SELECT count(*) AS n FROM segments") == {"n": 6}
    assert one(store, "SELECT generation AS g FROM failures") == {"g": "2" * 16}


def test_the_latest_attempt_counts(store: Writer, results: Results) -> None:
    publish(store, results("a", parts=1, status="failed", error="timed out", segment_rows=None))
    assert one(store, "SELECT uri, error, attempts FROM failures") == {
        "uri": "s3://archive/a.mp3",
        "error": "timed out",
        "attempts": 1,
    }
    publish(store, results("a", parts=1, attempts=2))
    assert one(store, "SELECT status, attempts FROM parts") == {"status": "ok", "attempts": 2}
    assert query(store, "FROM failures").num_rows == 0
    assert one(store, "SELECT count(*) AS n FROM all_parts") == {"n": 2}


def test_twins_in_two_shards_are_shown_once(store: Writer, results: Results) -> None:
    publish(store, results("a"), pa.concat_tables([results("a"), results("b")]))
    assert store.table("parts").to_pyarrow_table().num_rows == 6
    assert one(store, "SELECT count(*) AS n FROM parts") == {"n": 4}
    assert one(store, "SELECT count(*) AS n FROM segments") == {"n": 12}
    assert one(store, "SELECT count(*) AS n FROM all_segments") == {"n": 12}


def test_files_say_how_far_each_one_is(store: Writer, results: Results) -> None:
    media = [{"media_id": name, "uri": f"s3://archive/{name}.mp3", "bytes": 9} for name in ("a", "b", "waiting")]
    seen = {"seen_at": datetime.now(UTC)}
    store.add_media(pa.Table.from_pylist([row | seen for row in media], schema=MEDIA))
    publish(store, results("a", parts=3), results("b", parts=3).slice(0, 2))
    rows = {row["media_id"]: row for row in query(store, "FROM files").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {"a": "ok", "b": "ok", "waiting": "pending"}
    assert {name: row["complete"] for name, row in rows.items()} == {"a": True, "b": False, "waiting": False}
    assert (rows["a"]["parts_done"], rows["a"]["parts_total"]) == (3, 3)
    assert (rows["b"]["parts_done"], rows["b"]["parts_total"]) == (2, None)
    assert rows["a"]["hours"] == pytest.approx(0.05) and rows["a"]["language"] == "en"
    assert (rows["a"]["expected_seconds"], rows["a"]["decoded_seconds"]) == (180.0, 180.0)
    assert rows["waiting"]["uri"] == "s3://archive/waiting.mp3" and rows["waiting"]["seconds"] == 0


def test_the_time_of_a_file_counts_once_however_many_channels_have_parts(store: Writer, results: Results) -> None:
    two = results("split", parts=4, start=0.0, end=60.0)  # two cuts of two channels
    times = {"channel": pa.array([0, 1, 0, 1], pa.int32()), "decoded_seconds": pa.nulls(4, pa.float64())}
    for name, column in times.items():
        two = two.set_column(two.schema.get_field_index(name), name, column)
    swapped = results("swapped", parts=2, channel=1, antiphase=True)  # a mix, in whose place one channel is heard
    publish(store, two, swapped)
    rows = query(store, "SELECT media_id, seconds, decoded_seconds, segments FROM files ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("split", 120.0, 120.0, 12), ("swapped", 120.0, 120.0, 6)]
    covered = query(store, "SELECT channels, share FROM coverage ORDER BY media_id").to_pylist()
    assert [row["channels"] for row in covered] == [2, 1]
    assert covered[0]["share"] == pytest.approx(covered[1]["share"]) == pytest.approx(0.2)
    channels = query(store, "SELECT DISTINCT media_id, channel FROM segments ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in channels] == [("split", 0), ("split", 1), ("swapped", 1)]


def test_a_file_is_as_bad_as_its_worst_part(store: Writer, results: Results) -> None:
    good, bad = results("a", parts=3).slice(0, 2), results("a", parts=3, status="failed", error="lost").slice(2, 1)
    publish(store, good, bad)
    row = one(store, "SELECT status, error, parts_done, parts_failed, parts_total, complete FROM files")
    assert list(row.values()) == ["failed", "lost", 2, 1, 3, False]


def test_a_failure_in_the_place_of_a_lost_part_completes_nothing(store: Writer, results: Results) -> None:
    """Parts 0, 1 and 3 were stored, then the file could not be fetched: the failure stands at 2, and is the last."""
    publish(store, results("a", generation="1" * 16))
    new = results("a", parts=4, generation="2" * 16)
    failure = results("a", parts=3, generation="2" * 16, status="failed", segment_rows=None, part_id="none").slice(2, 1)
    publish(store, new.slice(0, 2), new.slice(3, 1), failure)
    assert one(store, "SELECT generation, complete FROM files") == {"generation": "1" * 16, "complete": True}


def test_a_new_attempt_replaces_a_failure_that_had_another_end(store: Writer, results: Results) -> None:
    failure = results("a", parts=1, status="timeout", segment_rows=None, part_id="without-an-end", end=0.0)
    publish(store, failure, results("a", parts=1, attempts=2))
    assert one(store, "SELECT status FROM parts") == {"status": "ok"}
    assert query(store, "FROM failures").num_rows == 0


def test_where_a_window_was_cut_is_no_doubt(store: Writer, results: Results) -> None:
    cut, hot = results("a", parts=1, segments=1), results("b", parts=1, segments=1)
    cut, hot = (with_rules(table, rules) for table, rules in ((cut, [*SEEK_RULES]), (hot, [*SEEK_RULES, "improbable"])))
    publish(store, cut, hot)
    assert one(store, "SELECT media_id, reasons FROM review_queue") == {"media_id": "b", "reasons": ["improbable"]}


def test_each_word_is_a_row_with_its_place(store: Writer, results: Results) -> None:
    rows = results("a", parts=1, segments=3).to_pylist()
    first, second, silent = rows[0]["segment_rows"]
    first["words"], second["words"] = spoken(" Hello", " world.", start=0.0), spoken(" Bye.", start=5.0)
    silent["words"] = []
    second["language"] = "de"
    publish(store, pa.Table.from_pylist(rows, schema=results("a").schema), results("b"))
    words = query(store, 'FROM words ORDER BY uri, "start"').to_pylist()
    assert [(word["word"], word["start"], word["end"]) for word in words] == [
        (" Hello", 0.0, 0.5),
        (" world.", 0.5, 1.0),
        (" Bye.", 5.0, 5.5),
    ]
    assert [(word["segment_index"], word["word_index"], word["language"]) for word in words] == [
        (0, 0, "en"),
        (0, 1, "en"),
        (1, 0, "de"),
    ]
    assert {(word["uri"], word["media_id"], word["probability"]) for word in words} == {
        ("s3://archive/a.mp3", "a", 0.9)
    }
    joined = "SELECT s.text FROM words w JOIN segments s USING (part_id, segment_index) WHERE w.word = ' Bye.'"
    assert one(store, joined) == {"text": " part 0 segment 1"}


def test_coverage_is_a_share_of_what_was_decoded(store: Writer, results: Results) -> None:
    publish(store, results("a", parts=2, segments=3), results("b", parts=1, decoded_seconds=0.0))
    rows = query(store, "SELECT * FROM coverage ORDER BY uri").to_pylist()
    assert rows[0]["covered_seconds"] == 24.0 and rows[0]["share"] == pytest.approx(0.2)
    assert rows[1]["share"] is None


@pytest.mark.parametrize(
    ("evidence", "reasons"),
    [
        ({"avg_logprob": -0.71}, ["low_logprob"]),
        ({"compression_ratio": 2.41}, ["repetitive"]),
        ({"no_speech_prob": 0.61}, ["maybe_no_speech"]),
        ({"language_probability": 0.49}, ["unsure_language"]),
        ({"attempts": 2}, ["retried"]),
        ({"rules_fired": ["loop"]}, ["loop"]),
        ({"avg_logprob": None, "rules_fired": ["loop"], "attempts": 3}, ["loop", "retried"]),
    ],
)
def test_each_doubt_has_its_reason(
    store: Writer, results: Results, evidence: dict[str, Any], reasons: list[str]
) -> None:
    publish(store, doubtful(results, **evidence))
    row = one(store, "SELECT * FROM review_queue")
    assert sorted(row["reasons"]) == reasons and row["doubts"] == len(reasons)
    assert row["text"] == " part 0 segment 0"


def test_the_most_doubtful_segment_comes_first(store: Writer, results: Results) -> None:
    rows = results("a", parts=1, segments=3).to_pylist()
    for segment, logprob, attempts in zip(rows[0]["segment_rows"], (-0.8, -0.9, -0.75), (1, 1, 2), strict=True):
        segment |= {"avg_logprob": logprob, "attempts": attempts}
    publish(store, pa.Table.from_pylist(rows, schema=results("a").schema))
    assert query(store, "FROM review_queue")["segment_index"].to_pylist() == [2, 1, 0]


def test_objects_larger_and_more_than_the_read_ahead(
    destination: str, results: Results, monkeypatch: pytest.MonkeyPatch, writer_at: WriterAt
) -> None:
    store = writer_at(destination)
    store.publish([prepare(store.objects, results(f"m{number}", segments=number)) for number in range(12)])
    monkeypatch.setattr(snapshot, "AHEAD_FILES", 3)
    monkeypatch.setattr(snapshot, "SMALL_BYTES", 4_300)
    monkeypatch.setattr(snapshot, "CACHE_BYTES", 9_000)
    with closing(connect(store)) as connection:
        for _ in range(2):
            counts = select(
                connection,
                "SELECT count(*) AS n, count(DISTINCT part_id) AS parts, sum(len(tokens)) AS t FROM segments",
            )
            assert counts.to_pylist() == [{"n": 132, "parts": 22, "t": 396}]


def test_a_connection_stays_on_its_snapshot(store: Writer, results: Results) -> None:
    publish(store, results("a"))
    with closing(connect(store)) as connection:
        publish(store, results("b"))
        assert select(connection, "FROM parts").num_rows == 2
    assert query(store, "FROM parts").num_rows == 4


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nothing FROM segments", 'column "nothing" not found'),
        ("SELECT * FROM segmentz", "Table with name segmentz does not exist"),
        ("SELECT text::INT FROM segments", "Could not convert string"),
        ("SELECT * FROM results", "Table with name results does not exist"),
    ],
)
def test_a_wrong_query_is_one_sentence(store: Writer, results: Results, sql: str, said: str) -> None:
    publish(store, results("a"))
    with pytest.raises(UsageError, match=said) as caught:
        query(store, sql)
    assert "\n" not in str(caught.value)


def test_a_lost_object_is_the_destinations_fault(store: Writer, results: Results) -> None:
    publish(store, results("a"))
    (path,) = store.objects.list("segments/data")
    store.objects.delete(path)
    with pytest.raises(DestinationError, match="is missing"):
        query(store, "SELECT sum(len(text)) FROM segments")


def test_results_larger_than_memory_spill_and_leave_nothing(store: Writer, tmp_path: Path) -> None:
    with closing(connect(store)) as connection:
        spill = select(connection, "SELECT current_setting('temp_directory') AS t")["t"][0].as_py()
        rows = select(connection, "SELECT count(*) AS n FROM (SELECT random() AS r FROM range(2_000_000) ORDER BY r)")
        assert rows["n"][0].as_py() == 2_000_000
    assert not Path(spill).exists()
