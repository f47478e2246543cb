"""Create a RayJob from a manifest, and stay until it ends: what the nightly CronJob runs.

`concurrencyPolicy: Forbid` looks at the Jobs of a CronJob, and a Job that only created a RayJob would be over in a
second. So this one lasts as long as its RayJob, and ends as that ended. Started again after an eviction, it goes on
with the RayJob that it finds. It knows as much of the Kubernetes API as that takes, and nothing of audio:

    python nightly.py rayjob.yaml
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds who it is
POLL_SECONDS = 30.0
ANSWER_SECONDS = 30.0
MAX_SILENCE_SECONDS = 900.0  # of the API server: an upgrade of a single one takes minutes
KEPT = 3  # RayJobs that have ended, for a person to look at
ENDED = ("Complete", "Failed", "ValidationFailed")  # of status.jobDeploymentStatus
SUCCEEDED = "SUCCEEDED"  # of status.jobStatus

RayJob = dict[str, Any]


@dataclass(frozen=True)
class RayJobs:
    """The RayJobs of one namespace. address: of the API server; account: folder with token and certificate."""

    address: str
    namespace: str
    account: Path = ACCOUNT

    @classmethod
    def here(cls) -> RayJobs:
        """Those of the namespace that this pod is in."""
        address = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        return cls(address, (ACCOUNT / "namespace").read_text())

    def create(self, manifest: RayJob) -> RayJob:
        return self._call("POST", "", manifest)

    def get(self, name: str) -> RayJob:
        return self._call("GET", f"/{name}")

    def delete(self, name: str) -> None:
        self._call("DELETE", f"/{name}")

    def labelled(self, labels: dict[str, str]) -> list[RayJob]:
        """All that carry these labels, oldest first."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found: list[RayJob] = self._call("GET", f"?{urlencode({'labelSelector': selector})}")["items"]
        return sorted(found, key=lambda job: str(job["metadata"]["creationTimestamp"]))

    def _call(self, method: str, path: str, body: RayJob | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.address}/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs{path}",
            data=None if body is None else json.dumps(body).encode(),
            # The token is renewed while a night goes on, so it is read each time.
            headers={
                "Authorization": f"Bearer {(self.account / 'token').read_text()}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        trusted = ssl.create_default_context(cafile=self._certificate())
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=trusted) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def _certificate(self) -> str | None:
        certificate = self.account / "ca.crt"
        return str(certificate) if certificate.exists() else None


def has_ended(job: RayJob) -> bool:
    return job.get("status", {}).get("jobDeploymentStatus") in ENDED


def started(jobs: RayJobs, manifest: RayJob) -> str:
    """Name of the RayJob to follow: one that has not ended, or a new one; of those that have, the latest are kept."""
    known = jobs.labelled(manifest["metadata"]["labels"])
    for old in [job for job in known if has_ended(job)][:-KEPT]:
        jobs.delete(old["metadata"]["name"])
    running = [job for job in known if not has_ended(job)]
    job = running[-1] if running else jobs.create(manifest)
    name = str(job["metadata"]["name"])
    print(f"{'Going on with' if running else 'Created'} RayJob {name}.", flush=True)
    return name


def followed(jobs: RayJobs, name: str, sleep: Callable[[float], None] = time.sleep) -> RayJob:
    """The RayJob when it has ended. An API server that is silent for a while is waited for.

    Raises: `urllib.error.HTTPError` when the RayJob is gone or may not be read; `OSError` after too long a silence.
    """
    heard = time.monotonic()
    while True:
        try:
            job = jobs.get(name)
            if has_ended(job):
                return job
            heard = time.monotonic()
        except OSError as error:  # which an HTTPError is, too
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or time.monotonic() - heard > MAX_SILENCE_SECONDS:
                raise
        sleep(POLL_SECONDS)


def main(manifest: Path, jobs: RayJobs | None = None) -> int:
    """Exit code: 0 when the RayJob succeeded, else 1."""
    there = jobs or RayJobs.here()
    job = followed(there, started(there, yaml.safe_load(manifest.read_text())))
    status = job["status"]
    print(f"It ended as {status.get('jobStatus')}. {status.get('message', '')}".strip(), flush=True)
    return 0 if status.get("jobStatus") == SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
