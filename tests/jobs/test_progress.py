"""How far a run is, in numbers and in one line that never wraps, and what is said before and after."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError
from rich.console import Console

from jobs import progress
from jobs.progress import Json, Progressing, beside, describe
from pipeline.media import find_ffmpeg
from pipeline.run import Summary
from pipeline.sandbox import BUBBLEWRAP, isolation
from pipeline.tally import Counts


def plan(audio_seconds: float = 3600.0, pending_bytes: int = 1000) -> Any:
    return SimpleNamespace(audio_seconds=audio_seconds, pending_bytes=pending_bytes)


def run(summary: Summary, model_gpus: float = 0.0) -> Any:
    place = SimpleNamespace(model_gpus=model_gpus, total_slots=16, decode_actors=4)
    job = SimpleNamespace(place=place, model=SimpleNamespace(name="base"), destination="out")
    return SimpleNamespace(job=job, summary=summary, plan=plan())


class FakeTally:
    """Counts that grow with every look, until the cluster is gone."""

    def __init__(self, looks: int = 1000) -> None:
        self.looks, self.seen = looks, 0

    def counts(self) -> Counts:
        self.seen += 1
        if self.seen > self.looks:
            raise RayError("the cluster is gone")
        return Counts(
            files_read=1, bytes_read=500, seconds_read=1800, seconds_transcribed=60 * self.seen, files_failed=2
        )


def test_before_anything_is_read_the_plan_is_believed() -> None:
    assert describe(Counts(), plan(), 0.0) == (0.0, "0 s of 60 min · 0.0 × real time · 0 failed")


def test_audio_speed_failures_and_time_left() -> None:
    share, line = describe(Counts(seconds_transcribed=900, files_failed=3), plan(), 30.0)
    assert share == 0.25
    assert line == "15 min of 60 min · 30.0 × real time · 3 failed · 90 s left"


def test_what_was_read_corrects_the_estimate() -> None:
    """Half of the bytes were 7,200 seconds, so all of them are 14,400, whatever the plan had guessed."""
    counts = Counts(bytes_read=500, seconds_read=7200, seconds_transcribed=3600)
    share, line = describe(counts, plan(audio_seconds=60), 10.0)
    assert share == 0.25
    assert line.startswith("60 min of 4.0 h · 360 × real time") and line.endswith("30 s left")


def test_never_more_than_all() -> None:
    share, line = describe(Counts(seconds_transcribed=4000), plan(), 10.0)
    assert share == 1.0 and line.startswith("67 min of 67 min") and line.endswith("0 s left")


def test_an_archive_of_nothing_has_no_share() -> None:
    assert describe(Counts(bytes_read=10), plan(0.0, 10), 5.0)[0] == 0.0


LARGEST = describe(Counts(seconds_transcribed=4e7, files_failed=12345), plan(3.6e9), 3240.0)[1]


@pytest.mark.parametrize("line", ["starting", "12 min of 60 min · 30.0 × real time · 3 failed · 90 s left", LARGEST])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_line_never_wraps(monkeypatch: pytest.MonkeyPatch, line: str, width: int) -> None:
    terminal = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "err", terminal)
    bar = progress.bar()
    bar.add_task("", total=1.0, completed=0.5, line=line)
    with terminal.capture() as captured:
        terminal.print(bar.get_renderable())
    (frame,) = captured.get().splitlines()
    assert len(frame) <= width
    if width >= 80:
        assert frame.startswith("━") and frame.rstrip().endswith(line)


def test_a_run_is_watched_and_the_line_is_gone_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "err", Console(width=80, force_terminal=True, stderr=True))
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.02)
    tally = FakeTally()
    with Progressing().running(run(Summary("g")), tally):  # type: ignore[arg-type]
        time.sleep(0.3)
    seen = tally.seen
    time.sleep(0.1)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"\d min of 60 min · .* × real time · 2 failed · .* left", said.err)
    assert said.err.endswith("\x1b[2K"), "the line stays"
    assert 0 < seen == tally.seen, "it is still watching"


def test_under_a_scheduler_it_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.1)
    with Progressing().running(run(Summary("g")), FakeTally()):  # type: ignore[arg-type]
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(" of 60 min · " in line and "2 failed" in line for line in lines)


def test_a_cluster_that_is_gone_ends_the_watch_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    tally = FakeTally(looks=2)
    with Progressing().running(run(Summary("g")), tally):  # type: ignore[arg-type]
        time.sleep(0.1)
    assert tally.seen == 3
    assert capsys.readouterr() == ("", "")


def test_the_plan_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "isolation", lambda program: BUBBLEWRAP)
    Progressing().planned(run(Summary("g", listed=2000, pending=1), model_gpus=1.0))
    assert capsys.readouterr() == (
        "",
        "base: 1 of 2,000 files to do, about 60 min of audio, 16 slots on GPU, 4 readers\n",
    )


def test_a_run_without_a_sandbox_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EARWITNESS_BWRAP", "")
    Progressing(dry_run=True).planned(run(Summary("g", listed=1, pending=1)))
    Progressing().planned(run(Summary("g", listed=1)))
    assert "bubblewrap" not in capsys.readouterr().err, "nothing will be read"
    Progressing().planned(run(Summary("g", listed=1, pending=1)))
    assert capsys.readouterr().err.endswith(f"\n{progress.UNCONFINED}\n")


def test_what_was_recovered_is_told_and_no_plan_without_work(capsys: pytest.CaptureFixture[str]) -> None:
    Progressing().planned(run(Summary("g", listed=2, recovered_shards=1)))
    assert capsys.readouterr() == ("", "Finished what an earlier run had prepared: 1 shard.\n")


DONE = Summary("g", listed=3, pending=3, parts=3, segments=1, audio_seconds=600.0, elapsed_seconds=4.0)


def test_the_end_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    Progressing().finished(DONE)
    assert capsys.readouterr() == ("Done: 10 min of audio in 4 s (150 × real time), 1 segment.\n", "")


def test_failures_come_with_the_query_that_explains_them(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Progressing()
    watcher.planned(run(DONE))
    watcher.finished(replace(DONE, failed_parts=2))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == '2 parts without text; `earwitness sql out "FROM failures"` says why.'


@pytest.mark.parametrize("dry_run", [True, False])
def test_nothing_to_do(capsys: pytest.CaptureFixture[str], dry_run: bool) -> None:
    Progressing(dry_run).finished(Summary("g", listed=1))
    said = "Nothing to do: 1 file done or given up with this model and options.\n"
    assert capsys.readouterr() == (said, "")


def test_a_dry_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Progressing(dry_run=True).finished(Summary("g", listed=1, pending=1))
    assert capsys.readouterr() == ("Dry run: nothing was transcribed or written.\n", "")


def test_json_is_one_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Json()
    watcher.planned(run(DONE))
    with watcher.running(run(DONE), FakeTally()):  # type: ignore[arg-type]
        pass
    watcher.finished(DONE)
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("\n") == 1
    assert json.loads(said.out) == vars(DONE) | {"speed": 150.0, "sandbox": isolation(find_ffmpeg())}


def test_what_is_left_behind_says_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be asking a cluster that goes away beneath it."""
    said: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    gone = threading.Event()

    def work(stop: threading.Event) -> None:
        stop.wait()
        gone.wait()
        raise AttributeError("no cluster any more")

    with beside(work, patience=0.0):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "progress")
    gone.set()
    thread.join()
    assert said == []
