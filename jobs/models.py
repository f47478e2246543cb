"""`earwitness models`: which weights are on this machine, and how to get others."""

from __future__ import annotations

import json

import pyarrow as pa
from rich.progress import DownloadColumn, Progress, TextColumn

from jobs import console
from pipeline import weights


def show_models(as_json: bool) -> None:
    """Print every official model: its size, its languages, and where its weights were found."""
    rows = [
        {
            "model": model.name,
            "parameters": f"{model.million_parameters:,.0f} M",
            "languages": "many" if model.is_multilingual else "English",
            "found": str(model.found) if model.found else None,
        }
        for model in weights.available()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    here = [row | {"found": row["found"] or "-"} for row in rows]
    console.show(pa.Table.from_pylist(here))
    console.out.print("\nGet another with `earwitness models pull NAME`; --model takes a path as well.")


def pull_model(name: str) -> None:
    """Fetch official weights with a progress line on standard error.

    Raises: `ModelError` when the name is not official, the network fails, or the bytes are not the published ones.
    """
    columns = (TextColumn("{task.description}"), DownloadColumn())
    with Progress(*columns, console=console.err, transient=True) as progress:
        task = progress.add_task(name, total=None)
        path = weights.pull(name, lambda done, total: progress.update(task, completed=done, total=total))
    console.out.print(f"{name} is at {path}.", soft_wrap=True)
