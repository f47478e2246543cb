"""The Dockerfile without a Docker: what it copies is there, what it installs is pinned, it ends as nobody special."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTRUCTIONS = {"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "RUN", "SHELL", "USER", "WORKDIR"}


def instructions() -> list[tuple[str, str]]:
    """Every instruction with what follows it, lines joined and comments left out."""
    text = (ROOT / "infra" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def given(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the build: the last pattern that fits it, or a folder of it, wins."""
    kept_away = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [str(parent) for parent in Path(path).parents if str(parent) != "."]
        names = [path, *parents, *(Path(each).name for each in (path, *parents) if line.startswith("**/"))]
        if line and not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            kept_away = not line.startswith("!")
    return kept_away


def test_every_instruction_is_one() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0][0] == "FROM"
    assert not given("ADD"), "COPY does what it says"


def test_what_is_copied_is_there_and_sent_along() -> None:
    sources = [source for rest in given("COPY") for source in rest.split()[:-1]]
    assert {"pyproject.toml", "model", "pipeline", "jobs"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        files = [path for path in (ROOT / source).rglob("*.py")] or [ROOT / source]
        assert not [path for path in files if ignored(str(path.relative_to(ROOT)))]


def test_nothing_else_is_sent_along() -> None:
    strangers = ("tests/conftest.py", ".venv/bin/python", ".git/config", "infra/gpu_bench.py", "demo/a.wav")
    assert all(ignored(path) for path in strangers)
    assert ignored("model/__pycache__/engine.cpython-312.pyc")


def test_the_wheel_has_all_that_it_is_made_of() -> None:
    """What hatchling reads from the working directory of the build."""
    copied = " ".join(given("COPY"))
    assert PROJECT["readme"] in copied
    assert all(file in copied for file in PROJECT["license-files"])


def test_versions_are_pinned() -> None:
    (base,) = given("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    run = " ".join(given("RUN"))
    (torch,) = re.findall(r"torch==\S+", run)
    assert torch in PROJECT["dependencies"], "the layer below must not be installed again above"


def test_torch_is_of_the_kind_that_was_asked_for() -> None:
    assert "TORCH=cuda" in given("ARG")
    (choice,) = [rest for rest in given("RUN") if 'case "$TORCH"' in rest]
    assert (
        "cuda) index=https://pypi.org/simple ;;" in choice
        and "cpu) index=https://download.pytorch.org/whl/cpu ;;" in choice
    )
    assert "exit 2" in choice, "a third kind ends the build"


def test_the_weights_are_in_it_where_they_are_looked_for() -> None:
    names = [name for name, _ in instructions()]
    assert any(rest.startswith("MODEL=") for rest in given("ARG"))
    assert any("EARWITNESS_MODELS=/opt/earwitness/models" in rest for rest in given("ENV"))
    pull = names.index("RUN", [rest for _, rest in instructions()].index('earwitness models pull "$MODEL"'))
    assert pull < names.index("USER"), "root writes them, and nobody changes them"


def test_it_ends_as_somebody_without_rights() -> None:
    user = given("USER")[-1]
    assert user.isdecimal() and int(user) > 0
    assert f"--uid {user} " in " ".join(given("RUN"))
    assert any(rest.startswith("HOME=/home/ray") for rest in given("ENV"))


def test_a_shell_can_be_started_in_it() -> None:
    """KubeRay and Ray's launcher run `bash` in the image, and wget and rsync with it."""
    assert not given("ENTRYPOINT")
    assert any("wget" in rest and "rsync" in rest for rest in given("RUN"))
    assert not [rest for rest in given("RUN") if "ffmpeg" in rest], "it comes with imageio-ffmpeg"
