"""The program of the nightly CronJob, against an HTTP server that keeps RayJobs as the API of Kubernetes does."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import yaml

from infra.kubernetes import nightly
from infra.kubernetes.nightly import KEPT, RayJobs, followed, main, started
from tests.infra.manifests import of_kind

TOKEN = "who-I-am"
(CONFIG,) = of_kind("ConfigMap")
MANIFEST: dict[str, Any] = yaml.safe_load(CONFIG["data"]["rayjob.yaml"])


class ApiServer(ThreadingHTTPServer):
    """RayJobs by name; `refusals` are the codes of its next answers, `outcome` how what is created ends, if at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.refusals: list[int] = []
        self.outcome: str | None = None

    def add(self, name: str, status: str, labels: dict[str, str] | None = None) -> None:
        created = f"2026-01-{len(self.jobs) + 1:02}T00:00:00Z"
        metadata = {"name": name, "labels": labels or MANIFEST["metadata"]["labels"], "creationTimestamp": created}
        self.jobs[name] = {"metadata": metadata, "status": {"jobDeploymentStatus": status}}

    def end(self, name: str, status: str) -> None:
        self.jobs[name]["status"] = {
            "jobDeploymentStatus": "Complete" if status == "SUCCEEDED" else "Failed",
            "jobStatus": status,
            "message": "Said by Ray.",
        }


class _Answers(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        asked = urlparse(self.path)
        if asked.query:
            (selector,) = parse_qs(asked.query)["labelSelector"]
            wanted = dict(pair.split("=") for pair in selector.split(","))
            fitting = [job for job in self.server.jobs.values() if job["metadata"]["labels"].items() >= wanted.items()]
            self._answer(200, {"items": fitting[::-1]})
        else:
            name = asked.path.rpartition("/")[2]
            self._answer(*((200, self.server.jobs[name]) if name in self.server.jobs else (404, {})))

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.add(name := f"{job['metadata']['generateName']}{len(self.server.jobs)}", "")
        del self.server.jobs[name]["status"]  # as long as KubeRay has not looked
        self.server.jobs[name]["spec"] = job["spec"]
        if self.server.outcome:
            self.server.end(name, self.server.outcome)
        self._answer(201, self.server.jobs[name])

    def do_DELETE(self) -> None:
        del self.server.jobs[self.path.rpartition("/")[2]]
        self._answer(200, {})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        assert self.path.startswith("/apis/ray.io/v1/namespaces/transcripts/rayjobs")
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        code = self.server.refusals.pop(0) if self.server.refusals else code
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def jobs(server: ApiServer, tmp_path: Path) -> RayJobs:
    (tmp_path / "token").write_text(TOKEN)
    return RayJobs(f"http://127.0.0.1:{server.server_port}", "transcripts", tmp_path)


@pytest.mark.parametrize(("status", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_it_ends_as_the_ray_job_ends(
    server: ApiServer, jobs: RayJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    (tmp_path / "rayjob.yaml").write_text(CONFIG["data"]["rayjob.yaml"])
    server.outcome = status
    assert main(tmp_path / "rayjob.yaml", jobs) == code
    said = "Created RayJob earwitness-nightly-0.\nIt ended as " + status
    assert capsys.readouterr().out == f"{said}. Said by Ray.\n"


def test_it_stays_until_the_ray_job_has_ended(server: ApiServer, jobs: RayJobs) -> None:
    name, naps = started(jobs, MANIFEST), ["Initializing", "Running"]

    def nap(seconds: float) -> None:
        assert seconds == nightly.POLL_SECONDS
        if naps:
            server.jobs[name]["status"] = {"jobDeploymentStatus": naps.pop(0)}
        else:
            server.end(name, "SUCCEEDED")

    assert followed(jobs, name, nap)["status"]["jobStatus"] == "SUCCEEDED"
    assert not naps


def test_a_program_that_was_evicted_goes_on_with_what_it_finds(server: ApiServer, jobs: RayJobs) -> None:
    server.add("of-last-night", "Complete")
    server.add("of-somebody-else", "Running", {"app.kubernetes.io/name": "other"})
    server.add("of-tonight", "Running")
    assert started(jobs, MANIFEST) == "of-tonight"
    assert len(server.jobs) == 3


def test_of_what_has_ended_the_latest_are_kept(server: ApiServer, jobs: RayJobs) -> None:
    for number in range(KEPT + 2):
        server.add(f"night-{number}", "Failed" if number % 2 else "Complete")
    server.add("of-somebody-else", "Complete", {"app.kubernetes.io/name": "other"})
    new = started(jobs, MANIFEST)
    assert [*server.jobs] == [*(f"night-{number}" for number in range(2, KEPT + 2)), "of-somebody-else", new]


def test_an_api_server_that_is_away_for_a_while_is_waited_for(server: ApiServer, jobs: RayJobs) -> None:
    name = started(jobs, MANIFEST)
    server.refusals = [503, 500]
    server.end(name, "SUCCEEDED")
    naps: list[float] = []
    followed(jobs, name, naps.append)
    assert len(naps) == 2


def test_one_that_stays_away_is_not(jobs: RayJobs, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    name = started(jobs, MANIFEST)
    monkeypatch.setattr(nightly, "MAX_SILENCE_SECONDS", 0.0)
    server.refusals = [503] * 3
    with pytest.raises(urllib.error.HTTPError, match="503"):
        followed(jobs, name, lambda _: None)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_ends_it(server: ApiServer, jobs: RayJobs, code: int) -> None:
    name = started(jobs, MANIFEST)
    server.refusals = [code]
    with pytest.raises(urllib.error.HTTPError, match=str(code)):
        followed(jobs, name, lambda _: pytest.fail("there is nothing to wait for"))
