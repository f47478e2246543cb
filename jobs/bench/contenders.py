"""Who competes: our engine, openai-whisper and faster-whisper, each under a name with the settings it stands for.

A table, and the values that travel between processes. It imports nothing heavy, because a worker must set the number
of threads before torch, NumPy or CTranslate2 come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from model.errors import UsageError

if TYPE_CHECKING:
    from jobs.bench.recordings import Recording

OURS = "ours"
OUR_PRECISIONS = ("float32", "bfloat16")  # that are worth comparing on CPUs


@dataclass(frozen=True)
class Contender:
    """One way to transcribe: the module that runs it, and the settings it is given."""

    name: str
    module: str  # it has `load(setup, **settings)`, which gives a `Listener`
    settings: dict[str, Any] = field(default_factory=dict)
    by_default: bool = True
    needs_files: int = 1  # fewest recordings on which its settings make sense


@dataclass(frozen=True)
class Setup:
    """What all contenders of one run share. `precision`, `slots` and `part_seconds` are ours alone."""

    model: str
    threads: int
    scratch: str = ""  # folder for what contenders need beside themselves; gone after the race
    precision: str = "auto"
    slots: int | None = None  # None: as many as on any CPU
    part_seconds: float | None = None  # None: what the planner chooses


@dataclass
class Heard:
    """What came out of one run: texts and languages in the order of the recordings, and what is known of the work."""

    texts: list[str]
    languages: list[str | None]
    tokens: int
    stages: dict[str, float] = field(default_factory=dict)  # seconds
    counters: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Sequence["Recording"]], Heard]


def _faster(precision: str, batch: int | None = None, one_thread_each: bool = False) -> Contender:
    name = f"faster-{precision}" + (f"-b{batch}" if batch else "") + ("-workers" if one_thread_each else "")
    settings = dict(precision=precision, batch=batch, one_thread_each=one_thread_each)
    return Contender(name, "jobs.bench.faster_whisper", settings, needs_files=2 if one_thread_each else 1)


CONTENDERS = (
    Contender(OURS, "jobs.bench.ours"),
    Contender("ours-exact", "jobs.bench.ours", dict(exact=True, precision="float32"), by_default=False),
    *(
        Contender(f"ours-{precision}", "jobs.bench.ours", dict(precision=precision), by_default=False)
        for precision in OUR_PRECISIONS
    ),
    Contender("openai-greedy", "jobs.bench.openai_whisper"),  # `transcribe()` as it is
    Contender(
        "openai-beam5", "jobs.bench.openai_whisper", dict(beam_size=5, best_of=5)
    ),  # as the command `whisper` calls it
    _faster("float32"),
    _faster("int8"),
    _faster("int8", one_thread_each=True),  # as many files at once as there are threads
    *(_faster(precision, batch) for precision in ("float32", "int8") for batch in (8, 16)),
)


def choose(patterns: Sequence[str], files: int) -> list[Contender]:
    """The contenders whose names match one of `patterns` (shell patterns); without any, those that make sense.

    Raises: `UsageError` when a pattern matches none.
    """
    if not patterns:
        return [c for c in CONTENDERS if c.by_default and files >= c.needs_files]
    for pattern in patterns:
        if not any(fnmatchcase(contender.name, pattern) for contender in CONTENDERS):
            names = ", ".join(contender.name for contender in CONTENDERS)
            raise UsageError(f"There is no contender {pattern!r}: choose from {names}, or use patterns such as ours*.")
    return [c for c in CONTENDERS if any(fnmatchcase(c.name, pattern) for pattern in patterns)]
