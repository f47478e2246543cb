"""Archives handed to a cluster of raylets with fake GPUs: followed, disturbed, killed and handed over again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.ray_jobs import ENDED, RayJobs
from jobs.samples import clips, fetch_samples, read_clip
from model.dimensions import SAMPLE_RATE
from model.errors import ModelError, SourceError
from pipeline import catalog
from pipeline.store import Store
from pipeline.weights import load_model
from tests.chaos import oracle
from tests.chaos.conftest import EVERYWHERE
from tests.jobs.conftest import Done
from tests.jobs.raylets import Raylets, raylets

pytestmark = pytest.mark.timeout(1800 if EVERYWHERE else 400)
ALL = pytest.mark.skipif(not EVERYWHERE, reason="takes minutes: EARWITNESS_CHAOS=1")
PATIENCE_SECONDS = 600.0 if EVERYWHERE else 120.0
CONFIG = """
model = "tiny.en"
[read]
part_seconds = 5.0
[run]
precision = "float32"
slots = 4
parts_per_shard = 2
publish_seconds = 0.5
"""
COMMAND = [sys.executable, "-c", "from jobs.cli import main; main()"]
Submit = Callable[..., list[str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    """A head, and one node with CPUs and no GPU."""
    with raylets() as started:
        started.add(cpus=2)
        yield started


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("few"), copies=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("many"), copies=6)


@pytest.fixture
def told(cluster: Raylets, tmp_path: Path) -> Submit:
    """The arguments of a submission to the cluster."""
    (tmp_path / "run.toml").write_text(CONFIG)
    common = ["--config", str(tmp_path / "run.toml"), "--address", cluster.dashboard]
    return lambda source, to, *more: ["submit", str(source), "--to", str(to), *common, *more]


def recordings(folder: Path, copies: int, languages: tuple[str, ...] = ("en",)) -> Path:
    """Short recordings of speech, each clip at so many volumes, so that no two files are alike."""
    try:
        samples = fetch_samples()
        load_model("tiny.en")
    except (SourceError, ModelError) as error:
        pytest.skip(str(error))
    for clip in clips(samples):
        for number in range(copies) if clip.parent.name in languages else ():
            with wave.open(str(folder / f"{clip.parent.name}-{clip.stem}-{number:02}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes((read_clip(clip) * (1 - 0.8 * number / copies)).astype(np.int16).tobytes())
    return folder


def until(true: Callable[[], Any]) -> Any:
    """What a question comes to, once it is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)
    return answer


def commits(to: Path) -> int:
    """Times that parts were published; the first two versions create the ledger and fence it."""
    return max(0, len(list((to / "parts" / "_delta_log").glob("*.json"))) - 2)


def whole(to: Path) -> int:
    """Files that are done, in tables in which nothing is amiss."""
    assert oracle.complaints(str(to), oracle.plainly(str(to))) == []
    (row,) = catalog.query(Store.open(str(to)), "SELECT count(*) FILTER (complete) AS n FROM files").to_pylist()
    return int(row["n"])


def process_of(module: str, place: Path) -> int:
    """The Python that runs a module with this place among its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if arguments[1:3] == ["-m", module] and str(place) in arguments[3]:
            return int(entry.parent.name)
    return 0


def test_a_gpu_that_comes_late_is_awaited_and_models_stand_where_it_is(
    cluster: Raylets, few: Path, tmp_path: Path, told: Submit, earwitness: Callable[..., Done]
) -> None:
    """The node with the GPU has no CPU, and the node with CPUs no GPU: readers and models are on different nodes."""
    to = tmp_path / "tables"
    command = told(few, to, "--gpus", "1", "--max-hours", "0.0001")
    name = json.loads(earwitness(*command, "--detach", "--json").out)["job"]
    jobs = RayJobs.at(cluster.dashboard)
    until(lambda: '"waiting"' in jobs.log(name))
    listed = earwitness("jobs", "list", "--address", cluster.dashboard, "--json")
    (row,) = json.loads(listed.out)
    assert row["job"] == name and row["status"] == "running" and "for the first of 1 GPU" in row["progress"]

    cluster.add(cpus=0, gpus=1)
    done = earwitness(*command)
    assert done.code == 0, done.err
    assert f"The job {name} works on this already: following it." in done.err
    assert "tiny.en: 1 of 3 files to do" in done.err and "4 slots on GPU" in done.err
    assert done.out.startswith("Done: ") and "2 files left to the next run." in done.out
    assert whole(to) == 1

    again = earwitness(*told(few, to, "--gpus", "1"), "--json")
    assert again.code == 0
    summary = json.loads(again.out)
    assert (summary["job"], summary["pending"], summary["remaining"]) == (f"{name}-2", 2, 0)
    assert whole(to) == 3
    assert "jobs.coordinator" in earwitness("jobs", "logs", name, "--address", cluster.dashboard).out


@ALL
def test_two_who_submit_at_once_follow_one_job_and_its_error_is_theirs(
    cluster: Raylets, few: Path, tmp_path: Path, told: Submit
) -> None:
    """What is wrong with a destination is found out on the cluster, and said here as anywhere."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("not ours")
    command = [*COMMAND, *told(few, tmp_path / "taken")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in both]
    assert [process.returncode for process in both] == [4, 4]
    assert all("holds other files and no earwitness.json: choose a new" in text for text in said), said
    about_it = [job for job in RayJobs.at(cluster.dashboard).all() if job.metadata["to"] == str(tmp_path / "taken")]
    assert len(about_it) == 1


@ALL
def test_slices_survive_a_lost_node_and_their_coordinator_is_replaced(
    cluster: Raylets, many: Path, tmp_path: Path, told: Submit, earwitness: Callable[..., Done]
) -> None:
    """Two jobs share two GPUs; the coordinator is killed, another goes on, and loses a node in the middle."""
    to = tmp_path / "tables"
    second = cluster.add(cpus=1, gpus=1)
    command = told(many, to, "--gpus-per-job", "1")
    first = json.loads(earwitness(*command, "--detach", "--json").out)["job"]
    until(lambda: commits(to))
    os.kill(process_of("jobs.coordinator", to), signal.SIGKILL)
    jobs = RayJobs.at(cluster.dashboard)
    until(lambda: jobs.find(first).status in ENDED)

    before = commits(to)
    follower = subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, text=True)
    until(lambda: commits(to) > before + 1)  # the fence of the new writer, and something published
    cluster.lose(second)
    cluster.add(cpus=1, gpus=1)
    said = follower.communicate(timeout=PATIENCE_SECONDS)[1]
    assert follower.returncode == 0, said
    assert whole(to) == 18
    assert not list((to / "submissions").rglob("*.json")), "what is published is not announced any more"
    slices = jobs.all(earwitness="slice", to=str(to))
    assert {job.metadata["coordinator"] for job in slices} == {first, f"{first}-2"}
    assert all(job.status in ENDED for job in slices), "no slice outlives its coordinator"


@ALL
def test_a_job_that_is_stopped_stops_all_and_goes_on_later(
    cluster: Raylets, many: Path, tmp_path: Path, told: Submit, earwitness: Callable[..., Done]
) -> None:
    to = tmp_path / "tables"
    command = told(many, to, "--gpus-per-job", "1")
    follower = subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, text=True)
    until(lambda: process_of("jobs.slice", to))
    jobs = RayJobs.at(cluster.dashboard)
    (job,) = jobs.all(earwitness="coordinator", to=str(to))
    stopped = earwitness("jobs", "stop", job.submission_id, "--address", cluster.dashboard)
    assert stopped.code == 0 and f"{job.submission_id} is stopped" in stopped.out
    assert all(slice_.status in ENDED for slice_ in jobs.all(earwitness="slice", to=str(to)))
    assert "was stopped: what was stored stays" in follower.communicate(timeout=PATIENCE_SECONDS)[1]
    assert follower.returncode == 130


@ALL
def test_following_is_interrupted_and_the_job_is_not(cluster: Raylets, few: Path, tmp_path: Path, told: Submit) -> None:
    follower = subprocess.Popen([*COMMAND, *told(few, tmp_path / "tables")], stderr=subprocess.PIPE, text=True)
    jobs = RayJobs.at(cluster.dashboard)
    (job,) = until(lambda: jobs.all(earwitness="coordinator", to=str(tmp_path / "tables")))
    time.sleep(1)
    follower.send_signal(signal.SIGINT)
    said = follower.communicate(timeout=PATIENCE_SECONDS)[1]
    assert follower.returncode == 130
    assert f"`earwitness jobs stop {job.submission_id} --address {cluster.dashboard}` ends it." in said
    assert jobs.find(job.submission_id).status not in ENDED
    until(lambda: jobs.find(job.submission_id).status == "SUCCEEDED")


def test_a_job_that_is_unknown_or_not_ours_is_left_alone(cluster: Raylets, earwitness: Callable[..., Done]) -> None:
    unknown = earwitness("jobs", "stop", "earwitness-0", "--address", cluster.dashboard)
    assert unknown.code == 2
    assert f"There is no job earwitness-0 at {cluster.dashboard}: `earwitness jobs list" in unknown.err
    jobs = RayJobs.at(cluster.dashboard)
    assert jobs.submit("theirs", "true", {})
    assert not jobs.submit("theirs", "true", {}), "a name is taken once"
    assert "theirs is no job of earwitness" in earwitness("jobs", "logs", "theirs", "--address", cluster.dashboard).err


@ALL
def test_hundreds_of_recordings_on_four_nodes_of_which_one_is_lost(tmp_path: Path) -> None:
    """Four raylets beside the head, three with a fake GPU; every recording comes out, and none twice."""
    (tmp_path / "archive").mkdir()
    languages = tuple({clip.parent.name for clip in clips(fetch_samples())})
    archive, to = recordings(tmp_path / "archive", 20, languages), tmp_path / "tables"
    (tmp_path / "run.toml").write_text(CONFIG)
    with raylets() as cluster:
        cluster.add(cpus=2)
        *_, doomed = [cluster.add(cpus=1, gpus=1) for _ in range(3)]
        command = ["submit", str(archive), "--to", str(to), "--config", str(tmp_path / "run.toml")]
        follower = subprocess.Popen([*COMMAND, *command, "--address", cluster.dashboard])
        until(lambda: commits(to) > 3)
        cluster.lose(doomed)
        assert follower.wait(PATIENCE_SECONDS * 2) == 0
    assert whole(to) == len(list(archive.iterdir())) == 540


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:9", "No Ray dashboard answers at http://127.0.0.1:9: give the address"),
        ("127.0.0.1:8265", "The address 127.0.0.1:8265 is not one of a dashboard: give http://HOST:8265"),
        ("http://[", "No Ray dashboard answers at http://[: give the address"),
    ],
)
def test_no_dashboard_is_one_sentence(earwitness: Callable[..., Done], address: str, sentence: str) -> None:
    done = earwitness("jobs", "list", "--address", address)
    assert done.code == 2 and sentence in done.err
