"""Sixteen hundred professional telephone prompts with their transcripts in English, Spanish and French, from Debian.

The recordings of the Asterisk project (CC BY-SA 3.0; Allison Smith, June Wallack) come as Debian packages, which are
fetched against their sha256 and unpacked here: a package is an `ar` archive of a compressed tar. It refuses to know
what the prompts are used for.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.errors import SourceError

VERSION = "1.6.1"
POOL = "http://deb.debian.org/debian/pool/main/a/asterisk-core-sounds"  # plain: the digests vouch for what arrives
NETWORK_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Voice:
    """One language: the sha256 of its two packages, and the folder of its sounds."""

    language: str
    texts_sha256: str
    sounds_sha256: str


VOICES = (
    Voice(
        "en",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    ),
    Voice(
        "es",
        "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
        "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    ),
    Voice(
        "fr",
        "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
        "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    ),
)

LICENCE_FILE = "LICENCE"
LICENCE = f"""The recordings in en/, es/ and fr/ and their transcripts are the core sounds of Asterisk {VERSION},
recorded by Allison Smith (en, es) and June Wallack (fr), under Creative Commons BY-SA 3.0
(https://creativecommons.org/licenses/by-sa/3.0/). They were taken, unchanged, from Debian's packages
asterisk-core-sounds-*; COPYRIGHT in each folder is theirs.
"""

# A transcript that describes a sound, or spells a symbol, is not what is said.
NOT_SPOKEN = "[(<"
_SOUNDS = "./usr/share/asterisk/sounds/"  # then VOICE/NAME.wav
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


def fetch_prompts(folder: Path, pool: str | None = None) -> Path:
    """`folder` with LANGUAGE/NAME.wav beside LANGUAGE/NAME.txt; 60 MB are fetched once, then found.

    Raises: `SourceError` when the network fails, other bytes arrive, or the folder is in use or cannot be written.
    """
    if (folder / LICENCE_FILE).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            unpacked = Path(scratch) / "prompts"
            for voice in VOICES:
                _unpack(voice, pool or POOL, unpacked / voice.language)
            (unpacked / LICENCE_FILE).write_text(LICENCE, encoding="utf-8")
            unpacked.rename(folder)  # onto nothing, or an empty folder
    except OSError as error:
        raise SourceError(
            f"The prompts cannot be stored in {folder} ({error.strerror or error}): make room, or name a folder that "
            f"does not exist."
        ) from error
    return folder


def default_folder() -> Path:
    """Where the prompts go when nobody says: in $XDG_CACHE_HOME or ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "earwitness" / f"prompts-{VERSION}"


def _unpack(voice: Voice, pool: str, target: Path) -> None:
    package = f"asterisk-core-sounds-{voice.language}"
    texts = dict(_texts(_fetch(f"{pool}/{package}_{VERSION}-1_all.deb", voice.texts_sha256)))
    for name, content in _files(_fetch(f"{pool}/{package}-wav_{VERSION}-1_all.deb", voice.sounds_sha256)):
        if name.endswith("/copyright"):
            _write(target / "COPYRIGHT", content)
        _, is_sound, within = name.partition(_SOUNDS)
        prompt = within.partition("/")[2].removesuffix(".wav")
        if is_sound and prompt in texts:
            _write(target / f"{prompt}.wav", content)
            _write(target / f"{prompt}.txt", f"{texts[prompt]}\n".encode())


def _texts(package: bytes) -> Iterator[tuple[str, str]]:
    """Name and words of every prompt in which only words are heard."""
    listing = next(content for name, content in _files(package) if name.endswith(".txt.gz"))
    for line in gzip.decompress(listing).decode().splitlines():
        name, _, text = line.partition(":")
        if text.strip() and not line.startswith(";") and not any(sign in text for sign in NOT_SPOKEN):
            yield name.strip(), text.strip()


def _files(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file that a Debian package would install."""
    with tarfile.open(fileobj=io.BytesIO(_member(package, "data.tar.xz")), mode="r:xz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def _member(archive: bytes, wanted: str) -> bytes:
    """Content of one member of an `ar` archive: each follows a header of 60 bytes, and starts at an even place."""
    place = len(_AR_MAGIC)
    while place < len(archive):
        header = archive[place : place + _AR_HEADER]
        name, size = header[:16].decode().strip().removesuffix("/"), int(header[48:58])
        place += _AR_HEADER
        if name == wanted:
            return archive[place : place + size]
        place += size + size % 2
    raise SourceError(f"The package holds no {wanted}: its format is not Debian's of {VERSION}.")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _fetch(url: str, sha256: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as response:
            content: bytes = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceError(f"{url} cannot be fetched ({error}): check the network and try again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SourceError(f"What {url} sent is not the published package: try again, or look for a proxy.")
    return content
