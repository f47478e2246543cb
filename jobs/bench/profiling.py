"""Where our engine's time goes, from within: operators by torch's profiler, functions by cProfile, one run each."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Sequence

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from jobs.bench.contenders import Listener
from jobs.bench.recordings import Recording
from jobs.bench.suites import Suite

MOST_SECONDS = 600.0  # of audio: events are kept in memory
MICROSECONDS = 1e6


def profile(listen: Listener, suite: Suite, lines: int) -> str:
    """Two tables of so many lines. A profiler slows down what it looks at: compare shares, not seconds."""
    listen(suite.warm_up)
    recordings = _few(suite.recordings)
    with torch_profile(activities=[ProfilerActivity.CPU]) as operators:
        listen(recordings)
    functions = cProfile.Profile()
    functions.runcall(listen, recordings)
    return f"{_operators(operators, lines)}\n{_functions(functions, lines)}"


def _few(recordings: Sequence[Recording]) -> list[Recording]:
    """The first recordings, one at least, as long as together they are short enough."""
    chosen: list[Recording] = []
    seconds = 0.0
    for recording in recordings:
        seconds += recording.seconds
        if chosen and seconds > MOST_SECONDS:
            break
        chosen.append(recording)
    return chosen


def _operators(measured: torch_profile, lines: int) -> str:
    """The operators that took longest themselves, without those that they call."""
    rows = sorted(measured.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True)
    whole = sum(row.self_cpu_time_total for row in rows)
    text = [f"{'operator':<44}{'calls':>10}{'seconds':>10}{'%':>7}"]
    for row in rows[:lines]:
        seconds = row.self_cpu_time_total / MICROSECONDS
        text.append(f"{row.key[:43]:<44}{row.count:>10,}{seconds:>10.2f}{100 * row.self_cpu_time_total / whole:>7.1f}")
    return "\n".join(text) + "\n"


def _functions(measured: cProfile.Profile, lines: int) -> str:
    text = io.StringIO()
    pstats.Stats(measured, stream=text).strip_dirs().sort_stats("tottime").print_stats(lines)
    return text.getvalue()
