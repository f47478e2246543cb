"""Options that commands share, and those that decide a text: their names, their help, and how the help is grouped.

Each is None, or False, where it was not given; what that comes to, and what is allowed, is decided where the options
live (`model/options.py`, `pipeline/config.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from model.errors import UsageError

_PAIR = re.compile(r"--(\S+) / --no-\1")  # a flag and its opposite are told in one line

TEXT, SEARCH, LANGUAGE, SOUND, SILENCE = "Text", "Search", "Language", "Sound", "Silence and length"

Sources = Annotated[list[str], typer.Argument(metavar="SOURCE", hidden=True)]
To = Annotated[str, typer.Option("--to", metavar="DEST", help="Folder or url for the tables.")]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name or path of the weights; else base.")
]
Language = Annotated[str | None, typer.Option(metavar="LANGUAGE", help="What is spoken; else found for each part.")]
Task = Annotated[str | None, typer.Option(metavar="TASK", help="transcribe, or translate into English.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Options as TOML; those given here win.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Decode as openai/whisper does, token for token.")]
Precision = Annotated[str | None, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16; else auto.")]

MaxHours = Annotated[
    float | None, typer.Option(metavar="HOURS", help="Of audio, about; what is more is left for the next night.")
]
Deadline = Annotated[
    str | None, typer.Option(metavar="TIME", help="Begin no file after 06:00, 90m, or a date and time.")
]

InitialPrompt = Annotated[
    str | None,
    typer.Option(metavar="TEXT", rich_help_panel=TEXT, help="What each part starts from: names, terms."),
]
Hotwords = Annotated[
    str | None,
    typer.Option(metavar="TEXT", rich_help_panel=TEXT, help="What every window is told: names, terms."),
]
PreviousText = Annotated[
    bool | None,
    typer.Option(
        "--previous-text/--no-previous-text",
        rich_help_panel=TEXT,
        help="Prompt windows with the text before; else yes.",
    ),
]
WordTimestamps = Annotated[
    bool | None,
    typer.Option(
        "--word-timestamps/--no-word-timestamps",
        rich_help_panel=TEXT,
        help="When each word begins and ends; else no.",
    ),
]
SuppressTokens = Annotated[
    str | None,
    typer.Option(metavar="IDS", rich_help_panel=TEXT, help="Ids never sampled, as 5,7; else -1, non-speech."),
]

BeamSize = Annotated[
    int | None, typer.Option(metavar="N", rich_help_panel=SEARCH, help="Candidates at temperature 0; else 1, greedy.")
]
Patience = Annotated[
    float | None,
    typer.Option(metavar="X", rich_help_panel=SEARCH, help="Search until N times X have ended; else 1."),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(metavar="ALPHA", rich_help_panel=SEARCH, help="Exponent, 0 to 1; else divides by the length."),
]
BestOf = Annotated[
    int | None, typer.Option(metavar="N", rich_help_panel=SEARCH, help="Candidates above temperature 0; else 1.")
]

LanguageWindows = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=LANGUAGE, help="Windows of a part that vote; else 1."),
]
LanguagePerWindow = Annotated[
    bool | None,
    typer.Option(
        "--language-per-window/--no-language-per-window",
        rich_help_panel=LANGUAGE,
        help="Each window finds its own; else each part.",
    ),
]

Channels = Annotated[
    str | None,
    typer.Option(metavar="HOW", rich_help_panel=SOUND, help="mix, or split: each by itself; else mix."),
]
Stream = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=SOUND, help="Audio stream of each file, from 0; else the first."),
]

VoiceActivity = Annotated[
    bool | None,
    typer.Option(
        "--voice-activity/--no-voice-activity",
        rich_help_panel=SILENCE,
        help="Skip where nobody speaks; else yes.",
    ),
]
HallucinationSilence = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", rich_help_panel=SILENCE, help="Odd text in so much of it is dropped."),
]
PartSeconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", rich_help_panel=SILENCE, help="Longest part, 5 to 900; inf: whole files."),
]


class Grouped(TyperCommand):
    """A command whose options are listed under the headings they were given, the others first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = getattr(param, "rich_help_panel", None) or "Options"
                groups.setdefault(heading, []).append((_PAIR.sub(r"--[no-]\1", record[0]), record[1]))
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=max(len(names) for names, _ in records))


def token_ids(given: str | None) -> tuple[int, ...] | None:
    """The ids in `given`, as `5,7,-1`; none of an empty text, and None where nothing was given.

    Raises: `UsageError` when one is no whole number.
    """
    if given is None:
        return None
    try:
        return tuple(int(number) for number in given.split(",") if number.strip())
    except ValueError as error:
        raise UsageError(
            f"--suppress-tokens is {given!r}: give ids with commas between them, and -1 for all non-speech symbols."
        ) from error


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the value of the configuration file, or their default."""
    return {name: value for name, value in options.items() if value is not None}


def decoding(language: str | None, **options: Any) -> dict[str, Any]:
    """`given` of the options of decoding: a language of `auto` is none, whatever the configuration file says."""
    found = given(language=language, **options)
    return found | {"language": None} if language == "auto" else found
