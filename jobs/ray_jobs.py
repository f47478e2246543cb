"""Jobs of ours on a Ray cluster, by way of its dashboard: started, found, watched, followed, stopped.

Nothing but http reaches the cluster, so this works from a laptop that shares no version, disk or network with it but
that. No credentials travel: a job has the environment of the cluster. It refuses to know what a job does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from jobs.cluster import ANSWER_SECONDS
from model.errors import UsageError

RECONNECT_SECONDS = 60.0  # for a dashboard to come back, as when its machine is busy; then following it ends
RETRY_SECONDS = 1.0
READY_SECONDS = 60.0  # for a new cluster to take jobs
STOP_SECONDS = 60.0  # Ray kills what has not ended after 3
HTTP_PORT = 80
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_REDIRECTING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray prefers either to the address it is given


class RayJobs:
    """The jobs of one cluster, reached by `at` its address, or from `here`, by a job that runs on it.

    Raises: `UsageError` when no dashboard answers.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(
            logging.ERROR
        )  # it sets its own, and tells too much
        self.address = address
        with self._reached():
            self._client = JobSubmissionClient(address)

    @classmethod
    def at(cls, address: str) -> RayJobs:
        """The jobs of the cluster whose dashboard has this address, as http://head:8265."""
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"The address {address} is not one of a dashboard: give http://HOST:8265, where the jobs of Ray are."
            )
        if not _answers(address):
            raise _no_answer(address)
        with _as_given():
            return cls(address.rstrip("/"))

    @classmethod
    def here(cls) -> RayJobs:
        """The jobs of the cluster that this process is a job of."""
        return cls("auto")

    def submit(self, name: str, entrypoint: str, metadata: dict[str, str]) -> bool:
        """Start a job of this name; False when there is, or was, one already.

        A cluster that has just been started takes no jobs for some seconds, which are waited for.
        """
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with self._reached():
                    # No CPU: a driver waits most of its time, and on a full cluster it would never start.
                    self._client.submit_job(
                        entrypoint=entrypoint, submission_id=name, metadata=metadata, entrypoint_num_cpus=0
                    )
                return True
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if "try again" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise UsageError(f"The cluster at {self.address} takes no jobs yet: try again later.") from error
                time.sleep(RETRY_SECONDS)

    def find(self, name: str) -> Any:
        """What Ray knows of a job (`JobDetails`). Raises: `UsageError` when it knows none of this name."""
        with self._reached():
            try:
                return self._client.get_job_info(name)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                raise UsageError(
                    f"There is no job {name} at {self.address}: `earwitness jobs list --address {self.address}` "
                    f"names those there are."
                ) from error

    def all(self, **metadata: str) -> list[Any]:
        """Every job (`JobDetails`) with these metadata, oldest first."""
        with self._reached():
            found = self._client.list_jobs()
        wanted = metadata.items()
        ours = [job for job in found if job.submission_id and wanted <= (job.metadata or {}).items()]
        return sorted(ours, key=lambda job: job.start_time or 0)

    def interrupt(self, name: str) -> None:
        """Ask a job to end; Ray kills it if it has not after three seconds."""
        with self._reached():
            self._client.stop_job(name)

    def wait(self, name: str) -> None:
        """Returns once a job that was interrupted has ended. Raises: `UsageError` when it has not in STOP_SECONDS."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.find(name).status not in ENDED:
            if time.monotonic() > deadline:
                raise UsageError(f"The job {name} has not ended within {STOP_SECONDS:.0f} s: look again in a while.")
            time.sleep(RETRY_SECONDS / 4)

    def log(self, name: str) -> str:
        """All that a job has printed so far."""
        self.find(name)
        with self._reached():
            text: str = self._client.get_job_logs(name)
            return text

    def follow(self, name: str, on_line: Callable[[str], None]) -> Any:
        """Tell every line of a job's log, from the first, as it comes; returns the job's details when it has ended.

        A connection that breaks is made again, and no line is told twice.
        """
        log = _Log(on_line)
        answered = time.monotonic()
        while True:
            try:
                asyncio.run(log.tail(self._client, name))
                job = self.find(name)
                answered = time.monotonic()
                if job.status in ENDED:
                    log.rest(self.log(name))
                    return job
            except (UsageError, RuntimeError, OSError):
                if time.monotonic() - answered > RECONNECT_SECONDS:
                    raise
            time.sleep(RETRY_SECONDS)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what a connection can raise into one sentence."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as error:
            was_shown = str(error).startswith("Authentication failed")  # and not "Authentication required"
            does = "refused the token it was shown" if was_shown else "asks for its token"
            raise UsageError(
                f"The cluster at {self.address} {does}: set RAY_AUTH_TOKEN to what `ray get-auth-token` prints there."
            ) from error
        except (ConnectionError, RequestException) as error:
            raise _no_answer(self.address) from error


class _Log:
    """The log of one job, told line by line over any number of connections."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._told = 0  # characters
        self._begun = ""  # a line that has not ended

    async def tail(self, client: Any, name: str) -> None:
        """Each connection starts from the first character."""
        position = 0
        with contextlib.suppress(*_broken()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 calls aiohttp as it was
            async for text in client.tail_job_logs(name):
                position += len(text)
                self._add(text, position)

    def rest(self, whole: str) -> None:
        """What no connection told, of a log that is complete."""
        self._add(whole, len(whole))
        if self._begun:
            self._on_line(self._begun)

    def _add(self, text: str, end: int) -> None:
        """`text` ends at so many characters from the beginning of the log."""
        new = text[max(0, len(text) - max(0, end - self._told)) :] if end > self._told else ""
        self._told = max(self._told, end)
        *lines, self._begun = (self._begun + new).split("\n")
        for line in lines:
            self._on_line(line)


def _answers(address: str) -> bool:
    """Whether anything listens there: Ray's client would wait for minutes for a host that swallows what it is sent."""
    try:
        place = urlsplit(address)
        socket.create_connection((place.hostname or "", place.port or HTTP_PORT), ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _no_answer(address: str) -> UsageError:
    return UsageError(
        f"No Ray dashboard answers at {address}: give the address at which the cluster shows its jobs, as "
        f"http://HEAD:8265."
    )


def _broken() -> tuple[type[Exception], ...]:
    """What a connection raises that breaks."""
    from aiohttp import ClientError

    return (ClientError, RuntimeError, OSError)


@contextlib.contextmanager
def _as_given() -> Iterator[None]:
    """Without the variables that would lead Ray to another address than the one it is given."""
    kept = {name: os.environ.pop(name) for name in _REDIRECTING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
