"""Whole runs on a real Ray, from a small archive to what its tables say."""

from __future__ import annotations

import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import imageio_ffmpeg
import numpy as np
import pytest
import ray
from ray.exceptions import RayError

from infra.s3_server import S3Server
from jobs.cluster import Machines
from jobs.transcribe import transcribe
from model.dimensions import SAMPLE_RATE
from model.errors import ModelError, SourceError
from pipeline.job import Job, Model
from pipeline.placement import place
from pipeline.run import Run, told_by_worker
from pipeline.store import Store
from pipeline.tally import Tally
from tests.conftest import BUCKET
from tests.pipeline.runs import CONFIG, FAILED, PART_SECONDS, STATUSES, TINY, Alone, Done, ask, planned

# A run starts actors that load torch and the weights: some ten seconds, several times that on a busy machine.
pytestmark = pytest.mark.timeout(240)


def samples_of(path: Path) -> np.ndarray:
    """(n,) int16 at 16 kHz, by an ffmpeg that is asked for nothing else."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "quiet", "-i", str(path)]
    pcm = subprocess.run([*command, "-ac", "1", "-ar", "16000", "-f", "s16le", "-"], capture_output=True, check=True)
    return np.frombuffer(pcm.stdout, "<i2")


# --- one undisturbed run ------------------------------------------------------------------------------------------


def test_every_file_gets_its_verdict(undisturbed: Done) -> None:
    files = ask(undisturbed.store, "SELECT parse_filename(uri) AS file, status, error, complete FROM files")
    assert {row["file"]: row["status"] for row in files} == STATUSES
    for row in files:
        failed = row["file"] in FAILED
        assert row["complete"] is not failed
        assert bool(row["error"]) is (STATUSES[row["file"]] != "ok")
    failures = ask(undisturbed.store, "SELECT parse_filename(uri) AS file FROM failures ORDER BY file")
    assert [row["file"] for row in failures] == FAILED


def test_every_file_has_exactly_one_last_part(undisturbed: Done) -> None:
    last = [row for row in undisturbed.parts if row["is_last"]]
    assert [row["file"] for row in last] == sorted(STATUSES)
    for row in last:
        indices = [part["index"] for part in undisturbed.parts_of(row["file"])]
        assert indices == list(range(row["index"] + 1))
        assert (row["sha256"] is None) is (row["status"] == "failed")


def test_parts_are_the_file_without_gap_or_overlap(undisturbed: Done, archive: Path) -> None:
    parts = undisturbed.parts_of("long.wav")
    assert len(parts) >= 3
    assert parts[0]["start"] == 0.0
    assert [part["start"] for part in parts[1:]] == [part["end"] for part in parts[:-1]]
    assert parts[-1]["end"] * SAMPLE_RATE == len(samples_of(archive / "long.wav"))
    assert all(0 < part["end"] - part["start"] <= PART_SECONDS for part in parts)
    assert parts[-1]["decoded_seconds"] == parts[-1]["end"]
    assert {part["part_seconds"] for part in parts} == {PART_SECONDS}


def test_every_part_says_what_the_engine_hears_in_its_samples_alone(
    undisturbed: Done, archive: Path, alone: Alone
) -> None:
    segments = undisturbed.segments
    spoken = [part for part in undisturbed.parts if part["file"] not in FAILED]
    for part in spoken:
        (path,) = archive.rglob(part["file"])
        first, end = round(part["start"] * SAMPLE_RATE), round(part["end"] * SAMPLE_RATE)
        expected = alone(part["part_id"], samples_of(path)[first:end]).segments
        stored = [row for row in segments if row["part_id"] == part["part_id"]]
        assert [row["text"] for row in stored] == [segment.text for segment in expected]
        assert [row["tokens"] for row in stored] == [list(segment.tokens) for segment in expected]
        times = [(part["start"] + segment.start, part["start"] + segment.end) for segment in expected]
        assert [(row["start"], row["end"]) for row in stored] == times
        assert part["segments"] == len(stored)
    assert {row["part_id"] for row in segments} <= {part["part_id"] for part in spoken}


def test_what_was_said_is_found(undisturbed: Done) -> None:
    found = ask(undisturbed.store, "SELECT parse_filename(uri) AS file FROM segments WHERE text ILIKE '%lazy dog%'")
    assert sorted(row["file"] for row in found) == ["long.wav", "long.wav", "quick_brown_fox.wav"]


def test_the_summary_counts_what_the_tables_hold(undisturbed: Done) -> None:
    summary, parts = undisturbed.summary, undisturbed.parts
    assert (summary.listed, summary.pending, summary.recovered_shards) == (7, 7, 0)
    assert (summary.parts, summary.segments) == (len(parts), len(undisturbed.segments))
    assert summary.failed_parts == len(FAILED)
    assert summary.audio_seconds == pytest.approx(sum(part["end"] - part["start"] for part in parts))
    assert summary.speed == summary.audio_seconds / summary.elapsed_seconds > 0
    assert {part["generation"] for part in parts} == {summary.generation}


def test_the_tally_saw_it_happen(undisturbed: Done, archive: Path) -> None:
    counts, seconds = undisturbed.counts, undisturbed.summary.audio_seconds
    assert (counts.files_read, counts.files_failed) == (len(STATUSES), len(FAILED))
    assert counts.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.*"))
    assert (counts.seconds_read, counts.seconds_transcribed) == pytest.approx((seconds, seconds))


def test_the_media_and_the_configuration_are_kept(undisturbed: Done) -> None:
    assert len(ask(undisturbed.store, "FROM media")) == len(STATUSES)
    (kept,) = undisturbed.store.runs()
    assert kept["generation"] == undisturbed.summary.generation
    assert kept["config"]["read"]["part_seconds"] == PART_SECONDS and kept["config"]["model"] == TINY


def test_a_second_run_has_nothing_to_do(undisturbed: Done, archive: Path, machines: Machines) -> None:
    with planned(archive, undisturbed.folder, machines) as again:
        pass
    assert (again.summary.listed, again.plan.pending, again.summary.recovered_shards) == (7, 0, 0)


def test_looking_writes_nothing(archive: Path, tmp_path: Path, tiny: Model) -> None:
    job = Job(CONFIG, tiny, place(CONFIG.run, {"CPU": 2.0}, 1, 2), str(tmp_path / "new"))
    run = Run.look([str(archive)], Store.find(job.destination), job)
    assert (run.writer, run.summary.listed, run.plan.pending) == (None, 7, 7)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_audio_is_no_run(tmp_path: Path, tiny: Model) -> None:
    (tmp_path / "notes.txt").write_text("nothing to hear")
    job = Job(CONFIG, tiny, place(CONFIG.run, {"CPU": 2.0}, 1, 2), str(tmp_path / "new"))
    with pytest.raises(SourceError, match=f"^{tmp_path} holds no audio: name files, or folders that hold .wav, "):
        Run.look([str(tmp_path)], None, job)


# --- errors -------------------------------------------------------------------------------------------------------


def test_what_a_worker_cannot_do_ends_the_run_in_one_sentence(
    archive: Path, tmp_path: Path, machines: Machines
) -> None:
    with planned(archive / "hello_world.wav", tmp_path / "tables", machines) as run:
        run.job = replace(run.job, model=replace(run.job.model, sha256="0" * 64))
        with pytest.raises(ModelError) as caught:
            run.execute(Tally.start())
    sentence = str(caught.value)
    assert sentence.startswith(f"The model {TINY} on ") and sentence.endswith(" the same weights on every machine.")
    assert "\n" not in sentence
    assert isinstance(caught.value.__cause__, RayError), "what Ray says of it is kept for whoever asks"
    assert run.summary.parts == 0
    assert ask(Store.open(str(tmp_path / "tables")), "FROM all_parts") == []


def test_the_last_sentence_of_a_worker_counts_and_a_bug_has_none() -> None:
    text = (
        'The actor died, ray::MapWorker()\n  File "store.py", line 3\nmodel.errors.DestinationError: The first one.\n'
        "\nDuring handling of the above exception:\nmodel.errors.ModelError: The weights are gone: get them.\n"
    )
    told = told_by_worker(RayError(text))
    assert type(told) is ModelError and str(told) == "The weights are gone: get them."
    assert told_by_worker(RayError("KeyError: 'model.errors.ModelError: quoted'")) is None
    assert told_by_worker(RayError("model.errors.MediaError: becomes a row, and never comes so far")) is None


# --- elsewhere ----------------------------------------------------------------------------------------------------


def test_three_lines_of_python_from_bucket_to_bucket(
    undisturbed: Done, archive: Path, s3: S3Server, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that uses a Ray already, whose size counts and not that of this machine."""
    names = {"long.wav": "long.wav", "hello_world.wav": "sub folder/größe #1 50%.wav", "shopping_list.mp3": "list.mp3"}
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    for file, name in names.items():
        (path,) = archive.rglob(file)
        fsspec.filesystem("s3").pipe_file(f"{root}/archive/{name}", path.read_bytes())
    monkeypatch.delattr("jobs.transcribe.this_machine")

    summary = transcribe(
        f"s3://{root}/archive", to=f"s3://{root}/tables", model=TINY, config=replace(CONFIG, model="base")
    )

    assert ray.is_initialized() and ray.cluster_resources()["CPU"] == machines.resources["CPU"]
    assert (summary.listed, summary.failed_parts) == (3, 1)
    store = Store.open(f"s3://{root}/tables")
    for file, name in names.items():
        uri = f"s3://{root}/archive/{name}"
        stored = ask(store, f"SELECT start, \"end\", text FROM segments WHERE uri = '{uri}' ORDER BY start")
        assert stored == [
            {"start": row["start"], "end": row["end"], "text": row["text"]}
            for row in undisturbed.segments
            if row["file"] == file
        ]
    (etag,) = ask(store, "SELECT version FROM media WHERE uri LIKE '%list.mp3'")
    assert fsspec.filesystem("s3").info(f"{root}/archive/list.mp3")["ETag"].strip('"') == etag["version"]
    assert transcribe(f"s3://{root}/archive", to=f"s3://{root}/tables", model=TINY, config=CONFIG).pending == 0
