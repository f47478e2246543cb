"""Runs that go on where another stopped: the tables are as if nothing had happened."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cluster import Machines
from model.options import DecodeOptions
from pipeline.config import ReadOptions
from pipeline.parts import part_id
from pipeline.records import RESULT
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.tally import Counts, Tally
from tests.pipeline.runs import (
    CONFIG,
    PART_SECONDS,
    PATIENCE_SECONDS,
    SEGMENTS,
    STATUSES,
    TINY,
    Done,
    Rows,
    ask,
    command_line,
    planned,
)

pytestmark = pytest.mark.timeout(240)  # see test_run.py


def test_a_new_generation_finishes_what_was_begun_and_is_shown_when_whole(
    undisturbed: Done, archive: Path, machines: Machines
) -> None:
    """Two of the long file's parts were stored under another option, then that run went away."""
    folder = archive.parent / "generations"
    shutil.copytree(undisturbed.folder, folder)
    config = replace(CONFIG, decode=DecodeOptions(seed=1), read=ReadOptions(part_seconds=60.0))
    store = Store.open(str(folder))
    with planned(archive, folder, machines, config) as run:
        generation = run.job.generation
        assert run.writer is not None and generation != undisturbed.summary.generation
        run.writer.publish([prepare(store.objects, _as_of(undisturbed, "long.wav", [0, 2], generation))])
    assert ask(store, SEGMENTS) == undisturbed.segments, "a file that is half done is not shown"

    with planned(archive, folder, machines, config) as run:
        pending = {row["uri"].rpartition("/")[2]: row for row in run.plan.manifest.to_pylist()}
        assert (pending["long.wav"]["done_parts"], pending["long.wav"]["part_seconds"]) == ([0, 2], PART_SECONDS)
        assert pending["counting.wav"]["part_seconds"] == 60.0
        run.execute(Tally.start())

    done = Done(store, run.summary, Counts(), folder)
    assert run.summary.parts == len(undisturbed.parts) - 2
    assert {row["generation"] for row in [*done.parts, *done.segments]} == {generation}
    assert _cuts(done.parts_of("long.wav")) == _cuts(undisturbed.parts_of("long.wav"))
    texts = {(row["file"], row["start"]): row["text"] for row in done.segments}
    kept = [text for text in texts.values() if text.startswith("Stored before: ")]
    assert len(kept) == sum(part["segments"] for part in undisturbed.parts_of("long.wav") if part["index"] in (0, 2))
    before = {(row["file"], row["start"]): row["text"] for row in undisturbed.segments}
    assert {place: text.removeprefix("Stored before: ") for place, text in texts.items()} == before
    everything = ask(store, "SELECT generation, count(*) AS parts FROM all_parts GROUP BY generation")
    assert {row["parts"] for row in everything} == {len(undisturbed.parts)} and len(everything) == 2


def _as_of(done: Done, file: str, indices: list[int], generation: str) -> pa.Table:
    """`records.RESULT` rows of some parts of a file, as a run of another generation would have made them."""
    numbers = ", ".join(map(str, indices))
    rows = ask(done.store, f"FROM parts WHERE parse_filename(uri) = '{file}' AND \"index\" IN ({numbers})")
    for row in rows:
        segments = ask(done.store, f"FROM segments WHERE part_id = '{row['part_id']}' ORDER BY segment_index")
        row["segment_rows"] = [segment | {"text": f"Stored before: {segment['text']}"} for segment in segments]
        row["part_id"] = part_id(row["media_id"], row["index"], row["start"], row["end"], generation)
        row["generation"] = generation
    return pa.Table.from_pylist(rows, schema=RESULT)


def _cuts(parts: Rows) -> list[tuple[Any, ...]]:
    return [(part["index"], part["start"], part["end"], part["is_last"], part["part_seconds"]) for part in parts]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_run_that_was_killed_is_finished_as_if_nothing_had_happened(
    undisturbed: Done, archive: Path, machines: Machines
) -> None:
    """The command line, with every process of its Ray, is killed when its first shard is stored and none published."""
    folder = archive.parent / "killed"
    slow = archive.parent / "slow.toml"
    slow.write_text(
        f'model = "{TINY}"\n[read]\npart_seconds = {PART_SECONDS}\n'
        "[run]\nprecision = 'float32'\nslots = 1\nparts_per_shard = 1\npublish_seconds = 3600\n"
    )
    with command_line("transcribe", str(archive), "--to", str(folder), "--config", str(slow), "--json") as process:
        prepared = _wait_for_a_shard(folder, process)
    assert 1 <= prepared < len(undisturbed.parts), "it was not killed in the middle"

    with planned(archive, folder, machines) as run:
        assert 1 <= run.summary.recovered_shards < len(undisturbed.parts)
        run.execute(Tally.start())
    done = Done(Store.open(str(folder)), run.summary, Counts(), folder)
    assert run.summary.recovered_shards + run.summary.parts == len(undisturbed.parts)
    assert done.parts == undisturbed.parts
    assert done.segments == undisturbed.segments
    assert len(ask(done.store, "FROM all_parts")) == len(undisturbed.parts), "nothing is stored twice"
    assert len(ask(done.store, "FROM media")) == len(STATUSES)
    with planned(archive, folder, machines) as again:
        assert again.plan.pending == 0


def _wait_for_a_shard(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """How many shards are stored at the first look that finds one."""
    deadline = time.monotonic() + 3 * PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := list((folder / "parts" / "data").glob("*/*.parquet")):
            return len(found)
        assert process.poll() is None, f"it ended by itself: {process.returncode}"
        time.sleep(0.01)
    raise AssertionError("no shard in all that time")
