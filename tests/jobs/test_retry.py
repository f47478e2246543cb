"""Parts done again: which a condition picks, that it can do nothing else, and what comes of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.retry import Request, execute, kept_config, pick, show_picked
from jobs.samples import assemble
from jobs.transcribe import Watcher
from model.errors import DestinationError, ModelError
from model.options import DecodeOptions
from pipeline import catalog
from pipeline.config import Config, ReadOptions, RunOptions
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import Writer

Call = Callable[..., Any]  # gives `Done` of conftest.py
Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def ask(store: Store, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.query(store, sql).to_pylist()
    return rows


# --- what is picked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "picked"),
    [
        ("true", [("a", 0), ("a", 1), ("b", 0), ("b", 1)]),
        ("status = 'failed'", []),
        ("uri LIKE '%/a.mp3' AND is_last", [("a", 1)]),
        ('"index" = 0 -- the first', [("a", 0), ("b", 0)]),
        ("part_id IN (SELECT part_id FROM segments WHERE text LIKE '% part 1 %') AND media_id = 'b'", [("b", 1)]),
    ],
)
def test_a_condition_over_parts_picks(store: Writer, where: str, picked: list[tuple[str, int]]) -> None:
    rows = pick(store, where).to_pylist()
    assert sorted((row["media_id"], row["index"]) for row in rows) == picked


def test_a_failure_is_picked_like_any_other_part(store: Writer, results: Results) -> None:
    store.publish([prepare(store.objects, results("c", parts=1, status="timeout", error="slow", segment_rows=None))])
    assert pick(store, "status <> 'ok'")["media_id"].to_pylist() == ["c"]


def test_a_part_that_is_shown_for_a_copy_is_its_owners(store: Writer, results: Results) -> None:
    copy = results("c", parts=1, same_as="a", status="same", part_id="copy", start=0.0, end=0.0, segment_rows=None)
    store.publish([prepare(store.objects, copy)])
    (row,) = pick(store, "media_id = 'c' AND is_last").to_pylist()
    assert (row["media_id"], row["index"]) == ("a", 1)
    assert pick(store, "is_last").num_rows == 2, "picked under both names, it is done once"


@pytest.mark.parametrize(
    "where",
    [
        "",
        "no_such_column = 1",
        "true); COPY (SELECT 1) TO '{outside}/new.csv'; SELECT (1",
        "true) ; DROP VIEW parts --",
        "uri IN (SELECT content FROM read_text('{outside}/secret.txt'))",
        "uri IN (SELECT content FROM read_text('/etc/passwd'))",
        "uri IN (SELECT file FROM glob('{outside}/*'))",
        "uri IN (SELECT column0 FROM read_csv('/etc/passwd'))",
        "uri = getenv('HOME')",
        "uri IN (FROM 'https://example.com/x.parquet')",
        "true) UNION (SELECT 1",
        "'",
    ],
)
def test_a_condition_can_do_nothing_else(earwitness: Call, store: Writer, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    before = store.objects.list()
    done = earwitness("retry", store.objects.url, "--where", where.format(outside=outside))
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1 and "secret" not in done.err.replace("secret.txt", "")
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert {path for path in store.objects.list() if not path.startswith("lease")} == {
        path for path in before if not path.startswith("lease")
    }


def test_what_would_be_done_is_told_by_reason(earwitness: Call, store: Writer, results: Results) -> None:
    slow = dict(status="timeout", error="ffmpeg was stopped: it needs more than 9 seconds.", segment_rows=None)
    store.publish([prepare(store.objects, results(name, parts=1, **slow)) for name in "cde"][:1])
    store.publish([prepare(store.objects, results("d", parts=1, **slow))])
    done = earwitness("retry", store.objects.url, "--where", "true", "--dry-run")
    assert (done.code, done.err) == (0, "")
    words = [line.split() for line in done.out.splitlines()]
    assert words[0] == ["status", "error", "parts", "files", "hours"]
    assert words[1] == ["ok", "4", "2", "0.07"]
    assert words[2][0] == "timeout" and words[2][-3:] == ["2", "2", "0.03"]
    done = earwitness("retry", store.objects.url, "--where", "true", "--dry-run", "--json")
    assert (done.code, done.err, json.loads(done.out)) == (0, "", {"parts": 6, "files": 4, "hours": 0.1})


def test_nothing_picked_is_nothing_done(earwitness: Call, store: Writer) -> None:
    done = earwitness("retry", store.objects.url, "--where", "status = 'failed'")
    assert (done.code, done.err) == (0, "")
    assert done.out == "No part fits the condition: nothing to do again.\n"


def test_without_tables_there_is_nothing_to_pick_from(earwitness: Call, tmp_path: Path) -> None:
    done = earwitness("retry", str(tmp_path / "nowhere"), "--where", "true")
    assert done.code == DestinationError.exit_code and "holds no transcripts" in done.err
    assert not (tmp_path / "nowhere").exists()


# --- as it was asked for ------------------------------------------------------------------------------------------

ASKED = Config(
    "tiny.en",
    DecodeOptions(temperatures=(0.0, 0.4), initial_prompt="inf", suppress_tokens=(5, -1), beam_size=2),
    ReadOptions(part_seconds=math.inf, retries=7, voice_activity=False),
    RunOptions(slots=3, model_actors=9, parts_per_shard=5, precision="float32"),
)


def test_the_configuration_of_a_generation_comes_back(store: Writer) -> None:
    """But for what was chosen for machines that may be others now."""
    store.add_run(ASKED, GENERATION)
    store.add_run(Config(), "f" * 16)
    elsewhere = replace(ASKED.run, slots=None, model_actors=None)
    assert kept_config(store, GENERATION) == replace(ASKED, run=elsewhere)
    assert kept_config(store, GENERATION).generation("x") == ASKED.generation("x")


def test_what_was_kept_before_an_option_came_has_its_default(store: Writer) -> None:
    kept = json.loads(json.dumps(asdict(Config())))
    del kept["read"]["channels"], kept["decode"]["beam_size"]
    run = {"run": "x", "generation": GENERATION, "config": kept}
    store.objects.create("runs/20260101T000000Z-x.json", json.dumps(run).encode())
    assert kept_config(store, GENERATION) == Config()


def test_a_generation_that_no_run_has_kept_cannot_be_done_again(store: Writer) -> None:
    store.close()
    with pytest.raises(DestinationError, match=f"keeps no run of generation {GENERATION}, so nobody knows"):
        execute(Request(store.objects.url, "true"), Watcher(), show_picked)


def test_other_weights_are_refused(store: Writer) -> None:
    store.add_run(replace(ASKED, read=ReadOptions(), decode=DecodeOptions()), GENERATION)
    store.close()
    with pytest.raises(ModelError, match=f"tiny.en are not those that generation {GENERATION} was made with"):
        execute(Request(store.objects.url, "true"), Watcher(), show_picked)


# --- whole --------------------------------------------------------------------------------------------------------

PARTS = """
    SELECT parse_filename(uri) AS file, "index", start, "end", is_last, status, attempts, segments
    FROM parts ORDER BY file, "index" """
SEGMENTS = "SELECT parse_filename(uri) AS file, start, text FROM segments ORDER BY file, start"


@pytest.mark.timeout(300)
def test_exactly_what_was_picked_is_done_again(earwitness: Call, place: Path) -> None:
    """One part of a file that stands there under two names, and a file that could not be read."""
    archive = place / "archive"
    for clip in archive.glob("*.wav"):
        (place / "clips" / "en").mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place / "clips" / "en")
    assemble(place / "clips", archive / "long.wav", repeat=2)
    shutil.copy(archive / "long.wav", archive / "länger.wav")
    (archive / "list.mp3").write_text("bread, milk")
    transcribe = ("transcribe", "archive", "--to", "tables", "--model", "tiny.en", "--part-seconds", "5")
    assert earwitness(*transcribe).code == 0
    store = Store.open(str(place / "tables"))
    parts, segments = ask(store, PARTS), ask(store, SEGMENTS)
    stored = len(ask(store, "FROM all_parts"))
    one, other = ([row | {"file": ""} for row in parts if row["file"] == name] for name in ("long.wav", "länger.wav"))
    assert one == other and len(one) >= 2

    where = "parse_filename(uri) = 'long.wav' AND \"index\" = 1 OR status = 'no_audio'"
    done = earwitness("retry", "tables", "--where", where)
    assert done.code == 0, done.err

    picked = {("long.wav", 1), ("länger.wav", 1), ("list.mp3", 0)}
    expected = [row | {"attempts": 2 if (row["file"], row["index"]) in picked else 1} for row in parts]
    assert ask(store, PARTS) == expected
    assert ask(store, SEGMENTS) == segments
    assert len(ask(store, "FROM all_parts")) == stored + 2
    assert [run["generation"] for run in store.runs()] == [store.runs()[0]["generation"]] * 2
    done = earwitness(*transcribe)
    assert (done.code, done.out.startswith("Nothing to do")) == (0, True)

    (owner,) = {row["uri"] for row in ask(store, "FROM all_parts WHERE same_as IS NULL AND uri LIKE '%/l%.wav'")}
    Path(owner.removeprefix("file://")).unlink()  # its bytes are still there under the other name
    done = earwitness("retry", "tables", "--where", "parse_filename(uri) = 'long.wav' AND \"index\" = 0")
    assert done.code == 0, done.err
    expected = [
        row | {"attempts": 3}
        if row["file"].startswith("l") and row["file"] != "list.mp3" and row["index"] == 0
        else row
        for row in expected
    ]
    assert ask(store, PARTS) == expected
    assert ask(store, SEGMENTS) == segments
