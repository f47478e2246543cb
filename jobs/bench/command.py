"""`earwitness bench`: what was asked for, checked, measured and shown."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from jobs import console
from jobs.bench.contenders import Setup, choose
from jobs.bench.prompts import LICENCE_FILE, default_folder, fetch_prompts
from jobs.bench.race import race
from jobs.bench.report import as_json, show
from jobs.bench.suites import SUITES, Suite, make_suite
from model.errors import UsageError

NEEDED = ("faster_whisper", "jiwer", "whisper", "whisper_normalizer")


@dataclass(frozen=True)
class Request:
    """One measurement as it was asked for. folder: None takes Debian's prompts, fetched once."""

    setup: Setup
    folder: Path | None = None
    suite: str = "long"
    language: str | None = None
    rounds: int = 3
    contenders: tuple[str, ...] = ()  # names or patterns; none: all that make sense
    as_json: bool = False


def fetch(folder: Path | None) -> None:
    """Put Debian's prompts into `folder`, else into the cache, and say under which licence.

    Raises: `SourceError` when they cannot be fetched or stored.
    """
    target = fetch_prompts(folder or default_folder())
    console.out.print(f"The prompts are in {target}, under CC BY-SA 3.0; {LICENCE_FILE} says whose.", soft_wrap=True)


def bench(request: Request) -> None:
    """Measure, and print a table or JSON.

    Raises: `UsageError` when an option is wrong or a package is missing, `SourceError` without recordings.
    """
    _require_packages()
    suite = _suite(request)
    contenders = choose(request.contenders, len(suite.recordings))
    with tempfile.TemporaryDirectory(prefix="earwitness-bench-") as scratch:
        results = race(contenders, replace(request.setup, scratch=scratch), suite, request.rounds, _say)
    if request.as_json:
        print(json.dumps(as_json(results, suite, request.setup), ensure_ascii=False))
    else:
        show(results, suite, request.setup)


def profile(request: Request, lines: int = 20) -> None:
    """Print where our engine's time goes: operators of torch, then functions of Python."""
    from jobs.bench import ours, profiling

    suite = _suite(request)
    console.out.print(profiling.profile(ours.load(request.setup), suite, lines), soft_wrap=True)


def _suite(request: Request) -> Suite:
    if request.suite not in SUITES:
        raise UsageError(f"The suite is {request.suite!r}: choose one of {', '.join(SUITES)}.")
    suite = make_suite(request.suite, request.folder or fetch_prompts(default_folder()), request.language)
    if request.setup.model.endswith(".en") and any(r.spoken not in ("en", None) for r in suite.recordings):
        raise UsageError(
            f"The model {request.setup.model} knows English only, and the suite {suite.name} has other languages: "
            f"choose --model base, or --suite long."
        )
    return suite


def _require_packages() -> None:
    if any(find_spec(module) is None for module in NEEDED):
        raise UsageError(
            "The benchmark compares with packages that are not installed: pip install 'earwitness[bench,demo,parity]'."
        )


def _say(progress: str) -> None:
    console.err.print(f"[dim]{progress}[/dim]", soft_wrap=True)
