"""One Config decides a run: built once by the command line or a notebook, stored with every run, read everywhere.

It refuses to know how it was written down, but for `configured`, which takes a file and flags of the same names and
fails on any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from model.errors import UsageError
from model.options import EXACT, DecodeOptions, require_exact
from pipeline.records import SCHEMA_VERSION

MIN_PART_SECONDS, MAX_PART_SECONDS = 5.0, 900.0
MAX_TIMEOUT_SECONDS = 1e6
MIX, SPLIT = "mix", "split"  # what becomes of channels
AUTO = "auto"  # the best the machine offers: `pipeline.precision`
PRECISIONS = (AUTO, "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ReadOptions:
    """How media is read and cut. Bounds exist because archives are hostile: a 20 kB file can decode to hours."""

    part_seconds: float | None = None  # longest part; None lets the planner choose between 30 and 300 seconds
    max_hours: float = 24.0  # of one file; the rest is not read, and the row says truncated
    timeout_seconds: float = 3600.0  # of waiting for ffmpeg on one file; a slow model does not count
    retries: int = 2  # further runs that try a part again after it failed
    voice_activity: bool = True  # find out where somebody speaks, and skip the rest
    channels: str = MIX  # all into one; split: each has parts of its own, as the two sides of a call
    stream: int | None = None  # of the audio streams, counted from 0; None: the first

    def __post_init__(self) -> None:
        length = self.part_seconds
        if length is not None and length != math.inf and not MIN_PART_SECONDS <= length <= MAX_PART_SECONDS:
            raise UsageError(
                f"part_seconds is {length:g}: give {MIN_PART_SECONDS:g} to {MAX_PART_SECONDS:g} seconds, or inf to "
                f"keep every file whole."
            )
        if self.channels not in (MIX, SPLIT):
            raise UsageError(f"channels is {self.channels!r}: give {MIX} or {SPLIT}.")
        _at_least(self, 0, "retries", "stream")
        _above_zero(self, "max_hours", "timeout_seconds")
        if not self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise UsageError(f"timeout_seconds is {self.timeout_seconds:g}: give at most {MAX_TIMEOUT_SECONDS:g}.")


@dataclass(frozen=True)
class RunOptions:
    """How the work is spread. But for `precision`, none changes a token; a planner left to choose cuts by the slots."""

    gpus: int | None = None  # some of which may come while the run goes on; None: those that the cluster has
    slots: int | None = None  # windows decoded together by one model actor; None: 24 on CPU, 64 on a GPU
    model_actors: int | None = None  # None: one per GPU of the cluster, or one per machine without
    decode_actors: int | None = None  # None: what keeps the model actors fed
    parts_per_shard: int = 16  # parts that are stored, and become visible, together
    publish_seconds: float = 5.0  # at most so often a Delta commit is made
    precision: str = AUTO  # of the net; the tokens of the reference need float32
    cost_per_hour: float | None = None  # of one model actor: a GPU, or a machine without; for the table of runs

    def __post_init__(self) -> None:
        _at_least(self, 1, "gpus", "slots", "model_actors", "decode_actors", "parts_per_shard")
        _at_least(self, 0, "publish_seconds", "cost_per_hour")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}: choose one of {', '.join(PRECISIONS)}.")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. `decode` decides the text, `read` the cuts, `run` little but the speed."""

    model: str = "base"  # a name of `earwitness models list`, or the path of a checkpoint
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    read: ReadOptions = field(default_factory=ReadOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def exact(cls, model: str = "base", **decode: Any) -> Config:
        """A Config by which each part comes out token for token as openai/whisper would have it.

        decode: fields of `DecodeOptions`. Raises: `UsageError` when one of them leads away from that.
        """
        return cls(model, DecodeOptions.exact(**decode), ReadOptions(**_EXACT["read"]), RunOptions(**_EXACT["run"]))

    def generation(self, model_sha256: str) -> str:
        """Name of all that was asked for and decides the output, 16 hex digits: another rule or model is another name.

        Where a file is cut, when the planner may choose, is not in it: that stands in `parts.part_seconds`. The
        precision must be settled: what the best is differs from machine to machine.
        """
        assert self.run.precision != AUTO, "a generation needs a precision that is settled (`pipeline.precision`)"
        decided_by = {
            "model": model_sha256,
            "decode": asdict(self.decode),
            "read": [str(self.read.part_seconds), str(self.read.max_hours), self.read.voice_activity]
            + [self.read.channels, self.read.stream],
            "precision": self.run.precision,
            "schema": SCHEMA_VERSION,
        }
        return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:16]


_EXACT: dict[str, dict[str, Any]] = {
    "decode": EXACT,
    "read": {"voice_activity": False},
    "run": {"precision": "float32"},
}


def from_toml(path: Path) -> Config:
    """The Config of a TOML file alone: see `configured`."""
    return configured(path)


def configured(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The Config of a TOML file and of flags, which win over it; what neither says keeps its default.

    Both hold `model` and `exact` at the top, and the tables decode, read and run. `exact = true` starts from
    `Config.exact` instead of the defaults, and then nothing may be given that leads away from it.

    Raises: `UsageError` when the file cannot be read, is no TOML, holds a name that Config does not have or a value of
    another type; and as the options themselves when a value is not allowed.
    """
    given = _over(_checked(Config, _read(file), str(file), "") if file else {}, flags or {})
    exact = given.pop("exact", False)
    config: Config = _changed(Config.exact() if exact else Config(), given)
    if exact:
        for section, options in _EXACT.items():
            for name, value in options.items():
                require_exact(name, getattr(getattr(config, section), name), value)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The configuration {path} is not TOML: {error}.") from error


def _at_least(section: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: give at least {least}.")


def _above_zero(section: Any, *names: str) -> None:
    for name in names:
        if not getattr(section, name) > 0:
            raise UsageError(f"{name} is {getattr(section, name):g}: give a number above 0.")


def _checked(section: type, given: dict[str, Any], path: str, prefix: str) -> dict[str, Any]:
    """What a file gives for a section, each name one of its fields and each value of its type."""
    types = get_type_hints(section) | ({} if prefix else {"exact": bool})
    checked = {}
    for name, value in given.items():
        where = f"{path}: [{prefix}] {name}" if prefix else f"{path}: {name}"
        if name not in types:
            raise UsageError(f"{where} is not an option; allowed: {', '.join(sorted(types))}.")
        if not is_dataclass(types[name]):
            checked[name] = _typed(types[name], value, where)
        elif isinstance(value, dict):
            checked[name] = _checked(types[name], value, path, name)
        else:
            raise UsageError(f"{path}: {name} is a table: write [{name}] and its options below it.")
    return checked


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, table by table."""
    merged = {name: below.get(name, {}) | value if isinstance(value, dict) else value for name, value in above.items()}
    return below | merged


def _changed(section: Any, given: Mapping[str, Any]) -> Any:
    changes = {
        name: _changed(getattr(section, name), value) if isinstance(value, dict) else value
        for name, value in given.items()
    }
    return replace(section, **changes)


def _typed(expected: Any, value: Any, where: str) -> Any:
    """`value` as the type its field has. TOML has no tuples and no None: a list serves, and an option left out."""
    given = tuple(value) if isinstance(value, list) else value
    try:
        return TypeAdapter(expected).validate_python(given, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("tuple", "list")  # as TOML calls it
        raise UsageError(f"{where} is {value!r}, which will not do: {reason}.") from error
