"""Any name an object or a destination can have, on disk and in a bucket: it works, or is refused with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from model.errors import DestinationError, EarwitnessError, SourceError
from pipeline.catalog import query
from pipeline.config import ReadOptions
from pipeline.inventory import list_media
from pipeline.objects import ObjectStore
from pipeline.recovery import recover
from pipeline.sink import prepare
from pipeline.upkeep import compact
from tests.chaos.corpus import as_wav
from tests.pipeline.reading import manifest_of, read
from tests.tables import rows_in, shown
from tests.writers import WriterAt

OPTIONS = ReadOptions(voice_activity=False)
NAMES = [
    "two  spaces .wav",
    "line\nbreak.wav",
    "carriage\rreturn\tand tab.wav",
    "single ' quote.wav",
    'double " quote.wav',
    "back\\slash.wav",
    "100%.wav",
    "%2e%2e%2f.wav",
    "%s%n%d.wav",
    "#1.wav",
    "what?.wav",
    "a*b[c]{d}.wav",
    "🎙️👩‍👧.wav",
    "مرحبا\u202egpj.wav",
    "שלום.wav",
    "e\u0301 and é.wav",
    "x" * 251 + ".wav",
    "-i.wav",
    "--help.wav",
    "concat:a.wav|b.wav",
    "http:evil.example.wav",
    "pipe:0.wav",
    "a..b.wav",
    "$(touch canary).wav",
    "`touch canary`; touch canary & .wav",
    "'; DROP TABLE parts; --.wav",
    "~root.wav",
    "C:\\con.wav",
    "s3:bucket.wav",
]


@pytest.fixture
def folder(destination: str) -> str:
    """A url, on disk and in a bucket, below which every name stands for other samples."""
    fs, root = fsspec.url_to_fs(destination)
    fs.makedirs(root, exist_ok=True)
    for number, name in enumerate(NAMES):
        fs.pipe(f"{root}/{name}", _clip(number))
    return destination


def _clip(number: int) -> bytes:
    """A WAV of 16 kHz, another for each number."""
    return as_wav(np.random.default_rng(number).normal(0, 1000, 8000 + number).astype(np.int16))


def test_every_name_is_read_and_none_is_interpreted(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = read(manifest_of(list_media([folder])), OPTIONS)
    names = [name.replace("\\", "/") for name in NAMES] if "://" in folder else NAMES  # so SeaweedFS stores them
    assert {_below(row["uri"], folder): row["status"] for row in rows} == dict.fromkeys(names, "ok")
    lengths = {_below(row["uri"], folder): round(row["end"] * 16_000) for row in rows}
    assert lengths == {name: 8000 + number for number, name in enumerate(names)}, "another object was read"
    assert not list(tmp_path.rglob("canary"))


def _below(uri: str, folder: str) -> str:
    return uri.partition("://")[2].removeprefix(folder.partition("://")[2] or folder).removeprefix("/")


def test_every_name_can_be_given_by_itself(folder: str) -> None:
    """A star or a question mark in a name is no pattern, where an object is called exactly so."""
    for name in NAMES:
        (media,) = list_media([f"{folder}/{name}"])
        assert _below(media.uri, folder) == name


def test_a_step_up_never_leaves_what_was_named(destination: str) -> None:
    """`..` is resolved on disk, as everywhere, and refused in a bucket, where it would be a name."""
    fs, root = fsspec.url_to_fs(destination)
    fs.makedirs(f"{root}/inside", exist_ok=True)
    fs.pipe(f"{root}/outside.wav", _clip(1))
    source = f"{destination}/inside/../outside.wav"
    if "://" in destination:
        with pytest.raises(SourceError, match=r"^s3://.*/inside/\.\./outside\.wav .*\.$"):
            list(list_media([source]))
    else:
        (media,) = list_media([source])
        assert media.uri == f"file://{root}/outside.wav"


def test_a_name_that_is_no_text_becomes_a_row_that_says_so(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb") as file:
        file.write(_clip(1))
    (row,) = read(manifest_of(list_media([str(tmp_path)])), OPTIONS)
    assert row["uri"].endswith(r"/caf\xe9.wav") and row["status"] == "failed" and "not UTF-8" in row["error"]


def test_a_name_is_only_data_to_sql(
    tmp_path: Path, writer_at: WriterAt, results: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = writer_at(str(tmp_path / "tables"))
    for number, name in enumerate(NAMES):
        store.publish([prepare(store.objects, results(f"m{number}", parts=1, uri=f"file:///archive/{name}"))])
    found: list[dict[str, Any]] = query(store, "SELECT uri FROM files ORDER BY media_id").to_pylist()
    assert {row["uri"] for row in found} == {f"file:///archive/{name}" for name in NAMES}
    for name in NAMES:
        quoted = f"file:///archive/{name}".replace("'", "''")
        (row,) = query(store, f"SELECT count(*) AS n FROM segments WHERE uri = '{quoted}'").to_pylist()
        assert row["n"] == 3
    with pytest.raises(EarwitnessError):
        query(store, "DROP TABLE parts")


@pytest.mark.parametrize(
    "name", ["two  spaces", "calls[1]", "a*b", "{a,b}", "100%", "ü 🎙️", "'\"", "a+b&c=d", "-i|~x", "$(x)`y`"]
)
def test_tables_under_any_name(
    destination: str, name: str, results: Callable[..., pa.Table], writer_at: WriterAt
) -> None:
    """Written, published, recovered, merged and read."""
    writer = writer_at(f"{destination}/{name}")
    writer.publish([prepare(writer.objects, results("a"))])
    prepare(writer.objects, results("b"))
    assert recover(writer) == 1
    assert compact(writer) == 1
    assert shown(writer) == (4, 12) == (rows_in(writer, "parts"), rows_in(writer, "segments"))
    assert writer.read("parts", ["media_id"]).num_rows == 4


@pytest.mark.parametrize("name", ["a%20b", "%2e%2e", "a\\b", "a\nb"])
def test_names_that_no_tables_can_have_are_refused(destination: str, name: str) -> None:
    with pytest.raises(DestinationError, match="^The destination .* in the address of a table: choose another name.$"):
        ObjectStore(f"{destination}/{name}")


@pytest.mark.parametrize("name", ["a#b", "what?", "a//b"])
def test_names_that_no_tables_in_a_bucket_can_have_are_refused(name: str) -> None:
    with pytest.raises(DestinationError, match="^The destination .* in the address of a table: choose another name.$"):
        ObjectStore(f"s3://bucket/{name}")
