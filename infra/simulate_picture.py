"""Pictures of simulated jobs: how busy the GPUs were until the last part, and how that changes with their number.

It draws figures that others computed; matplotlib is all that it needs, without a display.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from infra.simulate_events import Outcome
from infra.simulate_report import Figures, utilisation

BUSY, THERE, LINE = "#2c7fb8", "#d9d9d9", "#d95f0e"
TAIL_SHARE = 0.12  # of the makespan that the second panel shows
UTILISATION_WANTED, MAKESPAN_WANTED, REDONE_WANTED = 0.95, 1.05, 0.01


def draw_job(outcome: Outcome, result: Figures, path: Path) -> None:
    """Utilisation over the whole job, and again over its tail; written as what the suffix of `path` says."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    whole, tail = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    times, shares = zip(*_steps(outcome), strict=True)
    for axes in (whole, tail):
        axes.fill_between(times, 1, color=THERE, step="pre", linewidth=0, label="not utilised")
        axes.fill_between(times, shares, color=BUSY, step="pre", linewidth=0, label="busy")
        axes.axvline(result.lower_bound / 60, color=LINE, linestyle="--", label="lower bound of the makespan")
        axes.axvline(result.makespan / 60, color=LINE, label="last part")
        axes.set_xlabel("minutes since the nodes arrived")
    end = max(result.committed, result.makespan * 1.005) / 60
    whole.set_xlim(0, end)
    tail.set_xlim(min(result.makespan * (1 - TAIL_SHARE), result.lower_bound * 0.99) / 60, end)
    whole.set_ylim(0, 1)
    whole.yaxis.set_major_formatter(PercentFormatter(1))
    whole.set_ylabel("GPUs that are there")
    whole.set_title("from start to end")
    tail.set_title("the tail")
    whole.legend(loc="lower center", framealpha=0.95)
    figure.suptitle(
        f"{outcome.given.hours:,.0f} hours on {outcome.given.gpus:,} GPUs, simulated: utilisation "
        f"{result.utilisation:.1%}, makespan {result.makespan_ratio:.3f} × the bound, "
        f"done again {result.redone:.2%}, {result.nodes_lost} nodes lost"
    )
    figure.savefig(path, dpi=130)


def draw_sweep(results: list[tuple[Outcome, Figures]], path: Path) -> None:
    """The three targets over the number of GPUs."""
    gpus = [outcome.given.gpus for outcome, _ in results]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    measures = (
        ("GPU utilisation", [one.utilisation for _, one in results], UTILISATION_WANTED, "{:.1%}"),
        ("makespan / lower bound", [one.makespan_ratio for _, one in results], MAKESPAN_WANTED, "{:.3f}"),
        ("work done again", [one.redone for _, one in results], REDONE_WANTED, "{:.2%}"),
    )
    for axes, (title, values, wanted, shown) in zip(panels, measures, strict=True):
        _panel(axes, gpus, values, wanted, shown)
        axes.set_title(title)
    hours = {outcome.given.hours for outcome, _ in results}
    size = f"{hours.pop():,.0f} hours" if len(hours) == 1 else f"{results[0][0].given.hours / gpus[0]:,.0f} hours a GPU"
    lost = results[0][0].given.lost_per_hour
    figure.suptitle(f"{size}, {lost:.0%} of nodes lost per hour, simulated; dashed: what is wanted")
    figure.savefig(path, dpi=130)


def _steps(outcome: Outcome) -> list[tuple[float, float]]:
    """Minutes and shares, from the start on."""
    return [(0.0, 0.0), *((when / 60, min(1.0, share)) for when, share in utilisation(outcome))]


def _panel(axes: Axes, gpus: list[int], values: list[float], wanted: float, shown: str) -> None:
    axes.plot(gpus, values, marker="o", color=BUSY)
    axes.axhline(wanted, color=LINE, linestyle="--", linewidth=1)
    for number, value in zip(gpus, values, strict=True):
        label = axes.annotate(shown.format(value), (number, value), (0, 10), textcoords="offset points", ha="center")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # the line goes behind it
    low, high = min(*values, wanted), max(*values, wanted)
    room = (high - low) * 0.2 or 0.01
    axes.set_ylim(max(0.0, low - room), high + room)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xticks(gpus, [f"{number:,}" for number in gpus])
    axes.minorticks_off()
    axes.set_xlabel("GPUs")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown.format(value)))
