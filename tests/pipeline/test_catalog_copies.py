"""Of several attempts at a part the views show one, of a copy what its owner has: nothing hides, nothing doubles."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalog import query
from pipeline.config import Config, ReadOptions
from pipeline.records import MEDIA
from pipeline.writer import Writer
from tests.pipeline.tables import Results, doubtful, one, publish, spoken, with_rules
from tests.writers import WriterAt


@pytest.fixture
def store(tmp_path: Path, writer_at: WriterAt) -> Writer:
    return writer_at(str(tmp_path / "archive"))


# --- attempts -----------------------------------------------------------------------------------------------------


def test_a_failed_retry_never_hides_text(store: Writer, results: Results) -> None:
    failed = dict(status="failed", error="gone", segment_rows=None, segments=0, is_last=True)
    publish(store, results("a", parts=3), results("a", parts=3, attempts=2, **failed).slice(1, 1))
    assert query(store, "FROM segments").num_rows == 9
    assert one(store, "SELECT complete, parts_total, parts_failed FROM files") == {
        "complete": True,
        "parts_total": 3,
        "parts_failed": 0,
    }
    assert query(store, "FROM failures").num_rows == 0
    assert query(store, "FROM all_parts WHERE status = 'failed'").num_rows == 1


def test_a_retry_with_text_replaces_its_part_and_no_other(store: Writer, results: Results) -> None:
    again = with_rules(results("a", parts=3, attempts=2), ["again"]).slice(1, 1)
    publish(store, results("a", parts=3), again)
    rows = query(
        store, "SELECT part_id, count(*) AS n, any_value(rules_fired) AS r FROM segments GROUP BY 1 ORDER BY 1"
    )
    assert [(row["n"], row["r"]) for row in rows.to_pylist()] == [(3, []), (3, ["again"]), (3, [])]
    assert query(store, 'FROM parts ORDER BY "index"')["attempts"].to_pylist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("status", "attempts", "quarantined"), [("failed", 3, False), ("timeout", 4, True), ("failed", 4, True)]
)
def test_what_failed_too_often_is_quarantined(
    store: Writer, results: Results, status: str, attempts: int, quarantined: bool
) -> None:
    store.add_run(Config(read=ReadOptions(retries=3)), "0" * 16)
    for attempt in range(1, attempts + 1):
        publish(store, results("a", parts=1, status=status, attempts=attempt, segment_rows=None))
    publish(store, results("b", attempts=attempts))
    assert one(store, "SELECT quarantined FROM failures") == {"quarantined": quarantined}
    rows = query(store, "SELECT media_id, quarantined FROM files ORDER BY media_id").to_pylist()
    assert rows == [{"media_id": "a", "quarantined": quarantined}, {"media_id": "b", "quarantined": False}]


def test_a_verdict_that_is_final_is_no_quarantine(store: Writer, results: Results) -> None:
    publish(store, results("a", parts=1, status="no_audio", attempts=9, segment_rows=None))
    assert one(store, "SELECT quarantined FROM failures") == {"quarantined": False}


# --- copies -------------------------------------------------------------------------------------------------------

MEDIA_OF_COPY = {"media_id": "copy", "uri": "s3://archive/copy.mp3", "bytes": 9}


def _copy(results: Results, owner: str = "a", **changes: Any) -> pa.Table:
    """The row of an object with the same bytes as another."""
    none = dict(part_id="the copy", start=0.0, end=0.0, segment_rows=None, segments=0, covered_seconds=0.0)
    return results("copy", parts=1, same_as=owner, status="same", decoded_seconds=None, **none | changes)


def _shown(store: Writer, view: str, media: str, *but: str) -> list[dict[str, Any]]:
    """The rows that a view has of one file, in order, without the columns by which it is known."""
    names = ", ".join(("media_id", "uri", *but))
    order = {"parts": '"index"', "review_queue": "start, text"}.get(view, "ALL")
    where = f"uri = 's3://archive/{media}.mp3'"
    return query(store, f"SELECT * EXCLUDE ({names}) FROM {view} WHERE {where} ORDER BY {order}").to_pylist()


def test_a_copy_is_shown_with_all_that_its_owner_has(store: Writer, results: Results) -> None:
    publish(store, doubtful(results, avg_logprob=-0.9, words=spoken(" Hello", start=0.0)), _copy(results))
    for view, but in {
        "segments": ["part_id"],
        "words": ["part_id"],
        "parts": ["part_id", "same_as"],
        "review_queue": ["part_id"],
        "files": ["version", "bytes"],
        "coverage": [],
    }.items():
        own, copied = (_shown(store, view, media, *but) for media in ("a", "copy"))
        assert own == copied and own, view
    assert one(store, "SELECT count(DISTINCT media_id) AS m, count(DISTINCT part_id) AS p FROM segments") == {
        "m": 2,
        "p": 2,
    }
    assert one(store, "SELECT same_as FROM parts WHERE media_id = 'copy'") == {"same_as": "a"}
    assert one(store, "SELECT same_as FROM parts WHERE media_id = 'a'") == {"same_as": None}


def test_joined_by_part_nothing_doubles(store: Writer, results: Results) -> None:
    publish(store, results("a", parts=2), _copy(results), results("b"))
    joined = query(
        store, "SELECT s.media_id, p.media_id AS of FROM segments s JOIN parts p USING (part_id)"
    ).to_pylist()
    assert len(joined) == 3 * 2 * 3
    assert all(row["media_id"] == row["of"] for row in joined)


def test_until_its_owner_is_whole_a_copy_is_as_far_as_that(store: Writer, results: Results) -> None:
    store.add_media(pa.Table.from_pylist([MEDIA_OF_COPY | {"seen_at": datetime.now(UTC)}], schema=MEDIA))
    publish(store, _copy(results))
    state = "SELECT status, complete, parts_done FROM files WHERE media_id = 'copy'"
    assert one(store, state) == {"status": "pending", "complete": False, "parts_done": 0}
    assert query(store, "FROM parts").num_rows == query(store, "FROM segments").num_rows == 0
    whole = results("a", parts=2)
    publish(store, whole.slice(0, 1))
    assert one(store, state) == {"status": "ok", "complete": False, "parts_done": 1}
    publish(store, whole.slice(1, 1))
    assert one(store, state) == {"status": "ok", "complete": True, "parts_done": 2}


def test_a_copy_that_has_text_of_its_own_is_no_copy_any_more(store: Writer, results: Results) -> None:
    """Its owner left the archive before it was done."""
    own = with_rules(results("copy", parts=2, attempts=2), ["own"])
    publish(store, results("a", parts=2).slice(0, 1), _copy(results), own)
    assert query(store, "FROM segments WHERE media_id = 'copy'")["rules_fired"].to_pylist() == [["own"]] * 6
    assert one(store, "SELECT complete, parts_total FROM files WHERE media_id = 'copy'") == {
        "complete": True,
        "parts_total": 2,
    }
    assert query(store, "FROM parts WHERE same_as IS NOT NULL").num_rows == 0


def test_a_copy_that_could_not_be_read_again_still_shows_the_text(store: Writer, results: Results) -> None:
    gone = results("copy", parts=1, attempts=2, status="failed", segment_rows=None)
    publish(store, results("a", parts=2), _copy(results), gone)
    assert query(store, "FROM segments WHERE media_id = 'copy'").num_rows == 6
    assert query(store, "FROM failures").num_rows == 0


def test_what_became_of_the_owner_became_of_the_copy(store: Writer, results: Results) -> None:
    publish(store, results("a", parts=1, status="no_audio", error="no sound", segment_rows=None), _copy(results))
    rows = query(store, "SELECT uri, status, error FROM failures ORDER BY uri").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("s3://archive/a.mp3", "no_audio", "no sound"),
        ("s3://archive/copy.mp3", "no_audio", "no sound"),
    ]


def test_a_copy_follows_its_owner_into_the_next_generation(store: Writer, results: Results) -> None:
    first, second = "1" * 16, "2" * 16
    publish(store, results("a", generation=first), _copy(results, generation=first))
    new = results("a", generation=second)
    publish(store, new.slice(0, 1), _copy(results, generation=second))
    generations = "SELECT DISTINCT media_id, generation FROM segments ORDER BY media_id"
    assert query(store, generations)["generation"].to_pylist() == [first, first]
    publish(store, new.slice(1, 1))
    assert query(store, generations)["generation"].to_pylist() == [second, second]
    assert query(store, "FROM segments").num_rows == 12
    assert query(store, "FROM all_segments").num_rows == 24
