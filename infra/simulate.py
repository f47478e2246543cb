"""How a job over a whole archive goes on thousands of GPUs, without one: utilisation, makespan, lost work, cost.

    python -m infra.simulate                                        16 GPUs, an hour of work, a second or two
    python -m infra.simulate --hours 1e6 --gpus 2500 --picture job.png
    python -m infra.simulate --hours 1e6 --sweep 10 100 1000 10000 --picture sweep.png

Events are simulated one by one, over the project's own choice of part length, slices, blocks, placement and order of
windows. Nothing was measured on a GPU: its speed is an assumption, as is all that is printed so below the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

from infra.simulate_assumptions import Assumptions, describe
from infra.simulate_events import Outcome, Simulation
from infra.simulate_report import Figures, as_dict, assumption_lines, figures, lines
from model.errors import UsageError

WRONG_USE = 2
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


class _Parser(argparse.ArgumentParser):
    """One sentence about what is wrong, without the forty flags."""

    def error(self, message: str) -> NoReturn:
        sentence = message[0].upper() + message[1:].rstrip(".")
        self.exit(WRONG_USE, f"{sentence}.\n")


def main(words: Sequence[str] | None = None) -> int:
    """Simulate, print, draw; returns the exit code."""
    asked = _parser().parse_args(words)
    chosen = {one.name: getattr(asked, one.name) for one in fields(Assumptions)}
    try:
        given = Assumptions(**chosen)
        runs = [_sized(given, gpus, asked.hours_per_gpu) for gpus in asked.sweep or [given.gpus]]
        _require_picture(asked.picture)
        results = [_simulated(run, asked.json) for run in runs]
    except UsageError as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    if not asked.json:
        print("\n" + "\n".join(assumption_lines(results[-1][0])))
    if asked.picture:
        _draw(results, asked.picture)
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m infra.simulate",
        description=__doc__.partition("\n")[0],
        epilog="Defaults are in brackets; the list of all of them, with their sources, follows the figures.",
    )
    parser.add_argument("--sweep", type=int, nargs="+", metavar="GPUS", help="several clusters, one after the other")
    parser.add_argument("--hours-per-gpu", type=float, metavar="HOURS", help="of audio, instead of --hours")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it: a .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each cluster")
    for one in fields(Assumptions):
        flag, (source, what) = f"--{one.name.replace('_', '-')}", describe(one.name)
        if isinstance(one.default, bool):
            parser.add_argument(flag, action="store_true", help=what)
        else:
            kind = type(one.default)
            help = f"{what} [{one.default:g}, {source}]".replace("%", "%%")
            parser.add_argument(flag, type=kind, default=one.default, metavar="N", help=help)
    return parser


def _sized(given: Assumptions, gpus: int, hours_per_gpu: float | None) -> Assumptions:
    return replace(given, gpus=gpus, hours=given.hours if hours_per_gpu is None else hours_per_gpu * gpus)


def _require_picture(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in PICTURE_SUFFIXES:
        raise UsageError(f"--picture is {path}: give a name that ends in {', '.join(PICTURE_SUFFIXES)}.")
    if not path.parent.is_dir():
        raise UsageError(f"--picture is {path}, and {path.parent} is no folder: make it, or name another.")
    try:
        import infra.simulate_picture  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--picture needs matplotlib, which the extra dev brings: pip install 'earwitness[dev]'."
        ) from error


def _simulated(given: Assumptions, as_json: bool) -> tuple[Outcome, Figures]:
    outcome = Simulation(given).run()
    result = figures(outcome)
    if as_json:
        print(json.dumps(as_dict(outcome, result)), flush=True)
    else:
        print(f"\n{given.hours:,.0f} hours on {given.gpus:,} GPUs")
        print("\n".join(lines(result)), flush=True)
    return outcome, result


def _draw(results: list[tuple[Outcome, Figures]], path: Path) -> None:
    from infra.simulate_picture import draw_job, draw_sweep  # matplotlib is only needed here

    if len(results) > 1:
        draw_sweep(results, path)
    else:
        draw_job(*results[0], path)
    print(f"drawn: {path}", file=sys.stderr)


if __name__ == "__main__":
    gc.disable()  # millions of events, none of which refers to itself
    sys.exit(main())
