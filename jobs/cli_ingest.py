"""The command for every night: `earwitness ingest`.

As `cli.py`, it turns arguments into a Config and a call, and what the command needs is imported when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import flags

app = typer.Typer()


@app.command()
def ingest(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", hidden=True)],
    to: Annotated[str, typer.Option("--to", metavar="DEST", help="Folder or url for the tables.")],
    max_hours: flags.MaxHours = None,
    deadline: flags.Deadline = None,
    cost_per_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="Of a GPU, or of a machine without, for the estimate of cost.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Name or path of the weights; else base.")] = None,
    language: Annotated[
        str | None, typer.Option(metavar="LANGUAGE", help="What is spoken; else found for each part.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="transcribe, or translate into English.")] = None,
    precision: flags.Precision = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Options as TOML; those given here win.")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster; else this machine.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the row of the table of runs as JSON.")] = False,
) -> None:
    """Transcribe what is new or has changed, every night.

    SOURCE is as for transcribe. Of what is pending the oldest comes first; what a bound leaves is done the next night,
    and is no error.

    It ends with one line, and with a row in the view runs. While another process writes to DEST it does nothing, says
    who that is, and ends with 6; every other exit code is that of transcribe.
    """
    from pipeline.config import configured

    given: dict[str, Any] = _given(model=model) | {
        "decode": _given(language=language, task=task),
        "run": _given(precision=precision, cost_per_hour=cost_per_hour),
    }
    if language == "auto":
        given["decode"]["language"] = None
    settings = configured(config, given)
    from jobs.cluster import prepare_environment

    prepare_environment()
    from jobs import ingest as night
    from jobs.transcribe import Request, execute

    limits = night.bounds(max_hours, deadline)
    watcher = night.Json() if as_json else night.Nightly()
    execute(Request(tuple(sources), to, settings, address, command="ingest", bounds=limits), watcher)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
