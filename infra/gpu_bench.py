"""How fast the engine is on this GPU, stage by stage and as a whole, in one call of less than ten minutes.

    python infra/gpu_bench.py                                          large-v3-turbo and large-v3, random weights
    python infra/gpu_bench.py --weights base.pt                        and the checks with real weights
    python infra/gpu_bench.py --device cpu --model tiny --seconds 30   whether it works at all

It prints one line for each figure and writes all of them to a JSON file. Shares are of what a matrix product and a copy
reach on the same device, measured first. Text is scripted (`gpu_scripted.py`), so that windows have a realistic number
of tokens. It needs `model/`, torch, NumPy and tiktoken; where `transformers` is installed, its Whisper runs beside.

It has run on CPUs only: nothing in here, and nothing in `model/` that is for a GPU, was measured or even run on one
until somebody does so and writes the figures into `docs/decisions.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file, from anywhere, with nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from infra import gpu_checks, gpu_peer, gpu_stages
from infra.gpu_limits import Limits, measure
from infra.gpu_stages import AS_IT_IS, ATTENTION, Bench, Row
from model.checkpoint import load
from model.dimensions import OFFICIAL, WINDOW_SECONDS
from model.precision import DTYPES

SLOTS = (32, 64, 128, 256)
SECONDS_PER_SLOT = 180.0  # of audio, in a run of the whole engine
MINUTES = 9.0
PEER_SECONDS = 30.0  # not begun with less time left than this


@dataclass
class Report:
    """Figures as they come: printed, kept, and written to a file after each, so that an early end loses none."""

    path: Path | None
    facts: Row
    deadline: float
    rows: list[Row] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows, and go on without those for which the device has no room."""
        taken = iter(rows)
        while self.seconds_left > 0:
            try:
                row = next(taken, None)
            except torch.OutOfMemoryError as error:
                row = {"error": str(error).splitlines()[0]}
            if row is None:
                return
            self.keep(row)

    def keep(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n")


def line(row: Row) -> str:
    """One row of the table: what was measured on what, the figure, and what it depends on."""
    head = ("model", "precision", "stage", "ms")
    if "stage" not in row:
        return "  ".join(f"{name}: {_short(value)}" for name, value in row.items())
    facts = "  ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in (*head, "share"))
    share = f"{row['share']:.0%} of the limit  " if "share" in row else ""
    return f"{row['model']:<16}{row['precision']:<10}{row['stage']:<18}{row['ms']:>11.3f} ms  {share}{facts}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_model(report: Report, bench: Bench, slots_list: Iterable[int], audio_seconds: float | None) -> None:
    """Each stage alone, then the engine over the slots that fit; the best once more in other ways."""
    report.add(gpu_stages.encode(bench, gpu_stages.ENCODE_BATCHES if bench.device.type == "cuda" else (1,)))
    fitting = [slots for slots in slots_list if gpu_stages.room_for(slots, bench)]
    for slots in fitting:
        memory = bench.net.new_cache(slots)
        if slots == fitting[0]:
            report.add(gpu_stages.admit(bench, memory))
        report.add(gpu_stages.step(bench, memory))
        report.add(gpu_stages.choose(bench, slots))
        del memory
    how = "graph" if bench.device.type == "cuda" else "plain"
    for slots in fitting:
        report.add(_engine(bench, slots, audio_seconds, how))
    runs = [row for row in report.rows if row.get("stage") == "engine" and bench.is_of(row)]
    if how == "plain" or not runs:
        return
    slots = int(str(max(runs, key=_real_time)["slots"]))
    report.add(_engine(bench, slots, audio_seconds, "plain"))
    for kind in [*ATTENTION][1:]:
        report.add(_engine(bench, slots, audio_seconds, how, kind))


def _engine(bench: Bench, slots: int, seconds: float | None, how: str, kind: str = AS_IT_IS) -> Iterator[Row]:
    """One run, and what the device's limits would let it come to."""
    bound = WINDOW_SECONDS / gpu_stages.window_bound(bench, slots)
    row = gpu_stages.run(bench, slots, seconds or SECONDS_PER_SLOT * slots, how, kind)
    yield row | {"real_time_at_the_limits": bound}


def _real_time(row: Row) -> float:
    return float(str(row["real_time"]))


def compare(report: Report) -> None:
    """How many times as fast as `transformers` the engine is, at the best of each."""
    ours, theirs = ([row for row in report.rows if row.get("stage") == stage] for stage in ("engine", "transformers"))
    for model in dict.fromkeys((row["model"], row["precision"]) for row in theirs):
        best = [
            max((_real_time(row) for row in rows if (row["model"], row["precision"]) == model), default=0.0)
            for rows in (ours, theirs)
        ]
        report.keep({"ratio to transformers": best[0] / best[1], "model": model[0], "precision": model[1]})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", nargs="+", default=["large-v3-turbo", "large-v3"], choices=[*OFFICIAL])
    parser.add_argument(
        "--precision", nargs="+", choices=[*DTYPES], help="default: float16 and bfloat16; float32 on a CPU"
    )
    parser.add_argument("--slots", nargs="+", type=int, default=None, help=f"default: {SLOTS}; 2 on a CPU")
    parser.add_argument(
        "--seconds", type=float, help=f"of audio for the engine; default: {SECONDS_PER_SLOT:g} per slot"
    )
    parser.add_argument("--weights", type=Path, help="a .pt file or a folder of weights to check the device with")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin nothing after that")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use: give --device cpu, or run this where there is one.")
    return asked


def main() -> None:
    asked = arguments()
    device = torch.device("cuda:0" if asked.device == "cuda" else "cpu")
    name = torch.cuda.get_device_name(device) if asked.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    torch.manual_seed(0)  # of random weights
    facts: Row = {"device": name, "torch": torch.__version__}
    report = Report(asked.out, facts, time.monotonic() + asked.minutes * 60)
    checkpoint = load(asked.weights) if asked.weights else None
    report.add(gpu_checks.checks(gpu_checks.Weights.of(checkpoint, str(asked.weights)), device))
    peers = gpu_peer.BATCHES if asked.device == "cuda" else (1,)
    for precision in asked.precision or (["float16", "bfloat16"] if asked.device == "cuda" else ["float32"]):
        dtype = DTYPES[precision]
        limits = measure(device, dtype)
        report.add([{"limits": precision, "TFLOP/s": limits.flops / 1e12, "TB/s": limits.bytes / 1e12}])
        for model in asked.model:
            measure_model(report, _bench(model, dtype, device, limits), asked.slots or _slots(device), asked.seconds)
            if gpu_peer.is_installed() and report.seconds_left > PEER_SECONDS:
                report.add(gpu_peer.rows(model, OFFICIAL[model], dtype, device, peers))
    compare(report)
    if report.seconds_left <= 0:
        report.keep({"incomplete": f"{asked.minutes:g} minutes were up: raise --minutes, or ask for less"})


def _bench(model: str, dtype: torch.dtype, device: torch.device, limits: Limits) -> Bench:
    return Bench(model, gpu_stages.random_net(OFFICIAL[model], dtype, device), limits)


def _slots(device: torch.device) -> tuple[int, ...]:
    return SLOTS if device.type == "cuda" else (2,)


if __name__ == "__main__":
    main()
