"""What the planner is shown of a store: one generation, every attempt, out of core, and errors as sentences."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from model.errors import DestinationError
from pipeline.ledger import LEDGER, connected, ledger_of
from pipeline.records import MEDIA
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import Writer
from tests.writers import WriterAt

Results = Callable[..., pa.Table]
GENERATION = "0123456789abcdef"


def shown(store: Store, view: str, generation: str = GENERATION) -> pa.Table:
    with ledger_of(store, generation) as ledger:
        return ledger.sql(f"FROM {view} ORDER BY ALL").to_arrow_table()


def test_every_attempt_of_one_generation_is_shown(destination: str, results: Results, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    failed = results("a", parts=1, status="failed", segment_rows=None)
    batches = (failed, results("a", parts=3, generation="f" * 16), results("a", parts=1, attempts=2))
    assert shown(store, "ledger").column_names == list(LEDGER) and shown(store, "media").column_names == MEDIA.names
    store.publish([prepare(store.objects, batch) for batch in batches])
    found = shown(store, "ledger")
    assert list(zip(found["status"].to_pylist(), found["attempts"].to_pylist(), strict=True)) == [
        ("failed", 1),
        ("ok", 2),
    ]
    assert shown(store, "ledger", "f" * 16)["index"].to_pylist() == [0, 1, 2]
    assert shown(store, "ledger", "e" * 16).num_rows == 0


def test_media_of_all_generations_are_shown(destination: str, writer_at: WriterAt) -> None:
    store = writer_at(destination)
    row = {"media_id": "a", "uri": "s3://archive/a", "version": "1", "bytes": 5, "seen_at": datetime.now(UTC)}
    store.add_media(pa.Table.from_pylist([row], schema=MEDIA))
    assert shown(store, "media")["uri"].to_pylist() == ["s3://archive/a"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no Parquet at all")])
def test_an_object_that_is_lost_or_damaged_is_one_sentence(
    tmp_path: Path, results: Results, writer_at: WriterAt, damage: Callable[[Path], object]
) -> None:
    store = writer_at(str(tmp_path / "archive"))
    shard = prepare(store.objects, results("a"))
    store.publish([shard])
    damage(tmp_path / "archive" / "parts" / shard["parts_path"])
    with pytest.raises(DestinationError) as caught:
        shown(store, "ledger")
    assert "\n" not in str(caught.value)


def test_what_exceeds_the_memory_is_put_aside_and_leaves_nothing(tmp_path: Path) -> None:
    with connected() as connection:
        ((folder,),) = connection.sql("SELECT current_setting('temp_directory')").fetchall()
        connection.execute("SET memory_limit = '60MB'")
        ((rows,),) = connection.sql(
            "SELECT count(*) FROM (SELECT random() AS r, i::VARCHAR FROM range(3_000_000) AS t(i) ORDER BY r)"
        ).fetchall()
        assert rows == 3_000_000
    assert not Path(folder).exists()


def test_a_wrong_statement_is_a_bug_and_not_the_destinations_fault(tmp_path: Path, writer_at: WriterAt) -> None:
    store: Writer = writer_at(str(tmp_path / "archive"))
    with pytest.raises(duckdb.Error, match="no_such_column"), ledger_of(store, GENERATION) as ledger:
        ledger.sql("SELECT no_such_column FROM ledger")
