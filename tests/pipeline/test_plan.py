"""What a run has to do: the listed objects minus the ledger, and the manifest in blocks for the readers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import SourceError
from pipeline import ledger as planning
from pipeline import plan as planner
from pipeline.config import ReadOptions
from pipeline.inventory import LISTING, PCM_BYTES_PER_SECOND, MediaObject, estimate_seconds, list_media, media_id
from pipeline.plan import MOST_ROOTS, Choice, Plan, Seen
from pipeline.records import FAILURES, MANIFEST, MEDIA, OWNERS, PARTS, WITH_TEXT

SLOTS = 16
SHA256 = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
OPTIONS = ReadOptions()
LEDGER = pa.schema([PARTS.field(name) for name in planning.LEDGER])
NOTHING = LEDGER.empty_table()
SECONDS = 600.0
SEEN_BEFORE = datetime(2026, 1, 3, tzinfo=UTC)


def wav(name: str, seconds: float = SECONDS, version: str = "1", modified_at: datetime | None = None) -> MediaObject:
    """A wave file that is estimated at so many seconds."""
    uri, size = f"s3://archive/{name}.wav", int(seconds * PCM_BYTES_PER_SECOND)
    modified_at = modified_at or datetime(2026, 1, 2, tzinfo=UTC)
    return MediaObject(media_id(uri, version, size), uri, version, size, modified_at)


def ledger(*rows: dict[str, Any]) -> pa.Table:
    """What the store says of parts; each row names what differs from the first part of one file, done at once."""
    usual = dict(media_id=id_of("a"), index=0, is_last=False, status="ok", attempts=1, part_seconds=60.0)
    return pa.Table.from_pylist([usual | row for row in rows], schema=LEDGER)


def whole(name: str, parts: int = 1, seconds: float = SECONDS) -> list[dict[str, Any]]:
    return [dict(media_id=id_of(name, seconds), index=index, is_last=index == parts - 1) for index in range(parts)]


def id_of(name: str, seconds: float = SECONDS) -> str:
    return wav(name, seconds).media_id


NAMES = [*"abcd", "gone", "half", "new"]


def names(found: pa.Table) -> list[str]:
    known = {id_of(name): name for name in NAMES}
    return [known[media] for media in found["media_id"].to_pylist()]


def listing(objects: Iterable[MediaObject], at_once: int = 2) -> Iterator[pa.RecordBatch]:
    """Objects as the inventory hands them on, in batches that are small here."""
    rows = [{name: getattr(media, name) for name in LISTING.names} for media in objects]
    for first in range(0, len(rows), at_once):
        yield pa.RecordBatch.from_pylist(rows[first : first + at_once], schema=LISTING)


def media_table(*objects: MediaObject, seen_at: datetime = SEEN_BEFORE) -> pa.Table:
    return pa.Table.from_pylist([vars(media) | {"seen_at": seen_at} for media in objects], schema=MEDIA)


@contextmanager
def tables(done: pa.Table, media: pa.Table | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """What a store would show the planner; a media row for each file of the ledger, where nothing else is said."""
    if media is None:
        known = set(done["media_id"].to_pylist())
        media = media_table(*(wav(name) for name in NAMES if id_of(name) in known))
    with planning.connected() as connection:
        planning.with_tables(connection, done, media)
        yield connection


def plan(
    objects: Iterable[MediaObject],
    done: pa.Table,
    options: ReadOptions,
    slots: int,
    media: pa.Table | None = None,
    **choice: Any,
) -> Plan:
    with tables(done, media) as connection:
        return planner.plan(listing(objects), connection, Choice(options, slots, **choice))


# --- what is pending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there_is", [True, False], ids=["empty ledger", "no destination yet"])
def test_where_nothing_is_done_everything_is_pending(there_is: bool) -> None:
    with tables(NOTHING) if there_is else planning.ledger_of(None, "0" * 16) as connection:
        planned = planner.plan(listing([wav("a"), wav("b")]), connection, Choice(OPTIONS, SLOTS))
    assert (planned.listed, planned.pending, planned.audio_seconds) == (2, 2, 1200.0)
    assert planned.pending_bytes == 2 * wav("a").bytes
    assert planned.manifest.schema == MANIFEST
    assert planned.manifest.to_pylist()[0] == {
        "media_id": id_of("a"),
        "uri": "s3://archive/a.wav",
        "version": "1",
        "bytes": wav("a").bytes,
        "part_seconds": 30.0,
        "done_parts": [],
        "parts_total": None,
        "others": None,
        "attempt": 1,
    }


def test_what_is_complete_is_seen_and_not_read_again() -> None:
    planned = plan([wav("a"), wav("b")], ledger(*whole("a", parts=3)), OPTIONS, SLOTS)
    assert names(planned.manifest) == ["b"]
    assert planned.listed == 2 and planned.audio_seconds == 600.0
    assert planned.media.schema == MEDIA
    assert names(planned.media) == ["b"], "the other is known"
    assert all(seen.tzinfo is not None for seen in planned.media["seen_at"].to_pylist())


def test_an_archive_that_is_done_needs_no_run() -> None:
    planned = plan([wav("a"), wav("b")], ledger(*whole("a"), *whole("b", parts=2)), OPTIONS, SLOTS)
    assert (planned.pending, planned.pending_bytes, planned.audio_seconds) == (0, 0, 0.0)
    assert planned.manifest.schema == MANIFEST


def test_a_file_half_done_keeps_its_cut_and_skips_what_it_has() -> None:
    done = ledger(dict(index=3), dict(index=0), dict(index=1))
    planned = plan([wav("a"), wav("b")], done, ReadOptions(part_seconds=300.0), SLOTS)
    half, fresh = planned.manifest.to_pylist()
    assert (half["part_seconds"], half["done_parts"], half["attempt"]) == (60.0, [0, 1, 3], 1)
    assert (fresh["part_seconds"], fresh["done_parts"]) == (300.0, [])


def test_a_gap_before_the_last_part_is_pending() -> None:
    rows = [row for row in whole("a", parts=4) if row["index"] != 2]
    assert plan([wav("a")], ledger(*rows), OPTIONS, SLOTS).manifest["done_parts"].to_pylist() == [[0, 1, 3]]


@pytest.mark.parametrize("parts", [61, 62, 63, 64, 200])
def test_a_file_of_many_parts_is_done_when_all_are(parts: int) -> None:
    rows = whole("a", parts)
    assert plan([wav("a")], ledger(*rows), OPTIONS, SLOTS).pending == 0
    for gap in (0, parts // 2, parts - 1):
        twin = rows[1 if gap != 1 else 0]
        found = plan([wav("a")], ledger(*(row for row in rows if row["index"] != gap), twin), OPTIONS, SLOTS)
        assert found.manifest["done_parts"].to_pylist() == [[index for index in range(parts) if index != gap]]


@settings(max_examples=25, deadline=None)
@given(parts=st.integers(1, 12), data=st.data())
def test_a_file_is_pending_until_its_last_part_is_in(parts: int, data: st.DataObject) -> None:
    stored = data.draw(st.sets(st.integers(0, parts - 1)))
    rows = [row for row in whole("a", parts) if row["index"] in stored]
    order = data.draw(st.permutations(rows))
    planned = plan([wav("a")], ledger(*order), OPTIONS, SLOTS)
    expected = [] if len(stored) == parts else [sorted(stored)]
    assert planned.manifest["done_parts"].to_pylist() == expected


def test_how_many_parts_there_are_is_passed_on_where_it_is_known() -> None:
    """So that a failure is not put behind the end of the file."""
    gap = [row for row in whole("a", parts=4) if row["index"] != 2]
    open_end = [dict(media_id=id_of("b"), index=0), dict(media_id=id_of("b"), index=1, is_last=True, status="failed")]
    planned = plan([wav("a"), wav("b"), wav("c")], ledger(*gap, *open_end), OPTIONS, SLOTS)
    assert planned.manifest["parts_total"].to_pylist() == [4, None, None]


def test_what_left_the_archive_is_nobodys_business() -> None:
    planned = plan([wav("b")], ledger(*whole("gone")), OPTIONS, SLOTS)
    assert names(planned.manifest) == names(planned.media) == ["b"]


def test_an_object_that_changed_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(bytes(4000))
    (before,) = list_media([str(path)])
    done = ledger(dict(media_id=before.media_id, is_last=True))
    assert plan(list_media([str(path)]), done, OPTIONS, SLOTS, media_table(before)).pending == 0
    path.write_bytes(bytes(6000))
    (changed,) = plan(list_media([str(path)]), done, OPTIONS, SLOTS, media_table(before)).manifest.to_pylist()
    assert changed["uri"] == before.uri and changed["bytes"] == 6000
    assert changed["media_id"] != before.media_id
    assert (changed["done_parts"], changed["attempt"]) == ([], 1)


# --- what was seen ------------------------------------------------------------------------------------------------


def test_new_changed_and_missing_objects_are_counted() -> None:
    known = media_table(*map(wav, "abc"))
    listed = [wav("a"), wav("b", version="2"), wav("new")]
    planned = plan(listed, NOTHING, OPTIONS, SLOTS, known, roots=["s3://archive/"])
    assert planned.seen == Seen(listed=3, new=1, changed=1, missing=1)
    assert planned.media["uri"].to_pylist() == ["s3://archive/b.wav", "s3://archive/new.wav"]
    assert planned.media["version"].to_pylist() == ["2", "1"]


def test_a_version_that_comes_back_is_noted_and_not_read_again() -> None:
    """It is whole, and yet the table of media says that another one stands there now."""
    between = media_table(wav("a", version="2"), seen_at=SEEN_BEFORE + timedelta(days=1))
    known = pa.concat_tables([media_table(wav("a")), between])
    planned = plan([wav("a")], ledger(*whole("a")), OPTIONS, SLOTS, known)
    assert (planned.pending, planned.seen.changed, names(planned.media)) == (0, 1, ["a"])
    noted = pa.concat_tables([known, planned.media])
    again = plan([wav("a")], ledger(*whole("a")), OPTIONS, SLOTS, noted)
    assert (again.pending, again.seen.changed, again.media.num_rows) == (0, 0, 0)


def test_only_what_is_below_the_sources_can_be_missing() -> None:
    known = media_table(*map(wav, "abc"))
    for root, missing in (("s3://archive/", 2), ("s3://archive/a.wav/", 0), ("s3://archive/a", 0)):
        assert plan([wav("a")], NOTHING, OPTIONS, SLOTS, known, roots=[root]).seen.missing == missing
    quoted = plan([wav("a")], NOTHING, OPTIONS, SLOTS, known, roots=["s3://archive/", "s3://o'clock/"])
    assert quoted.seen.missing == 2
    many = [f"s3://archive/{number}/" for number in range(MOST_ROOTS + 1)]
    assert plan([wav("a")], NOTHING, OPTIONS, SLOTS, known, roots=many).seen.missing is None


def test_what_listing_raises_is_raised() -> None:
    def broken() -> Iterator[MediaObject]:
        yield from map(wav, "abcd")
        raise SourceError("The archive is gone.")

    with pytest.raises(SourceError, match="^The archive is gone.$"):
        plan(broken(), NOTHING, OPTIONS, SLOTS)


@settings(max_examples=40, deadline=None)
@given(uri=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), size=st.integers(0, 2**50))
def test_sql_and_python_agree_on_a_name_and_on_its_seconds(uri: str, size: int) -> None:
    media = MediaObject(media_id(uri, "v", size), uri, "v", size, None)
    (row,) = plan([media], NOTHING, OPTIONS, SLOTS).manifest.to_pylist()
    assert row["media_id"] == media.media_id
    planned = plan([MediaObject("", f"{uri}.Mp3", "v", size, None)], NOTHING, OPTIONS, SLOTS)
    assert planned.audio_seconds == pytest.approx(estimate_seconds(f"{uri}.Mp3", size))


# --- the bounds of a night ----------------------------------------------------------------------------------------


def aged(name: str, days: int, seconds: float = SECONDS) -> MediaObject:
    return wav(name, seconds, modified_at=datetime(2026, 2, 28, tzinfo=UTC) - timedelta(days=days))


@pytest.mark.parametrize(
    ("most", "chosen"), [(math.inf, "bca"), (1201.0, "bca"), (1200.0, "bc"), (601.0, "bc"), (600.0, "b"), (1.0, "b")]
)
def test_the_oldest_come_first_until_the_hours_are_reached(most: float, chosen: str) -> None:
    """The one that reaches them is done whole, or a file longer than a night would never be."""
    planned = plan([aged("a", 1), aged("b", 3), aged("c", 2)], NOTHING, OPTIONS, SLOTS, most_seconds=most)
    assert names(planned.manifest) == list(chosen)
    assert (planned.postponed, planned.audio_seconds) == (3 - len(chosen), SECONDS * len(chosen))
    assert planned.media.num_rows == 3, "seen all the same"


def test_an_owner_that_is_postponed_is_not_waited_for() -> None:
    done = ledger(dict(index=0), copy("b", "a"))
    listed = [aged("a", 1), aged("b", 2)]
    first = plan(listed, done, OPTIONS, SLOTS, most_seconds=1.0)
    assert names(first.manifest) == ["b"] and first.owners.num_rows == 0
    assert names(plan(listed, done, OPTIONS, SLOTS, most_seconds=math.inf).owners) == ["a"]


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["failed", "timeout"])
def test_a_failure_is_tried_again_and_counted(status: str) -> None:
    failed = ledger(dict(index=0), dict(index=1, is_last=True, status=status, attempts=2))
    (row,) = plan([wav("a")], failed, ReadOptions(retries=2), SLOTS).manifest.to_pylist()
    assert (row["attempt"], row["done_parts"], row["part_seconds"]) == (3, [0], 60.0)


def failures(attempts: Iterable[int], name: str = "a", **row: Any) -> list[dict[str, Any]]:
    """What runs leave of a file that they cannot read."""
    failed = dict(media_id=id_of(name), is_last=True, status="failed") | row
    return [failed | dict(attempts=attempt) for attempt in attempts]


@pytest.mark.parametrize(("retries", "attempts", "pending"), [(0, 1, 0), (1, 1, 1), (2, 2, 1), (2, 3, 0), (2, 4, 0)])
def test_after_so_many_retries_a_file_is_left_alone(retries: int, attempts: int, pending: int) -> None:
    failed = ledger(*failures(range(1, attempts + 1)))
    assert plan([wav("a")], failed, ReadOptions(retries=retries), SLOTS).pending == pending


def test_attempts_that_did_not_fail_are_no_failures() -> None:
    """A copy of what stayed half done has a row of each night, and a file that is done again one of each retry."""
    waited = [copy("b", "a") | dict(attempts=attempt) for attempt in (1, 2, 3)]
    retried = [dict(index=0, attempts=attempt) for attempt in (1, 2, 3)]
    for name, rows in (("b", [*waited, *failures([4], "b")]), ("a", [*retried, *failures([4], index=1)])):
        (row,) = plan([wav(name)], ledger(*rows), ReadOptions(retries=2), SLOTS).manifest.to_pylist()
        assert row["attempt"] == 5


def test_a_file_left_alone_is_tried_again_when_more_retries_are_allowed() -> None:
    failed = ledger(*failures([1, 2, 3], status="timeout"))
    assert plan([wav("a")], failed, ReadOptions(retries=2), SLOTS).pending == 0
    (row,) = plan([wav("a")], failed, ReadOptions(retries=3), SLOTS).manifest.to_pylist()
    assert row["attempt"] == 4


@pytest.mark.parametrize("status", sorted({*WITH_TEXT, *FAILURES} - {"failed", "timeout"}))
def test_any_other_verdict_is_final(status: str) -> None:
    assert plan([wav("a")], ledger(dict(is_last=True, status=status)), OPTIONS, SLOTS).pending == 0


def test_text_is_never_thrown_away_to_try_again() -> None:
    """A retry reads the whole file, yet what was understood of it is not done twice."""
    rows = [dict(index=index, status=status) for index, status in enumerate(WITH_TEXT)]
    last = dict(index=len(rows), is_last=True, status="timeout")
    (row,) = plan([wav("a")], ledger(*rows, last), OPTIONS, SLOTS).manifest.to_pylist()
    assert row["done_parts"] == list(range(len(rows)))


def test_text_counts_over_a_later_failure() -> None:
    """A retry that came to nothing is no reason for another."""
    retried = ledger(*whole("a", parts=2), dict(index=0, is_last=True, status="failed", attempts=2))
    assert plan([wav("a")], retried, OPTIONS, SLOTS).pending == 0


def test_of_failures_the_latest_counts() -> None:
    failed = ledger(*(dict(is_last=True, status="failed", attempts=attempt) for attempt in (2, 1)))
    assert plan([wav("a")], failed, OPTIONS, SLOTS).manifest["attempt"].to_pylist() == [3]
    final = ledger(dict(is_last=True, status="failed"), dict(is_last=True, status="no_audio", attempts=2))
    assert plan([wav("a")], final, OPTIONS, SLOTS).pending == 0


# --- copies -------------------------------------------------------------------------------------------------------


def copy(name: str, owner: str, content: str = "a", **row: Any) -> dict[str, Any]:
    """The ledger's row of an object with the same bytes as another."""
    return dict(media_id=id_of(name), is_last=True, status="same", sha256=SHA256[content], same_as=id_of(owner)) | row


@pytest.mark.parametrize("status", sorted({*WITH_TEXT, *FAILURES} - {"failed", "timeout"}))
def test_a_copy_is_done_when_its_owner_is(status: str) -> None:
    done = ledger(dict(index=0), dict(index=1, is_last=True, status=status, sha256=SHA256["a"]), copy("b", "a"))
    assert plan([wav("a"), wav("b")], done, OPTIONS, SLOTS).pending == 0
    assert plan([wav("b")], done, OPTIONS, SLOTS).pending == 0, "wherever the owner is now"


@pytest.mark.parametrize("parts", [0, 1], ids=["nothing of its owner is there", "its owner is half done"])
def test_a_copy_waits_for_its_owner(parts: int) -> None:
    found = plan([wav("a"), wav("b")], ledger(*whole("a", 2)[:parts], copy("b", "a")), OPTIONS, SLOTS)
    assert names(found.manifest) == ["a", "b"]
    assert found.manifest["attempt"].to_pylist() == [1, 2], "its row and the next are two"
    assert found.manifest["done_parts"].to_pylist() == [[*range(parts)], []]
    assert names(found.owners) == ["a"], "and then it is a copy again, whoever is read first"


def test_an_owner_that_is_gone_is_not_waited_for() -> None:
    found = plan([wav("b"), wav("c")], ledger(dict(index=0), copy("b", "a"), copy("c", "a")), OPTIONS, SLOTS)
    assert names(found.manifest) == ["b", "c"] and found.owners.num_rows == 0
    assert set(found.manifest["part_seconds"].to_pylist()) == {found.part_seconds}, "cut as a new file is"


def test_a_copy_shares_the_fate_of_an_owner_that_is_given_up() -> None:
    timed_out = dict(status="timeout", sha256=SHA256["a"])
    once, often = (ledger(*failures(attempts, **timed_out), copy("b", "a")) for attempts in ([1], [1, 2, 3]))
    assert names(plan([wav("a"), wav("b")], once, ReadOptions(retries=2), SLOTS).manifest) == ["a", "b"]
    assert plan([wav("a"), wav("b")], often, ReadOptions(retries=2), SLOTS).pending == 0


@pytest.mark.parametrize("listed", ["ab", "b"])
def test_a_copy_of_an_owner_that_cannot_be_had_any_more_is_read_itself(listed: str) -> None:
    """Its bytes are those that failed nobody: it was half done, and then it was the owner's storage that failed."""
    lost = ledger(dict(index=0), copy("b", "a"), *failures([2, 3, 4], index=1))
    found = plan(map(wav, listed), lost, ReadOptions(retries=2), SLOTS, media_table(wav("a"), wav("b")))
    assert names(found.manifest) == ["b"] and found.owners.num_rows == 0
    assert found.manifest["done_parts"].to_pylist() == [[]]


def test_a_copy_that_went_its_own_way_is_done_when_it_is() -> None:
    """Its owner had left the archive, so it was transcribed itself; then the owner came back."""
    own = [row | dict(attempts=2) for row in whole("b", parts=2)]
    half = ledger(*whole("a"), copy("b", "a"), own[0])
    assert plan([wav("b")], half, OPTIONS, SLOTS).manifest["done_parts"].to_pylist() == [[0]]
    assert plan([wav("b")], ledger(copy("b", "a"), *own), OPTIONS, SLOTS).pending == 0


def test_readers_are_told_whose_content_is_known() -> None:
    """Of two that were both transcribed the first name; of one that is half done only if this run goes on with it."""
    done = ledger(
        *(row | dict(sha256=SHA256["a"] if row["is_last"] else None) for name in "ba" for row in whole(name, 2)),
        dict(media_id=id_of("gone"), index=0),
        copy("c", "gone", "b"),
        dict(media_id=id_of("half"), index=0),
        copy("d", "half", "c"),
    )
    found = plan([wav("new"), wav("half")], done, OPTIONS, SLOTS).owners
    first = min("ab", key=id_of)
    expected = {(bytes.fromhex(SHA256[text]), id_of(owner)) for text, owner in (("a", first), ("c", "half"))}
    assert found.schema == OWNERS
    assert {(row["sha256"], row["media_id"]) for row in found.to_pylist()} == expected and found.num_rows == 2
    assert plan([wav("a")], done, OPTIONS, SLOTS).owners.num_rows == 0, "nobody asks where nothing is read"


def test_only_content_of_the_same_size_can_be_the_same() -> None:
    done = ledger(*(whole("a")[0] | dict(media_id=id_of(name), sha256=SHA256[name]) for name in "ab"))
    known = media_table(wav("a"), wav("b"))
    assert sorted(names(plan([wav("new")], done, OPTIONS, SLOTS, known).owners)) == ["a", "b"]
    assert plan([wav("new", SECONDS + 1)], done, OPTIONS, SLOTS, known).owners.num_rows == 0


# --- parts that are done again ------------------------------------------------------------------------------------


def again(done: pa.Table, *picked: tuple[str, int], listed: str = "abc") -> list[dict[str, Any]]:
    rows = [{"media_id": id_of(name), "index": index} for name, index in picked]
    schema = pa.schema([PARTS.field("media_id"), PARTS.field("index")])
    with tables(done, media_table(*map(wav, listed))) as connection:
        return planner.plan_again(pa.Table.from_pylist(rows, schema=schema), connection).manifest.to_pylist()


def test_exactly_the_picked_parts_are_done_again() -> None:
    a, c = again(ledger(*whole("a", 4), *whole("b", 2), *whole("c", 1)), ("a", 1), ("a", 3), ("c", 0))
    assert (a["media_id"], a["done_parts"], a["parts_total"], a["attempt"]) == (id_of("a"), [0, 2], 4, 2)
    assert (c["media_id"], c["done_parts"], c["parts_total"], c["attempt"]) == (id_of("c"), [], 1, 2)
    assert (a["uri"], a["version"], a["bytes"]) == ("s3://archive/a.wav", "1", wav("a").bytes)
    assert {a["part_seconds"], c["part_seconds"]} == {60.0}, "the cuts stay"


def test_a_file_is_looked_for_under_its_other_names_as_well() -> None:
    """It may have moved within the archive since it was transcribed."""
    done = ledger(*whole("a", 2), *whole("c"), copy("b", "a"), copy("d", "a"), copy("d", "a") | dict(attempts=2))
    a, c = again(done, ("a", 1), ("c", 0), listed="abcd")
    assert a["others"] == [{"uri": f"s3://archive/{name}.wav", "version": "1"} for name in "bd"]
    assert (a["uri"], c["others"]) == ("s3://archive/a.wav", None)


def test_every_attempt_has_a_number_of_its_own() -> None:
    """Also behind a retry that failed, of which the views show nothing."""
    done = ledger(*whole("a", 2), dict(index=0, is_last=True, status="failed", attempts=5))
    (row,) = again(done, ("a", 1))
    assert (row["attempt"], row["done_parts"]) == (6, [0])


def test_what_was_given_up_can_be_done_again() -> None:
    (row,) = again(ledger(dict(index=0), dict(index=1, is_last=True, status="timeout", attempts=3)), ("a", 1))
    assert (row["attempt"], row["done_parts"], row["parts_total"]) == (4, [0], None)


# --- the length of parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "slots", "length"),
    [(0.01, 16, 30.0), (1.0, 16, 57.0), (1.0, 48, 30.0), (1000.0, 16, 300.0), (1000.0, 120_000, 30.0)],
)
def test_parts_are_as_long_as_lets_every_slot_have_some(hours: float, slots: int, length: float) -> None:
    assert plan([wav("a", hours * 3600)], NOTHING, OPTIONS, slots).part_seconds == length


def test_only_what_is_pending_counts_for_the_length() -> None:
    long, short = wav("a", 36_000.0), wav("b", 60.0)
    assert plan([long, short], NOTHING, OPTIONS, SLOTS).part_seconds == 300.0
    done = ledger(*whole("a", seconds=36_000.0))
    assert plan([long, short], done, OPTIONS, SLOTS, media_table(long)).part_seconds == 30.0


@pytest.mark.parametrize("length", [5.0, 900.0, math.inf])
def test_a_length_that_is_given_is_taken(length: float) -> None:
    planned = plan([wav("a", 36_000.0)], NOTHING, ReadOptions(part_seconds=length), SLOTS)
    assert planned.part_seconds == length
    assert planned.manifest["part_seconds"].to_pylist() == [length]
