"""The command for every night: `earwitness ingest`.

As `cli.py`, it turns arguments into a Config and a call, and what the command needs is imported when it is called.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import flags

app = typer.Typer()


@app.command()
def ingest(
    sources: flags.Sources,
    to: flags.To,
    max_hours: flags.MaxHours = None,
    deadline: flags.Deadline = None,
    cost_per_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="Of a GPU, or of a machine without, for the estimate of cost.")
    ] = None,
    model: flags.ModelName = None,
    language: flags.Language = None,
    task: flags.Task = None,
    precision: flags.Precision = None,
    config: flags.ConfigFile = None,
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

    given = flags.given(model=model) | {
        "decode": flags.decoding(language, task=task),
        "run": flags.given(precision=precision, cost_per_hour=cost_per_hour),
    }
    settings = configured(config, given)
    from jobs.cluster import prepare_environment

    prepare_environment()
    from jobs import ingest as night
    from jobs.transcribe import Request, execute

    limits = night.bounds(max_hours, deadline)
    watcher = night.Json() if as_json else night.Nightly()
    execute(Request(tuple(sources), to, settings, address, command="ingest", bounds=limits), watcher)
