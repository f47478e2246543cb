"""What a simulated job came to: how busy the GPUs were, what could not have been faster, and what it cost.

    utilisation   full-speed seconds of all GPUs / seconds they were there, until the last part of all ended
    work bound    the time until which all GPUs that were there, each at its full speed from its arrival on, would have
                  done the work once
    chain bound   fetching and reading the longest file, and its last part alone on a GPU, with nobody in the way
    lower bound   the longer of the two; nothing can be faster, whatever the policy

A GPU counts from the arrival of its node: that it loads a model first is part of what is lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from infra.simulate_events import Outcome

TAIL_BELOW = 0.95  # of all GPUs busy, for good


@dataclass(frozen=True)
class Figures:
    """The numbers that are printed. Shares are of 1; seconds since the nodes arrived."""

    files: int
    parts: int
    jobs: int
    readers: int
    utilisation: float
    idle_starting: float  # share of GPU time: a node is there, and its models are not ready
    idle_tail: float  # share of GPU time: lost since utilisation fell for good
    idle_between: float  # share of GPU time: all other
    makespan: float  # until the last part ended
    lower_bound: float
    makespan_ratio: float
    work_bound: float
    chain_bound: float
    redone: float  # share of the work
    lost_parts: int
    nodes_lost: int
    read_again: float  # share of the audio
    committed: float  # until the last commit
    commits_per_second: float
    shards_per_second: float
    requests_per_second: float
    refused_requests: int
    gpu_hours: float
    cost: float  # dollars
    speed: float  # times real time, of the whole cluster


def figures(outcome: Outcome) -> Figures:
    """All of them, from one run."""
    given, archive, counts = outcome.given, outcome.archive, outcome.counts
    end = outcome.last_end
    there = sum((end - when) * gpus for when, gpus, _ in outcome.capacity if when < end)
    starting, tail = _starting(outcome) / there, _tail(outcome) / there
    utilisation = outcome.busy_seconds / there
    work, chain = work_bound(outcome), chain_bound(outcome)
    audio = float(archive.seconds.sum())
    return Figures(
        files=len(archive.seconds),
        parts=archive.parts,
        jobs=len(outcome.placements),
        readers=sum(placement.decode_actors for placement in outcome.placements),
        utilisation=utilisation,
        idle_starting=starting,
        idle_tail=tail,
        idle_between=max(0.0, 1 - utilisation - starting - tail),
        makespan=end,
        lower_bound=max(work, chain),
        makespan_ratio=end / max(work, chain),
        work_bound=work,
        chain_bound=chain,
        redone=counts.lost_turns / float(archive.turns.sum(dtype=np.float64)),
        lost_parts=counts.lost_parts,
        nodes_lost=counts.nodes_lost,
        read_again=max(0.0, counts.read_seconds / audio - 1),
        committed=outcome.committed,
        commits_per_second=counts.commits / outcome.committed,
        shards_per_second=counts.shards / outcome.committed,
        requests_per_second=outcome.requests / outcome.committed,
        refused_requests=outcome.refused,
        gpu_hours=there / 3600,
        cost=there / 3600 * given.price,
        speed=audio / end,
    )


def work_bound(outcome: Outcome) -> float:
    """Seconds until the GPUs that were there could have done all the work; see above."""
    left = float(outcome.archive.turns.sum(dtype=np.float64)) / outcome.full_speed
    capacity = 0.0
    changes = [*sorted((when, speed) for when, _, speed in outcome.capacity), (float("inf"), 0.0)]
    for (when, speed), (until, _) in pairwise(changes):
        capacity += speed
        if capacity > 0 and left <= capacity * (until - when):
            return when + left / capacity
        left -= capacity * (until - when)
    raise AssertionError("the GPUs that were there cannot have done the work")


def chain_bound(outcome: Outcome) -> float:
    """Seconds that the longest file takes from its request to the end of its last part, alone in the world."""
    given, archive = outcome.given, outcome.archive
    last = outcome.archive.first_part[1:] - 1
    fetching = given.request_seconds + archive.bytes / given.reader_bandwidth
    reading = archive.seconds / given.reader_speed
    alone = outcome.full_speed / given.slots / (given.fixed_share + (1 - given.fixed_share) / given.slots)
    return float((fetching + reading + archive.turns[last] / alone).max())


def lines(result: Figures) -> list[str]:
    """The figures for a person."""
    one = result
    return [
        f"archive            {one.files:,} files, {one.parts:,} parts",
        f"cluster            {one.jobs} jobs, {one.readers:,} readers, {one.nodes_lost} nodes lost",
        f"GPU utilisation    {one.utilisation:.1%}",
        f"  not utilised     {one.idle_starting:.1%} starting, {one.idle_tail:.1%} in the tail, "
        f"{one.idle_between:.1%} else",
        f"makespan           {one.makespan:,.0f} s, {one.makespan_ratio:.3f} × the lower bound of "
        f"{one.lower_bound:,.0f} s",
        f"  bounds           work {one.work_bound:,.0f} s, longest file {one.chain_bound:,.0f} s",
        f"work done again    {one.redone:.2%}, {one.lost_parts:,} parts; read again {one.read_again:.2%}",
        f"committed after    {one.committed:,.0f} s",
        f"commits            {one.commits_per_second:.2f} a second, of {one.shards_per_second:,.1f} shards",
        f"requests           {one.requests_per_second:,.0f} a second to read, {one.refused_requests:,} refused",
        f"cost               ${one.cost:,.0f} for {one.gpu_hours:,.0f} GPU-hours",
        f"speed              {one.speed:,.0f} × real time",
    ]


def assumption_lines(outcome: Outcome) -> list[str]:
    """What all of it rests on."""
    rows = [*outcome.given.table()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [
        f"{name.replace('_', '-'):<{widths[0]}}  {value:>{widths[1]}}  {source:<9}  {what}"
        for name, value, source, what in rows
    ]


def as_dict(outcome: Outcome, result: Figures) -> dict[str, object]:
    """For machines: the assumptions and the figures."""
    return {"assumptions": asdict(outcome.given), "figures": asdict(result)}


def utilisation(outcome: Outcome) -> list[tuple[float, float]]:
    """Time, and the share of the GPUs that were there which was busy since the time before."""
    return [
        (after, (more - busy) / ((after - before) * there) if there else 0.0)
        for (before, busy, there), (after, more, _) in pairwise(outcome.samples)
        if after <= outcome.committed
    ]


def _starting(outcome: Outcome) -> float:
    """GPU seconds between the arrival of nodes and their models' first part, at the latest the end."""
    start, end = outcome.given.start_seconds, outcome.last_end
    return sum(min(start, end - when) * gpus for when, gpus, _ in outcome.capacity if gpus > 0 and when < end)


def _tail(outcome: Outcome) -> float:
    """GPU seconds not used since the last time when nearly all were busy."""
    shares = utilisation(outcome)
    full = [number for number, (_, share) in enumerate(shares) if share >= TAIL_BELOW]
    first = full[-1] + 1 if full else 0
    when, busy, _ = outcome.samples[first]
    there = sum((outcome.last_end - max(when, at)) * gpus for at, gpus, _ in outcome.capacity if at < outcome.last_end)
    return max(0.0, there - (outcome.busy_seconds - busy))
