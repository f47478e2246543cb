"""What a measurement came to: a table for people, one JSON object for machines. It measures nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs import console
from jobs.bench.contenders import OURS, Setup
from jobs.bench.race import Result
from jobs.bench.suites import Suite

PACKAGES = ("earwitness", "torch", "openai-whisper", "faster-whisper", "ctranslate2")
MEGABYTE = 1e6


def show(results: Sequence[Result], suite: Suite, setup: Setup) -> None:
    """Print the contenders as a table, and below it where our time went."""
    told = f"given as {suite.language}" if suite.language else "unknown"
    files = console.count(len(suite.recordings), "file")
    console.out.print(
        f"{suite.name}: {files}, {console.duration(suite.seconds)}; model {setup.model}, "
        f"{console.count(setup.threads, 'thread')}, language {told}, {console.count(len(results[0].runs), 'round')}"
    )
    console.out.print(_contenders(results, suite))
    console.out.print("Medians of rounds. ratio: its seconds over ours, each within one round.")
    for result in results:
        if result.runs[-1].heard.stages:
            console.out.print()
            console.out.print(_stages(result))
        if result.runs[-1].heard.counters:
            console.out.print(_work(result))


def as_json(results: Sequence[Result], suite: Suite, setup: Setup) -> dict[str, Any]:
    """Everything that was measured, with what every contender wrote in the last round."""
    return {
        "suite": suite.name,
        "language": suite.language,
        "audio_seconds": suite.seconds,
        "setup": {name: value for name, value in asdict(setup).items() if name != "scratch"},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": os.getloadavg(), "packages": _versions()},
        "contenders": [_result_json(result, suite) for result in results],
        "recordings": [
            {
                "name": recording.name,
                "spoken": recording.spoken,
                "seconds": recording.seconds,
                "text": recording.text,
                "heard": {result.contender.name: result.runs[-1].heard.texts[index] for result in results},
            }
            for index, recording in enumerate(suite.recordings)
        ],
    }


def _contenders(results: Sequence[Result], suite: Suite) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, console.GAP, 0, 0), header_style="bold")
    table.add_column("contender", no_wrap=True)
    finds_language = results[0].languages is not None
    headers = ["× real time", "min–max", "ratio", "WER %", "peak MB", *["lang. %"] * finds_language]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        speeds = _speeds(result, suite)
        cells = [
            f"{median(speeds):.1f}",
            f"{min(speeds):.1f}–{max(speeds):.1f}",
            "" if result.ratio is None else f"{result.ratio:.2f}",
            f"{100 * result.word_error_rate:.2f}",
            f"{result.peak_bytes / MEGABYTE:,.0f}",
        ]
        cells += [f"{100 * result.languages:.1f}"] if result.languages is not None else []
        table.add_row(Text(result.contender.name), *map(Text, cells))
    return table


def _stages(result: Result) -> Table:
    """Seconds of each of our stages, and its share of the whole."""
    table = Table(box=None, pad_edge=False, padding=(0, console.GAP, 0, 0), header_style="bold")
    for header, side in (("stage of " + result.contender.name, "left"), ("seconds", "right"), ("%", "right")):
        table.add_column(header, justify="right" if side == "right" else "left", no_wrap=True)
    whole = median(result.seconds)
    for stage in result.runs[-1].heard.stages:
        seconds = median(run.heard.stages.get(stage, 0.0) for run in result.runs)
        table.add_row(stage, f"{seconds:.2f}", f"{100 * seconds / whole:.1f}")
    return table


def _work(result: Result) -> str:
    """Tokens and windows a second, and how full the slots were."""
    counters, seconds = result.runs[-1].heard.counters, median(result.seconds)
    return (
        f"{counters['tokens'] / seconds:,.0f} tokens/s, {counters['windows'] / seconds:.2f} windows/s; "
        f"{counters['windows']:.0f} windows, {counters['attempts']:.0f} attempts, "
        f"slots {100 * counters['occupancy']:.0f} % full"
    )


def _result_json(result: Result, suite: Suite) -> dict[str, Any]:
    speeds = _speeds(result, suite)
    return {
        "name": result.contender.name,
        "settings": result.contender.settings,
        "is_ours": result.contender.name == OURS,
        "times_real_time": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "ratio": result.ratio,
        "ratios": result.ratios,
        "word_error_rate": result.word_error_rate,
        "languages_right": result.languages,
        "peak_bytes": result.peak_bytes,
        "runs": [
            {
                "seconds": run.seconds,
                "cpu_seconds": run.cpu_seconds,
                "tokens": run.heard.tokens,
                "errors": score.errors,
                "words": score.words,
                "stages": run.heard.stages,
                "counters": run.heard.counters,
            }
            for run, score in zip(result.runs, result.scores, strict=True)
        ],
    }


def _speeds(result: Result, suite: Suite) -> list[float]:
    return [suite.seconds / seconds for seconds in result.seconds]


def _cpu() -> str:
    """The name of the processor, where the system says it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
