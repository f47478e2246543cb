"""What readers tell each other: by itself, from many processes, and where Ray loses a reader again and again."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data import ActorPoolStrategy, DataContext

from jobs.cluster import Machines
from model.errors import SourceError
from pipeline.config import ReadOptions
from pipeline.cuts import PcmPart
from pipeline.parts import ReadParts
from pipeline.records import MANIFEST, OWNERS
from pipeline.register import MAX_DEATHS, Claims, Register
from pipeline.tally import Tally
from tests.pipeline.reading import GENERATION, N_MELS, manifest, noise, read, write_wav

OPTIONS = ReadOptions(voice_activity=False)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def owners(**content: str) -> pa.Table:
    """The ledger's word on whose content this is: media_id by content."""
    rows = [{"sha256": bytes.fromhex(sha256(text)), "media_id": owner} for text, owner in content.items()]
    return pa.Table.from_pylist(rows, schema=OWNERS)


# --- by itself ----------------------------------------------------------------------------------------------------


def test_content_belongs_to_whoever_asks_first_and_the_answer_never_changes() -> None:
    claims = Claims()
    assert claims.claim(sha256("one"), "a") == "a"
    assert claims.claim(sha256("one"), "b") == "a"
    assert claims.claim(sha256("two"), "b") == "b"
    assert [claims.claim(sha256("one"), name) for name in "ba"] == ["a", "a"]


def test_what_the_ledger_knows_comes_before_everybody() -> None:
    claims = Claims(owners(one="x", two="y"))
    assert [claims.claim(sha256(text), "a") for text in ("one", "two", "three")] == ["x", "y", "a"]


@given(st.sets(st.text(min_size=1, max_size=3), max_size=40), st.text(max_size=3))
def test_any_number_of_known_contents_are_found_and_no_other(known: set[str], asked: str) -> None:
    claims = Claims(owners(**{text: f"of {text}" for text in known}))
    assert {text: claims.claim(sha256(text), "new") for text in known} == {text: f"of {text}" for text in known}
    assert claims.claim(sha256(asked), "new") == (f"of {asked}" if asked in known else "new")


def test_a_digest_that_ends_in_zeros_is_not_mistaken_for_another() -> None:
    """NumPy cuts zeros off the end of its byte strings."""
    rows = [{"sha256": bytes([1] + [0] * 31), "media_id": "x"}, {"sha256": bytes([1, 2] + [0] * 30), "media_id": "y"}]
    claims = Claims(pa.Table.from_pylist(rows, schema=OWNERS))
    asked = [bytes([1] + [0] * 31), bytes([1, 2] + [0] * 30), bytes([1, 1] + [0] * 30), bytes(32)]
    assert [claims.claim(digest.hex(), "new") for digest in asked] == ["x", "y", "new", "new"]


def test_an_object_is_given_up_after_so_many_deaths_behind_what_anybody_had_of_it() -> None:
    claims = Claims()
    for rows in (1, 3, 2):
        assert claims.opened("a") is None
        for number in range(1, rows + 1):
            claims.handed_on("a", number)
    assert MAX_DEATHS == 3
    assert [claims.opened("a"), claims.opened("b")] == [3, None]


def test_an_object_that_was_survived_is_never_given_up() -> None:
    claims = Claims()
    for _ in range(5 * MAX_DEATHS):
        assert claims.opened("a") is None
        claims.closed("a")
    for _ in range(MAX_DEATHS - 1):  # killed by something else, now and then
        assert claims.opened("a") is None
    for _ in range(5 * MAX_DEATHS):
        assert claims.opened("a") is None
        claims.closed("a")


def test_what_was_given_up_stays_so() -> None:
    claims = Claims()
    for _ in range(MAX_DEATHS):
        claims.opened("a")
    for _ in range(3):
        assert claims.opened("a") == 0
        claims.closed("a")


def test_behind_the_deadline_nothing_is_begun_and_what_was_begun_goes_on() -> None:
    claims = Claims(deadline=datetime.now(UTC) + timedelta(seconds=0.2))
    assert claims.begins("early")
    claims.opened("early")
    time.sleep(0.3)
    assert [claims.begins(name) for name in ("early", "late", "late", "later")] == [True, False, False, False]
    assert claims.turned_away() == 2
    assert Claims().begins("any") and Claims().turned_away() == 0


def test_readers_that_do_not_even_survive_giving_up_end_the_run() -> None:
    claims = Claims()
    for _ in range(2 * MAX_DEATHS):
        claims.opened("a")
    with pytest.raises(SourceError, match="a of the view media ends every process that reads it: take it out"):
        claims.opened("a")


# --- the reader ---------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Ten seconds: three parts."""
    return write_wav(tmp_path / "talk.wav", noise(10.0))


def rows_by_claims(claims: Claims, *paths: Path, **changes: Any) -> list[dict[str, Any]]:
    rows = [row | changes for row in manifest(*paths).to_pylist()]
    reader = ReadParts(N_MELS, GENERATION, OPTIONS, register=claims)
    return [table.to_pylist()[0] for table in reader(pa.Table.from_pylist(rows, schema=MANIFEST))]


def test_a_file_that_comes_too_late_is_not_read_and_one_that_was_begun_is(talk: Path) -> None:
    """A reader that died in it before the deadline left rows that its next one must give again."""
    claims = Claims(deadline=datetime.now(UTC))
    assert rows_by_claims(claims, talk) == [] and claims.turned_away() == 1
    begun = Claims(deadline=datetime.now(UTC))
    (media,) = manifest(talk).to_pylist()
    begun.opened(media["media_id"])
    assert len(rows_by_claims(begun, talk)) == 3 and begun.turned_away() == 0


def test_the_same_bytes_under_another_name_are_one_row(talk: Path) -> None:
    twin = Path(shutil.copy(talk, talk.with_name("zwilling.wav")))
    *parts, copy = rows_by_claims(Claims(), talk, twin)
    assert len(parts) == 3 and {row["same_as"] for row in parts} == {None}
    assert copy["uri"] == f"file://{twin}" and copy["same_as"] == parts[0]["media_id"] != copy["media_id"]
    assert (copy["index"], copy["is_last"], copy["status"], copy["error"]) == (0, True, "same", None)
    assert copy["sha256"] == parts[-1]["sha256"] == hashlib.sha256(talk.read_bytes()).hexdigest()
    assert (copy["mel"], copy["start"], copy["end"]) == (None, 0.0, 0.0)


@pytest.mark.parametrize("begun", [dict(done_parts=[0, 1]), dict(done_parts=[], parts_total=3)])
def test_a_file_that_has_parts_of_its_own_goes_on_with_them(talk: Path, begun: dict[str, Any]) -> None:
    known = pa.table({"sha256": [hashlib.sha256(talk.read_bytes()).digest()], "media_id": ["another"]})
    claims = Claims(known.cast(OWNERS))
    assert [row["same_as"] for row in rows_by_claims(claims, talk)] == ["another"]
    rows = rows_by_claims(claims, talk, **begun)
    assert {row["same_as"] for row in rows} == {None} and rows[-1]["is_last"]


@pytest.mark.parametrize("had", range(4))
def test_a_file_that_is_given_up_gives_again_what_it_gave_and_a_failure(talk: Path, had: int) -> None:
    claims = Claims()
    (media_id,) = manifest(talk)["media_id"].to_pylist()
    for _ in range(MAX_DEATHS):
        claims.opened(media_id)
        claims.handed_on(media_id, had)
    rows, whole = rows_by_claims(claims, talk), read(manifest(talk), OPTIONS)
    assert [row["part_id"] for row in rows[:had]] == [row["part_id"] for row in whole[:had]]
    if had == len(whole):  # the reader died when all was handed on
        assert len(rows) == had
        return
    failure = rows[-1]
    assert (failure["index"], failure["is_last"], failure["status"], failure["mel"]) == (had, True, "failed", None)
    assert failure["error"] == "It ended its reader 3 times, and is left alone in this run."
    assert failure["start"] == failure["end"] == (whole[had - 1]["end"] if had else 0.0)


def test_where_a_retry_is_given_up_no_part_is_made_up(talk: Path) -> None:
    claims = Claims()
    (media_id,) = manifest(talk)["media_id"].to_pylist()
    for _ in range(MAX_DEATHS):
        claims.opened(media_id)
    (failure,) = rows_by_claims(claims, talk, done_parts=[0, 2], parts_total=3)
    assert (failure["index"], failure["status"]) == (1, "failed")
    assert rows_by_claims(claims, talk, done_parts=[0, 1, 2], parts_total=3) == []


def test_bytes_that_mean_something_by_their_name_are_nobody_elses(tmp_path: Path) -> None:
    """Nothing in G.722 says what it is: under another name it is no audio."""
    nameless = tmp_path / "a.bin"
    nameless.write_bytes(np.random.default_rng(0).bytes(40_000))
    named = Path(shutil.copy(nameless, tmp_path / "b.g722"))
    found = {row["uri"].rpartition("/")[2]: row for row in rows_by_claims(Claims(), nameless, named)}
    assert (found["a.bin"]["status"], found["a.bin"]["end"]) == ("no_audio", 0.0)
    assert found["b.g722"]["same_as"] is None and found["b.g722"]["end"] > 1.0


def test_where_the_end_is_known_a_failure_stands_in_the_place_of_a_part(talk: Path) -> None:
    """And nowhere when none is missing: a failure behind the end would keep the file from ever being whole."""
    changed = dict(version="another", done_parts=[0, 2])
    for total in (3, None):
        (failure,) = rows_by_claims(Claims(), talk, **changed, parts_total=total)
        assert (failure["index"], failure["status"], failure["is_last"]) == (1, "failed", True)
    everything = dict(version="another", done_parts=[0, 1, 2])
    assert rows_by_claims(Claims(), talk, **everything, parts_total=3) == []
    (failure,) = rows_by_claims(Claims(), talk, **everything, parts_total=None)
    assert failure["index"] == 3, "where it may go on behind what is there"


# --- many processes -----------------------------------------------------------------------------------------------


def test_one_answer_for_all_processes(machines: Machines) -> None:
    register = Register.start(owners(known="ledger"))

    @ray.remote(num_cpus=0.25)
    def ask_as(name: str) -> tuple[str, str]:
        return register.claim(sha256("new"), name), register.claim(sha256("known"), name)

    answers = ray.get([ask_as.remote(f"reader {number}") for number in range(8)])
    (new,) = {first for first, _ in answers}
    assert new.startswith("reader ") and {second for _, second in answers} == {"ledger"}


class Mortal(ReadParts):
    """A reader that a file named deadly kills at its third part."""

    def _row(self, media: dict[str, Any], part: PcmPart) -> dict[str, Any]:
        if "deadly" in media["uri"] and part.index == 2 and len(part.pcm):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._row(media, part)


@pytest.fixture
def small_blocks(machines: Machines) -> Iterator[None]:
    """Rows leave a reader one by one, so that some are gone when it dies."""
    context = DataContext.get_current()
    before = context.target_max_block_size
    context.target_max_block_size = 1 << 16
    yield
    context.target_max_block_size = before


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.timeout(240)
def test_what_kills_its_reader_takes_nothing_else_with_it(tmp_path: Path) -> None:
    """One task reads all: two files, the deadly one, a copy of the first, and two more; it is run again four times."""
    for number, name in enumerate(["a", "b", "deadly", "e", "f"]):
        write_wav(tmp_path / f"{name}.wav", noise(14.0, seed=number))
    shutil.copy(tmp_path / "a.wav", tmp_path / "deadly copy of a.wav")  # never read to its third part
    given = manifest(*sorted(tmp_path.iterdir()))
    arguments = [N_MELS, GENERATION, OPTIONS, Tally.start().read, Register.start()]
    found = ray.data.from_arrow([given]).map_batches(
        Mortal,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=1),
        num_cpus=0.5,
        batch_size=None,
        batch_format="pyarrow",
    )
    columns = ["uri", "index", "part_id", "is_last", "status", "same_as", "mel"]
    rows = [row for batch in found.iter_batches(batch_size=None, batch_format="pyarrow") for row in batch.to_pylist()]

    expected = read(given, OPTIONS)
    deadly = [row for row in expected if row["uri"].endswith("deadly.wav")]
    place = expected.index(deadly[2])
    assert len(deadly) == 4
    failure = rows.pop(place)
    assert (failure["uri"], failure["index"], failure["status"]) == (deadly[2]["uri"], 2, "failed")
    assert failure["error"] == "It ended its reader 3 times, and is left alone in this run."
    del expected[place : place + 2]
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in expected]
