"""The parts of the demo: its archive, and what was said beside what was heard. The whole is run for real elsewhere."""

from __future__ import annotations

import re
import wave
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from jobs import console, demo
from jobs.demo import HEARD, LONG_FILE, NOT_AUDIO_FILE, QUESTIONS, TRUNCATED_FILE, make_archive
from jobs.samples import clips, fetch_samples
from pipeline import catalog
from pipeline.media import Decoding
from pipeline.sink import prepare
from pipeline.store import Store
from pipeline.writer import Writer
from tests.writers import WriterAt

Results = Callable[..., pa.Table]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "archive"
    make_archive(fetch_samples(), folder)
    return folder


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_archive_is_all_clips_and_three_special_files(archive: Path) -> None:
    samples = {str(path.relative_to(fetch_samples())) for path in clips(fetch_samples())}
    assert len(samples) == 27 and len({name.split("/")[0] for name in samples}) == 9
    assert set(files_of(archive)) == samples | {LONG_FILE, TRUNCATED_FILE, NOT_AUDIO_FILE}
    assert (archive / "en/hello_world.wav").read_bytes() == (fetch_samples() / "en/hello_world.wav").read_bytes()


def test_making_it_again_touches_nothing(archive: Path) -> None:
    """A file that is written again is a new version, and would be transcribed again."""
    before = files_of(archive)
    make_archive(fetch_samples(), archive)
    assert files_of(archive) == before


def test_what_was_interrupted_is_made_whole(tmp_path: Path) -> None:
    make_archive(fetch_samples(), tmp_path)
    (tmp_path / LONG_FILE).unlink()
    (tmp_path / NOT_AUDIO_FILE).unlink()  # which is written last
    make_archive(fetch_samples(), tmp_path)
    assert (tmp_path / LONG_FILE).exists() and (tmp_path / NOT_AUDIO_FILE).exists()


def test_the_long_file_is_three_parts_of_a_minute(archive: Path) -> None:
    with wave.open(str(archive / LONG_FILE)) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert 120 < file.getnframes() / file.getframerate() < 180


def test_the_damaged_files_are_what_they_claim(archive: Path) -> None:
    whole = (archive / "en/quick_brown_fox.wav").read_bytes()
    cut = (archive / TRUNCATED_FILE).read_bytes()
    assert whole.startswith(cut) and 0.5 < len(cut) / len(whole) < 0.7
    for name, status in ((TRUNCATED_FILE, "truncated"), (NOT_AUDIO_FILE, "no_audio"), (LONG_FILE, "ok")):
        decoding = Decoding(archive / name)
        for _ in decoding:
            pass
        assert decoding.report.status == status


@pytest.fixture
def heard(tmp_path: Path, results: Results, writer_at: WriterAt) -> Writer:
    """Tables in which one clip was heard in its language and one in another."""
    store = writer_at(str(tmp_path / "tables"))
    for name, language in (("en/hello_world", "en"), ("it/ciao_mondo", "fr")):
        batch = results(name, parts=1, segments=2).to_pylist()
        for row in batch:
            row["uri"] = f"file:///demo/archive/{name}.wav"
            for segment in row["segment_rows"]:
                segment |= {"language": language, "text": f" Hello [{language}]."}
        store.publish([prepare(store.objects, pa.Table.from_pylist(batch, schema=results("x").schema))])
    return store


SAID = {"en/hello_world": "Hello world.", "it/ciao_mondo": "Ciao mondo.", "zh/nihao_shijie": "你好世界。"}


@pytest.mark.parametrize("width", [80, 120])
def test_said_beside_heard(
    heard: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(console, "out", Console(width=width, highlight=False, color_system=None))
    demo._show_heard(SAID, catalog.query(heard, HEARD))
    lines = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["clip", "found", "sure", "said", "heard"],
        ["en/hello_world", "en", "0.99", "Hello world.", "Hello [en]. Hello [en]."],
        ["it/ciao_mondo", "fr", "0.99", "Ciao mondo.", "Hello [fr]. Hello [fr]."],
        ["zh/nihao_shijie", "-", "-", "你好世界。", "(nothing)"],
    ]


def test_a_wrong_language_is_yellow(
    heard: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = Console(width=80, highlight=False, force_terminal=True, color_system="standard")
    monkeypatch.setattr(console, "out", colours)
    demo._show_heard(SAID, catalog.query(heard, HEARD))
    said = capsys.readouterr().out
    assert "\x1b[33mfr" in said and "\x1b[33m-" in said and "\x1b[33men" not in said


def test_the_questions_can_be_asked(heard: Store) -> None:
    by_language, hello = (catalog.query(heard, question) for question in QUESTIONS)
    assert by_language.to_pylist() == [
        {"language": "en", "files": 1, "seconds": 8.0},
        {"language": "fr", "files": 1, "seconds": 8.0},
    ]
    assert hello["file"].to_pylist() == ["ciao_mondo.wav"] * 2 + ["hello_world.wav"] * 2
