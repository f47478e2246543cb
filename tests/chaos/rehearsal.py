"""What a run over a small archive comes to, computed once by the real stages: for runs whose subject is storage.

The archive is five short files, of which one has several parts and one is no audio. They are read by ffmpeg and
transcribed by tiny.en in this process, and the `records.RESULT` rows are kept in one Parquet file, from which a run of
a second takes them.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.samples import assemble
from pipeline.config import Config, ReadOptions, RunOptions
from pipeline.job import Job, Model
from pipeline.parts import ReadParts
from pipeline.placement import Placement
from pipeline.records import RESULT
from pipeline.run import Run
from pipeline.transcriber import Transcriber

PART_SECONDS = 5.0
PARTS_PER_SHARD = 2
CONFIG = Config(
    model="tiny.en",
    read=ReadOptions(part_seconds=PART_SECONDS),
    run=RunOptions(parts_per_shard=PARTS_PER_SHARD, publish_seconds=0.0, precision="float32"),
)
_PLACE = Placement(model_actors=1, model_cpus=1.0, model_gpus=0.0, threads=1, slots=4, decode_actors=1)


class _NoTally:
    """Counts of a run that nobody watches."""

    def transcribed(self, seconds: float) -> None:
        """One part is done."""


def make_archive(samples: Path, folder: Path) -> Path:
    """Three clips, all of them as one file of several parts, and a shopping list that calls itself a recording."""
    clips = shutil.copytree(samples / "en", folder.parent / "clips" / "en")
    folder.mkdir()
    for clip in sorted(clips.glob("*.wav")):
        shutil.copy(clip, folder)
    assemble(clips.parent, folder / "long.wav")
    (folder / "shopping_list.mp3").write_text("bread, milk, a new microphone\n")
    return folder


def rehearse(archive: Path, model: Model, target: Path) -> Path:
    """Read and transcribe `archive`, and write the `records.RESULT` rows to the Parquet file `target`."""
    threads = torch.get_num_threads()
    job = Job(CONFIG, model, _PLACE, "nowhere")
    manifest = Run.look([str(archive)], None, job).plan.manifest
    parts = pa.concat_tables(ReadParts(model.n_mels, job.generation, CONFIG.read)(manifest))
    results = asyncio.run(Transcriber(job, _NoTally())(parts))  # type: ignore[arg-type]
    pq.write_table(results, target)
    torch.set_num_threads(threads)
    return target


def replay(rehearsed: list[dict[str, Any]], manifest: list[pa.Table]) -> list[pa.Table]:
    """The rows that the first two stages of a run would make of its manifest, in batches for the sink."""
    wanted = {row["media_id"]: row for block in manifest for row in block.to_pylist()}
    rows = [
        row | {"attempts": wanted[row["media_id"]]["attempt"]}
        for row in rehearsed
        if row["media_id"] in wanted and row["index"] not in wanted[row["media_id"]]["done_parts"]
    ]
    firsts = range(0, len(rows), PARTS_PER_SHARD)
    return [pa.Table.from_pylist(rows[first : first + PARTS_PER_SHARD], schema=RESULT) for first in firsts]
