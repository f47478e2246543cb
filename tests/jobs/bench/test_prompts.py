"""Debian packages, made here as Debian makes them, fetched from a folder and unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import prompts
from jobs.bench.prompts import LICENCE_FILE, Voice, default_folder, fetch_prompts
from model.errors import SourceError

LISTING = """; Core Asterisk Sounds in English

hello: Hello, World: again.
digits/1: one
beep: [a tone]
letters/at: at (@)
pause: <silence>
empty:
lost: A sound that is in no package.
"""
SOUNDS = ("hello", "digits/1", "beep", "letters/at", "pause", "empty", "secret")


def _package(files: dict[str, bytes]) -> bytes:
    """An `ar` archive of three members, the first of an odd size, as dpkg-deb writes it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = {"debian-binary": b"2.0", "control.tar.xz": b"control", "data.tar.xz": data.getvalue()}
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of a pool with one language, whose digests are the expected ones."""
    folder = tmp_path / "pool"
    folder.mkdir()
    listing = {"./usr/share/doc/core-sounds-en.txt.gz": gzip.compress(LISTING.encode())}
    sounds = {f"./usr/share/asterisk/sounds/en_US/{name}.wav": name.encode() for name in SOUNDS}
    sounds["./usr/share/doc/asterisk-core-sounds-en-wav/copyright"] = b"CC-BY-SA-3.0"
    digests = []
    for name, files in (("asterisk-core-sounds-en", listing), ("asterisk-core-sounds-en-wav", sounds)):
        package = _package(files)
        (folder / f"{name}_{prompts.VERSION}-1_all.deb").write_bytes(package)
        digests.append(hashlib.sha256(package).hexdigest())
    monkeypatch.setattr(prompts, "VOICES", (Voice("en", *digests),))
    return folder.as_uri()


def test_only_what_is_spoken_lands_beside_its_words(pool: str, tmp_path: Path) -> None:
    folder = fetch_prompts(tmp_path / "deep" / "prompts", pool)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    spoken = {f"en/{name}{suffix}" for name in ("hello", "digits/1") for suffix in (".wav", ".txt")}
    assert files == spoken | {"en/COPYRIGHT", LICENCE_FILE}
    assert (folder / "en/hello.txt").read_text() == "Hello, World: again.\n"
    assert (folder / "en/digits/1.wav").read_bytes() == b"digits/1"
    assert "under Creative Commons BY-SA 3.0" in (folder / LICENCE_FILE).read_text()


def test_they_are_fetched_once(pool: str, tmp_path: Path) -> None:
    folder = fetch_prompts(tmp_path / "prompts", pool)
    assert fetch_prompts(folder, "file:///nowhere") == folder


def test_other_bytes_are_refused_and_leave_nothing(pool: str, tmp_path: Path) -> None:
    package = tmp_path / "pool" / f"asterisk-core-sounds-en-wav_{prompts.VERSION}-1_all.deb"
    package.write_bytes(package.read_bytes() + b"!")
    with pytest.raises(SourceError, match="is not the published package"):
        fetch_prompts(tmp_path / "prompts", pool)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"asterisk-core-sounds-en_1.*cannot be fetched .* check the network"):
        fetch_prompts(tmp_path / "prompts", (tmp_path / "nowhere").as_uri())


def test_a_folder_in_use_is_left_alone(pool: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("Dear Anna")
    with pytest.raises(SourceError, match="name a folder that does not exist"):
        fetch_prompts(tmp_path / "mine", pool)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]


def test_a_package_without_data_is_not_debians() -> None:
    with pytest.raises(SourceError, match=r"holds no data\.tar\.xz"):
        prompts._member(b"!<arch>\n", "data.tar.xz")


def test_the_command_says_where_and_under_which_licence(
    pool: str, tmp_path: Path, earwitness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "POOL", pool)
    done = earwitness("bench", "--fetch", str(tmp_path / "prompts"))
    assert (done.code, done.err) == (0, "")
    assert done.out == f"The prompts are in {tmp_path}/prompts, under CC BY-SA 3.0; LICENCE says whose.\n"


def test_they_go_to_the_cache_when_nobody_says(cache: Path) -> None:
    assert default_folder() == cache / "prompts-1.6.1"
