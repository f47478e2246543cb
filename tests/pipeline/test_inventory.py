"""Listing and fetching: local folders with hostile names, a real S3 server, and every way in which a source fails."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from infra.s3_server import S3Server, s3_server
from model.errors import MediaError, SourceError
from pipeline import inventory
from pipeline.inventory import (
    CHANGED,
    LISTING,
    MEDIA_SUFFIXES,
    MediaObject,
    _read,
    choose_part_seconds,
    estimate_seconds,
    fetch,
    list_media,
    listing,
    roots,
)
from tests.chaos.proxy import Fault, faulty

ODD_NAMES = [
    "with space.wav",
    "#1 100% sure?.wav",
    "a*b[c].wav",
    "line\nbreak.wav",
    "🎙 Ünïcode.wav",
    "-i.wav",
    "concat:a.wav|b.wav",
    "%20.wav",
    "::x::.wav",
    "~.wav",
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive: audio in two folders, and what else lies about on a disk."""
    folder = tmp_path / "archive"
    for name in ("b.wav", "a.MP3", "sub/c.opus", "notes.txt", ".DS_Store", "._b.wav", ".trash/d.wav", "sub/._c.opus"):
        put(folder / name, name.encode())
    return folder


def put(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*sources: str | Path) -> list[MediaObject]:
    return list(list_media([str(source) for source in sources]))


def relative(media: list[MediaObject], root: Path) -> list[str]:
    return [one.uri.removeprefix(f"file://{root}/") for one in media]


def test_a_folder_gives_its_visible_media_by_name(archive: Path) -> None:
    assert relative(found(archive), archive) == ["a.MP3", "b.wav", "sub/c.opus"]


def test_a_folder_that_is_itself_hidden_is_read(archive: Path) -> None:
    assert relative(found(archive / ".trash"), archive) == [".trash/d.wav"]


@pytest.mark.parametrize("prefix", ["", "file://", "local://"])
def test_a_source_may_have_a_scheme_or_none(archive: Path, prefix: str) -> None:
    assert relative(found(f"{prefix}{archive}/"), archive) == ["a.MP3", "b.wav", "sub/c.opus"]


def test_a_relative_source_becomes_absolute(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive)
    assert found("sub") == found(archive / "sub")
    assert found("b.wav") == found(archive / "b.wav")


def test_a_file_that_is_named_is_taken_whatever_its_suffix(archive: Path) -> None:
    assert relative(found(archive / "notes.txt"), archive) == ["notes.txt"]


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("*.wav", ["b.wav"]),
        ("?.*", ["a.MP3", "b.wav"]),
        ("**/*.opus", ["sub/c.opus"]),
        ("su[b]", ["sub/c.opus"]),
        ("*", ["a.MP3", "b.wav", "sub/c.opus"]),
    ],
)
def test_a_glob_gives_the_media_that_match(archive: Path, pattern: str, names: list[str]) -> None:
    assert relative(found(archive / pattern), archive) == names


def test_a_tree_is_listed_by_name_whatever_is_a_folder_in_it(tmp_path: Path) -> None:
    """A folder stands where its "/" does: behind `a.b.wav`, before `a0.wav`."""
    names = ["a/x.wav", "a.b.wav", "a0.wav", "a/x/y.wav", "A.wav", "b/z.wav", "a b/c.wav"]
    for name in names:
        put(tmp_path / name)
    assert relative(found(tmp_path), tmp_path) == sorted(names)


def test_a_listing_is_columns_of_the_same_objects(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inventory.LISTED_AT_ONCE", 2)
    batches = list(listing([str(archive)]))
    assert [batch.num_rows for batch in batches] == [2, 1]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [{name: getattr(media, name) for name in LISTING.names} for media in found(archive)]


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("/data/calls", "file:///data/calls/"),
        ("file:///data/calls/", "file:///data/calls/"),
        ("/data/20*/x?.wav", "file:///data/20"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/a/b.wav", "s3://bucket/a/b.wav/"),
        ("https://host/a.wav", "https://host/a.wav/"),
    ],
)
def test_the_uris_of_a_source_have_a_beginning(source: str, root: str) -> None:
    assert roots([source]) == (root,)


def test_sources_keep_their_order_and_an_object_comes_once(archive: Path) -> None:
    assert relative(found(archive / "sub", archive, archive / "b.wav"), archive) == ["sub/c.opus", "a.MP3", "b.wav"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_survives_listing_and_fetching(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "in" / name, name.encode())
    (listed,) = found(tmp_path / "in")
    assert listed == found(path)[0]
    assert listed.uri == f"file://{path}"
    target = tmp_path / "copy"
    assert fetch(listed.uri, listed.version, target) == hashlib.sha256(name.encode()).hexdigest()
    assert target.read_bytes() == name.encode()


def test_an_object_says_when_and_how_large(archive: Path) -> None:
    os.utime(archive / "b.wav", (1_700_000_000, 1_700_000_000.25))
    (media,) = found(archive / "b.wav")
    assert media.bytes == len("b.wav")
    assert media.modified_at == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert len(media.media_id) == 32 and int(media.media_id, 16)


def test_the_name_of_an_object_changes_with_it_and_with_nothing_else(archive: Path) -> None:
    before = found(archive / "b.wav")
    assert found(archive / "b.wav") == before
    os.utime(archive / "b.wav", ns=(5, 5))
    touched = found(archive / "b.wav")
    put(archive / "b.wav", b"longer than before")
    os.utime(archive / "b.wav", ns=(5, 5))
    names = {media[0].media_id for media in (before, touched, found(archive / "b.wav"))}
    assert len(names) == 3


def test_a_linked_file_is_what_it_leads_to_and_a_linked_folder_is_not_followed(archive: Path, tmp_path: Path) -> None:
    target = put(tmp_path / "elsewhere" / "real.bin", b"linked audio")
    (archive / "sub" / "link.wav").symlink_to(target)
    (archive / "sub" / "dangling.wav").symlink_to(tmp_path / "nowhere")
    (archive / "sub" / "loop.wav").symlink_to(archive)
    link, _ = sorted(found(archive / "sub"), key=lambda media: media.uri.endswith("c.opus"))
    assert link.uri.endswith("link.wav") and link.bytes == len(b"linked audio")
    assert len(fetch(link.uri, link.version, tmp_path / "copy")) == 64


def test_a_name_that_is_no_utf8_becomes_a_failed_row(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb"):
        pass
    (media,) = found(tmp_path)
    assert media.uri == f"file://{tmp_path}/caf\\xe9.wav"
    with pytest.raises(MediaError, match="UTF-8") as failure:
        fetch(media.uri, media.version, tmp_path / "copy")
    assert failure.value.status == "failed"


def test_a_fetch_of_several_chunks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inventory.COPY_BYTES", 7)
    put(tmp_path / "a.wav", b"0123456789" * 5)
    (media,) = found(tmp_path / "a.wav")
    assert fetch(media.uri, media.version, tmp_path / "copy") == hashlib.sha256(b"0123456789" * 5).hexdigest()
    assert (tmp_path / "copy").read_bytes() == b"0123456789" * 5


def grow(path: Path) -> None:
    put(path, b"more than before")


@pytest.mark.parametrize("change, reason", [(Path.unlink, "gone"), (grow, "changed")])
def test_an_object_that_is_not_what_was_listed_is_a_failed_row(
    archive: Path, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    (media,) = found(archive / "b.wav")
    change(archive / "b.wav")
    with pytest.raises(MediaError, match=reason) as failure:
        fetch(media.uri, media.version, tmp_path / "copy")
    assert failure.value.status == "failed"


def changed_while_read(media: MediaObject, change: Callable[[], object]) -> str:
    """What is said of an object that changes when its first chunk was read."""
    chunks = _read(media.uri, media.version)
    next(chunks)
    change()
    with pytest.raises(MediaError) as failure:
        list(chunks)
    assert failure.value.status == "failed"
    return str(failure.value)


@pytest.mark.parametrize("content", [b"B" * 50, b"B" * 60, b"B" * 40], ids=["as long", "longer", "shorter"])
def test_a_file_that_changes_while_it_is_read_is_a_failed_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr("pipeline.inventory.COPY_BYTES", 7)
    path = put(tmp_path / "a.wav", b"A" * 50)
    os.utime(path, (1, 1))
    (media,) = found(path)
    assert changed_while_read(media, lambda: path.write_bytes(content)) == CHANGED
    (now,) = found(path)
    assert fetch(now.uri, now.version, tmp_path / "copy") == hashlib.sha256(content).hexdigest()


def test_a_disk_that_is_full_is_no_fault_of_the_object(archive: Path) -> None:
    (media,) = found(archive / "b.wav")
    with pytest.raises(OSError, match="No space"):
        fetch(media.uri, media.version, Path("/dev/full"))


class Locked(LocalFileSystem):
    """Local files of which a folder named `locked`, and a file named `locked.wav`, may not be read."""

    protocol = "locked"

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        if path.endswith("/locked"):
            raise PermissionError(13, "Permission denied", path)
        return super().ls(path, detail=detail, **options)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if path.endswith("/locked.wav"):
            raise PermissionError(13, "Permission denied", path)
        return super()._open(path, mode, block_size, **options)


@pytest.fixture
def locked(archive: Path) -> Path:
    fsspec.register_implementation("locked", Locked, clobber=True)
    put(archive / "locked.wav")
    return archive


def test_a_folder_that_may_not_be_read_is_never_skipped(locked: Path) -> None:
    put(locked / "locked" / "e.wav")
    for source in (f"locked://{locked}", f"locked://{locked}/*"):
        with pytest.raises(SourceError, match="locked may not be read: check its permissions"):
            found(source)


def test_an_object_that_may_not_be_read_is_a_failed_row(locked: Path, tmp_path: Path) -> None:
    (media,) = found(f"locked://{locked}/locked.wav")
    assert media.uri.startswith("locked:///")
    with pytest.raises(MediaError, match="may not be read"):
        fetch(media.uri, media.version, tmp_path / "copy")


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("/no/such/folder", "/no/such/folder does not exist: there is no such file, folder or bucket."),
        ("/dev/*.wav", "/dev/*.wav matches nothing: give a file, a folder, or a glob that matches one."),
        ("/dev/null/x.wav", "/dev/null/x.wav does not exist: there is no such file, folder or bucket."),
        ("/dev/null", "/dev/null is neither a file nor a folder: give one of these, or a glob."),
        ("ufo://x", "ufo://x is not an address that can be listed: Protocol not known: ufo."),
        ("gs://x", "gs://x needs a package that is not installed: Please install gcsfs to access Google Storage."),
    ],
)
def test_a_source_that_cannot_be_listed_is_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(SourceError) as failure:
        found(source)
    assert str(failure.value) == sentence


def test_s3_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(SourceError, match=r"pip install 'earwitness\[s3\]'"):
        found("s3://bucket/x")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server, and the environment in which everybody else finds it."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    client = fsspec.get_filesystem_class("s3")
    client.clear_instance_cache()
    files = client()
    if not files.exists("archive"):
        files.mkdir("archive")
    yield files
    client.clear_instance_cache()


def test_a_bucket_is_listed_and_fetched_like_a_folder(s3: Any, tmp_path: Path) -> None:
    names = [*ODD_NAMES, "deep/er/x.mp3", "deep/notes.txt", "._b.wav"]
    for name in names:
        s3.pipe_file(f"archive/names/{name}", name.encode())
    listed = found("s3://archive/names")
    expected = sorted(f"s3://archive/names/{name}" for name in names if not name.endswith((".txt", "._b.wav")))
    assert [media.uri for media in listed] == expected
    for media in listed:
        name = media.uri.removeprefix("s3://archive/names/")
        assert fetch(media.uri, media.version, tmp_path / "copy") == hashlib.sha256(name.encode()).hexdigest()
        assert media.modified_at and media.bytes == len(name.encode())


def test_a_bucket_of_several_pages_is_whole(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.entries.NAMES_AT_ONCE", 3)
    s3.pipe({f"archive/pages/{number:02d}.wav": b"x" for number in range(7)})
    s3.pipe_file("archive/pages of another/x.wav", b"x")
    assert [media.uri[-6:] for media in found("s3://archive/pages")] == [f"{number:02d}.wav" for number in range(7)]


def test_an_object_of_s3_has_its_etag_for_a_version(s3: Any, tmp_path: Path) -> None:
    s3.pipe_file("archive/versions/a.wav", b"first")
    (before,) = found("s3://archive/versions/a.wav")
    assert before.version == hashlib.md5(b"first").hexdigest()
    assert found("s3://archive/versions") == found("s3://archive/versions/*.wav") == [before]
    s3.pipe_file("archive/versions/a.wav", b"other")
    assert found("s3://archive/versions")[0].media_id != before.media_id
    with pytest.raises(MediaError, match="changed"):
        fetch(before.uri, before.version, tmp_path / "copy")
    s3.rm("archive/versions/a.wav")
    with pytest.raises(MediaError, match="gone"):
        fetch(before.uri, before.version, tmp_path / "copy")


def test_an_object_of_s3_that_changes_while_it_is_read_is_never_mixed(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "default_block_size", 1000)  # a request for every chunk
    monkeypatch.setattr("pipeline.inventory.COPY_BYTES", 1000)
    s3.pipe_file("archive/changing/a.wav", b"A" * 5000)
    (before,) = found("s3://archive/changing")
    assert changed_while_read(before, lambda: s3.pipe_file("archive/changing/a.wav", b"B" * 5000)) == CHANGED
    (now,) = found("s3://archive/changing")
    assert now.media_id != before.media_id
    assert fetch(now.uri, now.version, tmp_path / "copy") == hashlib.sha256(b"B" * 5000).hexdigest()


def test_what_s3_listed_a_while_ago_is_not_believed(s3: Any, tmp_path: Path) -> None:
    """The listing stays in the memory of s3fs, and says that nothing has changed."""
    s3.pipe_file("archive/stale/a.wav", b"A" * 5000)
    (media,) = found("s3://archive/stale")
    other = type(s3)(skip_instance_cache=True)
    other.pipe_file("archive/stale/a.wav", b"B" * 5000)
    with pytest.raises(MediaError, match=CHANGED):
        fetch(media.uri, media.version, tmp_path / "copy")


def test_a_bucket_that_does_not_exist_is_one_sentence(s3: Any) -> None:
    for source in ("s3://no-such-bucket", "s3://no-such-bucket/x", "s3://archive/no-such-prefix"):
        with pytest.raises(SourceError, match="does not exist|may not be read"):
            found(source)


def test_wrong_credentials_are_one_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    type(s3).clear_instance_cache()
    with pytest.raises(SourceError, match="credentials"):
        found("s3://archive/names")


def test_a_server_that_does_not_answer_is_one_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(s3).clear_instance_cache()
    with pytest.raises(SourceError, match="cannot be listed: Could not connect"):
        found("s3://archive/names")


@pytest.mark.parametrize("patience", [inventory.PATIENCE_SECONDS, 0.0])
def test_a_server_that_is_away_for_a_moment_costs_no_object(
    s3: Any, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    s3.pipe_file("archive/away/a.wav", b"all of it")
    (media,) = found("s3://archive/away")
    monkeypatch.setattr(inventory, "PATIENCE_SECONDS", patience)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty(server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        type(s3).clear_instance_cache()
        back = time.monotonic() + 4.0  # longer than s3fs itself tries again
        proxy.expect(lambda call: Fault.LOST_REQUEST if time.monotonic() < back else None)
        with nullcontext() if patience else pytest.raises(MediaError, match="could not be fetched"):
            digest = fetch(media.uri, media.version, tmp_path / "a.wav")
            assert digest == hashlib.sha256(b"all of it").hexdigest()
        assert proxy.struck


def test_every_suffix_has_a_plausible_rate() -> None:
    for suffix in MEDIA_SUFFIXES:
        assert suffix == suffix.lower() and suffix.startswith(".")
        assert 1_000 <= 1e6 / estimate_seconds(f"x{suffix}", 1_000_000) <= 1_000_000
    assert estimate_seconds("file:///a/B.WAV", 32_000 * 60) == 60.0
    assert estimate_seconds("file:///a/unknown", 16_000) == 1.0


@pytest.mark.parametrize(
    "audio_seconds, slots, part_seconds",
    [
        (0.0, 16, 30.0),
        (600.0, 16, 30.0),  # one window: as short as parts get
        (3600.0, 24, 30.0),  # 50 seconds would be a fair share, and end in a window that is nearly empty
        (3600.0, 16, 57.0),  # two windows, three parts for each slot
        (7200.0, 24, 84.0),
        (36_000.0, 16, 300.0),  # ten hours: as long as is planned
        (1000.0, 0, 300.0),
    ],
)
def test_the_length_of_parts_fills_the_slots(audio_seconds: float, slots: int, part_seconds: float) -> None:
    assert choose_part_seconds(audio_seconds, slots) == part_seconds
