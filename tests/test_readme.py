"""Every command, query and program of the README, run as it stands there by a stranger in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.s3_server import S3Server
from jobs.samples import fetch_samples
from model import errors, fallback, hallucination, loops, progress, segments
from pipeline import catalog, config, records
from pipeline.objects import ObjectStore
from pipeline.store import Store
from tests.jobs.raylets import raylets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLIPS = ("en/hello_world.wav", "en/counting.wav")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> tuple[Path, dict[str, str]]:
    """An empty folder but for two recordings, the same two in a bucket, and the command on the PATH."""
    home = tmp_path_factory.mktemp("stranger")
    environment = os.environ | s3.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        bucket = ObjectStore("s3://archive/calls")
        (home / "recordings").mkdir()
        for clip in CLIPS:
            shutil.copy(fetch_samples() / clip, home / "recordings")
            bucket.create(Path(clip).name, (fetch_samples() / clip).read_bytes())
    return home, environment


@pytest.mark.timeout(600)
def test_commands_and_programs(stranger: tuple[Path, dict[str, str]]) -> None:
    home, environment = stranger
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("earwitness ")]
    assert len(commands) >= 6
    for command in commands:
        if "HEAD:8265" in command:
            continue
        done = subprocess.run(command, shell=True, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if "ILIKE '%hello%'" in command:
            assert "Hello" in done.stdout
    for program in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=home, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{program}\n{done.stdout}{done.stderr}"
    store = Store.open(str(home / "transcripts"))
    queries = [query for block in blocks("sql") for query in block.split(";") if query.strip()]
    assert len(queries) == 10
    answers = [catalog.query(store, query) for query in queries]
    assert answers[0].num_rows == 1
    assert answers[1]["files"].to_pylist() == [2]


@pytest.mark.timeout(600)
def test_commands_for_a_cluster(stranger: tuple[Path, dict[str, str]]) -> None:
    """Those of the crontab as well; HEAD is a cluster of two nodes that has the credentials, and the laptop none."""
    home, environment = stranger
    crontab = [line.split(maxsplit=5)[5] for block in blocks("crontab") for line in block.splitlines() if "* *" in line]
    shown = [line for block in blocks("sh") for line in block.splitlines() if "HEAD:8265" in line]
    assert len(shown) >= 2 and len(crontab) == 1
    laptop = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    with raylets() as cluster:
        cluster.add(cpus=2)
        for command in (*shown, *crontab):
            called = command.replace("http://HEAD:8265", cluster.dashboard)
            done = subprocess.run(called, shell=True, cwd=home, env=laptop, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            patch.setenv(name, environment[name])
        store = Store.open("s3://archive/transcripts")
        runs = catalog.query(store, "FROM runs WHERE command = 'submit' ORDER BY started_at").to_pylist()
    assert [(run["listed"], run["pending"]) for run in runs] == [(2, 2), (2, 0)]


@pytest.mark.timeout(600)
def test_demo(stranger: tuple[Path, dict[str, str]]) -> None:
    """What `make demo` runs: all is heard, broken files have reasons, and the second run has nothing to do."""
    home, environment = stranger

    def demo() -> str:
        done = subprocess.run(["earwitness", "demo"], cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = demo()
    assert "The quick brown fox" in first
    assert "你好世界" in first
    assert "Done: " in first
    assert re.search(r"cut_short.wav +truncated", first)
    assert re.search(r"shopping_list.mp3 +no_audio", first)
    store = Store.open(str(home / "demo" / "transcripts"))
    long = catalog.query(store, "SELECT * FROM parts WHERE uri LIKE '%everything_twice%' ORDER BY \"index\"")
    assert long.num_rows >= 3
    assert long["start"].to_pylist() == [0.0, *long["end"].to_pylist()[:-1]]
    assert "Nothing to do: 30 files" in demo()


def test_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_configuration(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "run.toml").write_text(block)
    assert config.from_toml(tmp_path / "run.toml").run.slots == 24


def test_columns_are_those_of_the_tables() -> None:
    named = re.search(r"`segments`, one row per segment: `(.*?)`", README, re.DOTALL)
    assert named and set(re.split(r",\s+", named.group(1))) == set(records.SEGMENTS.names)
    ledger = re.search(r"`parts`, the ledger, one row per part: `(.*?)`", README, re.DOTALL)
    times = {"fetch_seconds", "decode_seconds", "mel_seconds", "transcribe_seconds"}
    assert ledger and set(re.split(r",\s+", ledger.group(1))) == set(records.PARTS.names) - times


def test_rules_are_those_that_fire() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    ours = {
        value
        for module in (fallback, loops, progress, segments)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    ours |= {hallucination.HALLUCINATION_DROPPED, hallucination.LEADING_SILENCE_SKIPPED}
    assert named == ours


def test_exit_codes_are_those_of_the_errors() -> None:
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    ours = {error.exit_code for error in (errors.EarwitnessError, *errors.EarwitnessError.__subclasses__())}
    assert named == ours | {0, 130}
