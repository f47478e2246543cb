"""The slices of a campaign as Ray Jobs of the same cluster: what `pipeline/campaign.py` asks to be started and watched.

Each is one job with a name that follows from its coordinator's and its folder, so it can never be started twice. It
refuses to know what is published, and when a slice is started again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping

from jobs import orders
from jobs.orders import MARK, SliceOrder, failure, parse_event, written
from jobs.ray_jobs import ENDED, RayJobs
from pipeline.campaign import Ended
from pipeline.job import Job
from pipeline.placement import Placement

SLICE, COORDINATOR = "slice", "coordinator"  # kinds of our jobs, in their metadata
OBJECT_STORE_SHARE = 0.5  # of a cluster's, for all slices together: as much as Ray Data gives one job that is alone


class SliceJobs:
    """Starts, watches and stops the jobs of one campaign.

    name: of the coordinator's own job. places: of each slice. resources: of the whole cluster, as Ray counts them.
    """

    def __init__(
        self, jobs: RayJobs, name: str, job: Job, board: str, places: list[Placement], resources: Mapping[str, float]
    ) -> None:
        self._jobs, self._name, self._job, self._board, self._places = jobs, name, job, board, places
        self._bytes = int(resources.get("object_store_memory", 0) * OBJECT_STORE_SHARE / len(places))

    def start(self, folder: str) -> None:
        """Start the job that prepares the slice in `folder`, relative to the destination."""
        place = self._places[_number(folder)]
        job = self._job
        order = SliceOrder(job.config, job.model, place, job.destination, folder, self._board, self._bytes)
        entrypoint = shlex.join([sys.executable, "-m", "jobs.slice", written(order)])
        metadata = {MARK: SLICE, "coordinator": self._name, "to": job.destination}
        self._jobs.submit(self._named(folder), entrypoint, metadata)

    def ended(self, folder: str) -> Ended | None:
        """How the job ended; None while it works."""
        job = self._jobs.find(self._named(folder))
        if job.status not in ENDED:
            return None
        if job.status == "SUCCEEDED":
            return Ended(well=True)
        told = [event for line in self._jobs.log(job.submission_id).splitlines() if (event := parse_event(line))]
        failures = [event for event in told if event[MARK] == orders.FAILED]
        return Ended(well=False, error=failure(failures[-1]) if failures else None)

    def stop(self, folder: str) -> None:
        """Ask the job to end, without waiting until it has."""
        self._jobs.interrupt(self._named(folder))

    def _named(self, folder: str) -> str:
        return f"{self._name}.{folder.rpartition('/')[2]}"


def stop_orphans(jobs: RayJobs, to: str) -> None:
    """Stop slices of another coordinator that still work for this destination: nobody publishes what they prepare."""
    for job in jobs.all(**{MARK: SLICE, "to": to}):
        if job.status not in ENDED:
            jobs.interrupt(job.submission_id)


def _number(folder: str) -> int:
    return int(folder.rpartition("/")[2].partition("-")[0])
