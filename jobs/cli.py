"""The command line: names of commands and options, and the one place where errors become exit codes.

It turns arguments into a Config and a call, and holds no logic of its own.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from jobs import console
from jobs.transcribe import Request, execute
from model.errors import EarwitnessError, UsageError
from pipeline.config import Config, from_toml

EXIT_CODES = """
Exit codes: 0 done (files that could not be read are rows, not errors) · 1 a bug, with its traceback ·
2 wrong use · 3 no such archive, or no audio in it · 4 the destination cannot be used · 5 no such model ·
130 interrupted, resumable.
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Whisper over whole audio archives: hand it a bucket, get tables that answer SQL.",
    epilog=EXIT_CODES,
)
models = typer.Typer(no_args_is_help=True, help="See which models are here, and get others.")
app.add_typer(models, name="models")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]
Destination = Annotated[str, typer.Argument(metavar="DEST", help="Folder or url that holds the tables.")]


@app.command()
def transcribe(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Files, folders, globs or urls.")],
    to: Annotated[str, typer.Option("--to", metavar="DEST", help="Folder or url for the tables.")],
    model: Annotated[str | None, typer.Option(help="Name or path of the weights; base if left out.")] = None,
    language: Annotated[str | None, typer.Option(help="Spoken language; found for each part if left out.")] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate into English.")] = None,
    initial_prompt: Annotated[str | None, typer.Option(help="Text that each part starts from: names, terms.")] = None,
    previous_text: Annotated[
        bool | None,
        typer.Option("--previous-text/--no-previous-text", help="Prompt each window with the text before it."),
    ] = None,
    part_seconds: Annotated[float | None, typer.Option(help="Longest part, 5 to 900, or inf for whole files.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of options; those given here win.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on; this machine if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Transcribe every audio and video file of an archive that the tables do not have yet."""
    settings = from_toml(config) if config else Config()
    decode = _given(language=language, task=task, initial_prompt=initial_prompt, previous_text=previous_text)
    if language == "auto":
        decode["language"] = None
    settings = replace(
        settings,
        decode=replace(settings.decode, **decode),
        read=replace(settings.read, **_given(part_seconds=part_seconds)),
        **_given(model=model),
    )
    watcher = console.Json() if as_json else console.Progressing(dry_run)
    execute(Request(tuple(sources), to, settings, address, dry_run), watcher)


@app.command()
def status(dest: Destination, as_json: Json = False) -> None:
    """How far an archive is: files and hours done, pending and failed."""
    from jobs.status import show_status

    show_status(dest, as_json)


@app.command()
def sql(
    dest: Destination,
    query: Annotated[str | None, typer.Argument(metavar="SELECT", help="One query; a shell if left out.")] = None,
    output: Annotated[str, typer.Option("--format", help="table, csv, json or parquet.")] = "table",
) -> None:
    """Ask the transcripts in SQL (DuckDB): views segments, parts, files, failures, review_queue, coverage, media."""
    from jobs.sql import ask, shell

    if query is None:
        shell(dest)
    else:
        ask(dest, query, output)


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """Every official model, and where its weights were found."""
    from jobs.models import show_models

    show_models(as_json)


@models.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="An official name, as large-v3-turbo.")]) -> None:
    """Fetch official weights, checked against their published sha256."""
    from jobs.models import pull_model as pull

    pull(name)


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--to", help="Folder for the demo archive and its tables.")] = Path("demo"),
) -> None:
    """Transcribe a small real archive in nine languages, two broken files included, and show what was heard."""
    from jobs.demo import demo as run_demo

    run_demo(to)


def main() -> None:
    """Run one command; every error a user can cause ends in one sentence and a documented exit code."""
    try:
        app(standalone_mode=False, prog_name="earwitness")
    except EarwitnessError as error:
        _leave(str(error), error.exit_code)
    except TyperException as error:
        _leave(f"{error.format_message().rstrip('.')}: see `earwitness --help`.", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("Interrupted: run the same command again to go on where it stopped.", 130)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the value of the configuration file, or their default."""
    return {name: value for name, value in options.items() if value is not None}


def _leave(sentence: str, code: int) -> None:
    console.error(sentence)
    sys.exit(code)
