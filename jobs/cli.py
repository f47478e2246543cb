"""The command line: names of commands and options, and the one place where errors become exit codes.

It turns arguments into a Config and a call, and holds no logic of its own. What a command needs is imported when it is
called: torch and Ray take seconds, and a table of transcripts needs neither.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from jobs import cli_cluster, cli_ingest, flags
from model.errors import INTERRUPTED, EarwitnessError, UsageError

PIPE_CLOSED = 141  # 128 + SIGPIPE

# "\b" keeps the lines of a paragraph apart.
EXIT_CODES = """
\b
Exit codes:
  0    done; a file that cannot be read is a row of the tables, not an error
  1    a bug, with its traceback
  2    wrong use: a command, an option, a query or a configuration
  3    no such archive, or no audio in it
  4    the destination cannot be used
  5    no such model
  6    another process writes to the destination, or has taken it over
  130  interrupted; the same command goes on where it stopped
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Whisper over whole audio archives: hand it a bucket, get tables that answer SQL.",
    epilog=EXIT_CODES,
)
models = typer.Typer(help="See which models are here, and get others.")
app.add_typer(models, name="models")
app.add_typer(cli_cluster.app)
app.add_typer(cli_ingest.app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]
# Arguments are told in the text of their command; typer would list them with the types of Python.
Destination = Annotated[str, typer.Argument(metavar="DEST", hidden=True)]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"earwitness {version('earwitness')}")
        raise typer.Exit


@models.callback(invoke_without_command=True)
def help_when_alone(context: typer.Context) -> None:
    """A command without its subcommand is a question."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.callback(invoke_without_command=True)
def earwitness(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """The options that stand before any command."""
    help_when_alone(context)


@app.command(cls=flags.Grouped)
def transcribe(
    sources: flags.Sources,
    to: flags.To,
    model: flags.ModelName = None,
    language: flags.Language = None,
    task: flags.Task = None,
    exact: flags.Exact = False,
    precision: flags.Precision = None,
    initial_prompt: flags.InitialPrompt = None,
    hotwords: flags.Hotwords = None,
    previous_text: flags.PreviousText = None,
    word_timestamps: flags.WordTimestamps = None,
    suppress_tokens: flags.SuppressTokens = None,
    beam_size: flags.BeamSize = None,
    patience: flags.Patience = None,
    length_penalty: flags.LengthPenalty = None,
    best_of: flags.BestOf = None,
    language_windows: flags.LanguageWindows = None,
    language_per_window: flags.LanguagePerWindow = None,
    channels: flags.Channels = None,
    stream: flags.Stream = None,
    voice_activity: flags.VoiceActivity = None,
    hallucination_silence: flags.HallucinationSilence = None,
    part_seconds: flags.PartSeconds = None,
    config: flags.ConfigFile = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster; else this machine.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Transcribe what the tables do not have yet.

    SOURCE is any number of files, folders, globs or urls; of a folder, every audio and video file is taken.
    """
    from pipeline.config import configured

    decode = flags.decoding(
        language=language,
        task=task,
        initial_prompt=initial_prompt,
        hotwords=hotwords,
        previous_text=previous_text,
        word_timestamps=word_timestamps,
        suppress_tokens=flags.token_ids(suppress_tokens),
        beam_size=beam_size,
        patience=patience,
        length_penalty=length_penalty,
        best_of=best_of,
        language_windows=language_windows,
        language_per_window=language_per_window,
        hallucination_silence=hallucination_silence,
    )
    read = flags.given(voice_activity=voice_activity, part_seconds=part_seconds, channels=channels, stream=stream)
    options = flags.given(model=model, exact=exact or None) | {"decode": decode, "read": read}
    settings = configured(config, options | {"run": flags.given(precision=precision)})
    from jobs import cluster

    cluster.prepare_environment()
    from jobs import progress
    from jobs.transcribe import Request, execute

    watcher = progress.Json() if as_json else progress.Progressing(dry_run)
    execute(Request(tuple(sources), to, settings, address, dry_run), watcher)


@app.command()
def status(dest: Destination, as_json: Json = False) -> None:
    """How far an archive is: done, pending and failed.

    DEST is the folder or url that holds the tables.
    """
    from jobs.status import show_status

    show_status(dest, as_json)


@app.command()
def sql(
    dest: Destination,
    query: Annotated[str | None, typer.Argument(metavar="SELECT", hidden=True)] = None,
    output: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", show_default=False, help="csv, json or parquet; else a table."),
    ] = "table",
) -> None:
    """Ask the transcripts in SQL.

    DEST is the folder or url that holds the tables, SELECT one query of DuckDB's; without it, a shell asks for many.

    Views: segments, words, parts, files, media, failures, review_queue, coverage, runs; all_segments, all_parts and
    all_media show older generations and versions too.
    """
    from jobs.sql import ask, shell

    if query is None:
        shell(dest)
    else:
        ask(dest, query, output)


@app.command()
def retry(
    dest: Destination,
    where: Annotated[str, typer.Option("--where", metavar="SQL", help="Which rows of the view parts.")],
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster; else this machine.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Do parts again that a condition picks, as they were asked for.

    DEST is the folder or url that holds the tables; --where any condition over the columns of parts, as in
    --where "status = 'failed'", or "part_id IN (SELECT part_id FROM review_queue)".

    Parts that come out with text replace those before; others leave them as they are. With --json, one line says what
    was picked, and one for each generation among it what came of it.
    """
    from jobs import cluster

    cluster.prepare_environment()
    from jobs.progress import Json, Progressing
    from jobs.retry import Request, execute, print_picked, show_picked

    watcher, tell = (Json(), print_picked) if as_json else (Progressing(dry_run), show_picked)
    execute(Request(dest, where, address, dry_run), watcher, tell)


@app.command()
def compact(dest: Destination) -> None:
    """Merge small files of the tables, so that queries are fast.

    DEST is the folder or url that holds the tables. Rows stay as they are.
    """
    from jobs import upkeep

    upkeep.compact(dest)


@app.command()
def drop(dest: Destination, generation: Annotated[str, typer.Argument(metavar="GENERATION", hidden=True)]) -> None:
    """Take all rows of one generation out of the tables.

    DEST is the folder or url that holds the tables; GENERATION a value of the column generation of parts.
    """
    from jobs import upkeep

    upkeep.drop(dest, generation)


@app.command()
def vacuum(
    dest: Destination,
    grace_hours: Annotated[float, typer.Option(metavar="HOURS", help="What is younger stays, at least 1.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and stop.")] = False,
) -> None:
    """Delete files that no table has any more.

    DEST is the folder or url that holds the tables. They are left by compact, by drop, and by runs that were killed.
    """
    from jobs import upkeep

    upkeep.vacuum(dest, grace_hours, dry_run)


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """Every official model, and where its weights were found."""
    from jobs.models import show_models

    show_models(as_json)


@models.command("pull")
def pull_model(name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)]) -> None:
    """Fetch weights, checked against their published sha256.

    NAME is one of `earwitness models list`, as large-v3-turbo.
    """
    from jobs.models import pull_model as pull

    pull(name)


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the archive and its tables go.")] = Path(
        "demo"
    ),
) -> None:
    """Transcribe a small real archive, and show what was heard.

    27 clips in nine languages, one long file, one cut short, and one that is no audio at all.
    """
    from jobs.cluster import prepare_environment

    prepare_environment()
    from jobs.demo import demo as run_demo

    run_demo(to)


@app.command()
def bench(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", hidden=True)] = None,
    suite: Annotated[str, typer.Option(metavar="SUITE", help="long, hour, clips or folder.")] = "long",
    model: Annotated[str, typer.Option(metavar="NAME", help="base or tiny.en, which all can read.")] = "base",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each runs, in turn.")] = 3,
    contenders: Annotated[
        str, typer.Option(metavar="NAMES", help="Names or patterns, as ours,faster-*; else all.")
    ] = "",
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of each contender; else all cores.")] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Told to all; else en for long files, unknown for clips.")
    ] = None,
    precision: Annotated[str, typer.Option(metavar="NAME", help="Of our net.")] = "auto",
    slots: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of our engine; else as on any CPU.")] = None,
    part_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Our longest part; else what the planner chooses.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Only show where our engine spends its time.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Only put Debian's prompts into FOLDER.")] = False,
    as_json: Json = False,
) -> None:
    """Measure our engine against openai-whisper and faster-whisper.

    FOLDER holds audio and, beside each NAME.wav, NAME.txt with what is said in it; subfolders may be called by language
    codes. Without it, telephone prompts in three languages are fetched from Debian once (60 MB, CC BY-SA 3.0).

    long is one file of ten minutes, hour six of them, both made of clips in one language; clips is 250 clips in many
    languages; folder is FOLDER as it is.
    """
    from jobs.bench import command
    from jobs.bench.contenders import Setup

    if fetch:
        command.fetch(folder)
        return
    setup = Setup(
        model,
        threads or os.cpu_count() or 1,
        precision=precision,
        part_seconds=part_seconds,
        **flags.given(slots=slots),
    )
    names = tuple(name.strip() for name in contenders.split(",") if name.strip())
    request = command.Request(setup, folder, suite, language, rounds, names, as_json)
    (command.profile if profile else command.bench)(request)


def main() -> None:
    """Run one command; every error a user can cause ends in one sentence and a documented exit code."""
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except EarwitnessError as error:
        _leave(str(error), error.exit_code)
    except TyperException as error:
        _leave(_usage(error), UsageError.exit_code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the second of an impatient person would end in a traceback
        _leave("Interrupted: what was stored stays, and `earwitness transcribe` goes on from there.", INTERRUPTED)
    except BrokenPipeError:  # the reader has had enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it shuts down
        sys.exit(PIPE_CLOSED)


def _run(arguments: list[str]) -> None:
    """Typer's own way to run a command turns an interruption and a closed pipe into exit codes of its own."""
    command = typer.main.get_command(app)
    with suppress(typer.Exit), command.make_context("earwitness", arguments) as context:  # exit: the help was printed
        command.invoke(context)


# What typer and pydantic say, as one sentence of ours.
_PHRASES = {
    "No such option: ": "No such option ",
    " (Possible options: ": " (perhaps ",
    ". Did you mean ": ", did you mean ",
    ", unable to parse string as a number": "",
}


def _usage(error: TyperException) -> str:
    """One sentence for a command line that cannot be read."""
    said = error.format_message()
    for theirs, ours in _PHRASES.items():
        said = said.replace(theirs, ours)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "earwitness"
    return f"{said.rstrip('.?')}: see `{command} --help`."


def _leave(sentence: str, code: int) -> None:
    from jobs import console

    console.error(sentence)
    sys.exit(code)
