"""`earwitness demo`: the main job on a small real archive, and what came of it next to what was said.

The archive: 27 clips in nine languages, one long file, one cut short, one that is no audio at all. All of it goes
through the same `execute` as any other run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from jobs import console
from jobs.progress import Progressing
from jobs.samples import assemble, clips, fetch_samples, spoken
from jobs.transcribe import Request, execute
from pipeline import catalog
from pipeline.config import Config
from pipeline.store import Store

LONG_FILE = "long/everything_twice.wav"  # 170 s: three parts of at most a minute
TRUNCATED_FILE = "damaged/cut_short.wav"
NOT_AUDIO_FILE = "damaged/shopping_list.mp3"
KEPT_OF_TRUNCATED = 0.6

HEARD = """
    SELECT regexp_extract(uri, '([^/]+/[^/]+)\\.[^./]+$', 1) AS clip, any_value(language) AS language,
        any_value(language_probability) AS language_probability, string_agg(trim(text), ' ' ORDER BY "start") AS heard
    FROM segments GROUP BY uri"""
NOT_WHOLE = "SELECT parse_filename(uri) AS file, status, error FROM files WHERE status <> 'ok' ORDER BY uri"
QUESTIONS = (
    'SELECT language, count(DISTINCT uri) AS files, round(sum("end" - start), 1) AS seconds\n'
    "FROM segments GROUP BY language ORDER BY seconds DESC, language",
    "SELECT parse_filename(uri) AS file, round(start, 1) AS start, text\n"
    "FROM segments WHERE text ILIKE '%hello%' ORDER BY file, start",
)


def demo(folder: Path) -> None:
    """Make the archive, transcribe it with the base model, and print what was heard, what failed and two answers.

    Raises: `SourceError` when the clips cannot be fetched; `ModelError` when the weights are not installed.
    """
    samples = fetch_samples()
    archive, tables = folder / "archive", str(folder / "transcripts")
    make_archive(samples, archive)
    summary = execute(Request((str(archive),), tables, Config(model="base")), Progressing())
    if not summary.pending:
        console.out.print(f"Remove {folder} to hear it again.")
        return
    store = Store.open(tables)
    _headline("Said and heard")
    _show_heard(spoken(samples), catalog.query(store, HEARD))
    _headline("Not whole, or not audio")
    console.show(catalog.query(store, NOT_WHOLE))
    for question in QUESTIONS:
        quote = "'" if '"' in question else '"'
        _headline(f"earwitness sql {tables} {quote}{question}{quote}")
        console.show(catalog.query(store, question))


def make_archive(samples: Path, archive: Path) -> None:
    """Lay out the demo's files below `archive`, unless they lie there already."""
    if (archive / NOT_AUDIO_FILE).exists():
        return
    for clip in clips(samples):
        target = archive / clip.parent.name / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, target)
    for name in (LONG_FILE, TRUNCATED_FILE):
        (archive / name).parent.mkdir(exist_ok=True)
    assemble(samples, archive / LONG_FILE, repeat=2)
    whole = (samples / "en" / "quick_brown_fox.wav").read_bytes()
    (archive / TRUNCATED_FILE).write_bytes(whole[: int(len(whole) * KEPT_OF_TRUNCATED)])
    (archive / NOT_AUDIO_FILE).write_text("bread, milk, a new microphone\n")


def _headline(text: str) -> None:
    console.out.print(Text(f"\n{text}", style="bold"), soft_wrap=True)


def _show_heard(said: dict[str, str], rows: pa.Table) -> None:
    """One line per clip; a language that was taken for another is yellow."""
    heard = {row["clip"]: row for row in rows.to_pylist()}
    table = Table(box=None, pad_edge=False, padding=(0, console.GAP, 0, 0), header_style="bold")
    for name in ("clip", "found", "sure", "said", "heard"):
        table.add_column(name, overflow="fold", ratio=1 if name in ("said", "heard") else None)
    for clip, text in said.items():
        row = heard.get(clip, {"language": "-", "language_probability": None, "heard": "(nothing)"})
        found = Text(row["language"], style="" if row["language"] == clip.partition("/")[0] else "yellow")
        sure = console.cell(row["language_probability"]) or "-"
        table.add_row(Text(clip), found, Text(sure), Text(text), Text(row["heard"]))
    console.out.print(table)
