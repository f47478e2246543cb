"""`earwitness models`: which weights are on this machine, and how to get others."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from rich.progress import DownloadColumn, Progress, TextColumn

from jobs import console
from pipeline import weights


def show_models(as_json: bool) -> None:
    """Print every official model: its size, its languages, and where its weights were found."""
    available = weights.available()
    if as_json:
        fields = ("name", "parameters", "is_multilingual", "found")
        rows = [{name: getattr(model, name) for name in fields} for model in available]
        print(json.dumps(rows, default=str))
        return
    rows = [
        {
            "model": model.name,
            "M parameters": round(model.parameters / 1e6),
            "languages": "many" if model.is_multilingual else "English",
            "found": _place(model.found) if model.found else "-",
        }
        for model in available
    ]
    console.show(pa.Table.from_pylist(rows))
    console.out.print("\nGet another with `earwitness models pull NAME`; --model takes a path as well.", soft_wrap=True)


def pull_model(name: str) -> None:
    """Fetch official weights with a progress line on standard error.

    Raises: `ModelError` when the name is not official, the network fails, or the bytes are not the published ones.
    """
    columns = (TextColumn("{task.description}"), DownloadColumn())
    quiet = not console.err.is_terminal
    with Progress(*columns, console=console.err, transient=True, disable=quiet) as progress:
        task = progress.add_task(name, total=None)
        path = weights.pull(name, lambda done, total: progress.update(task, completed=done, total=total or None))
    console.out.print(f"{name} is at {path}.", soft_wrap=True)


def _place(found: Path) -> str:
    """Where weights lie, short enough for a table: the package that brought them, or a path from home."""
    if "site-packages" in found.parts:
        return f"package {found.parts[found.parts.index('site-packages') + 1]}"
    return str(Path("~") / found.relative_to(Path.home())) if found.is_relative_to(Path.home()) else str(found)
