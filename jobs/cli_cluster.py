"""The commands that need a cluster: `earwitness submit`, and `earwitness jobs` for what it left running.

As `cli.py`, it turns arguments into a Config and a call, and what a command needs is imported when it is called.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from jobs import flags
from jobs.cluster import prepare_dashboard_client
from model.errors import INTERRUPTED

app = typer.Typer()
jobs = typer.Typer(help="See, stop and read jobs on a cluster.")
app.add_typer(jobs, name="jobs")

# The help of `jobs list`, `stop` and `logs` alike.
Address = Annotated[str, typer.Option("--address", metavar="URL", help="The cluster's dashboard: http://HEAD:8265.")]
Job = Annotated[str, typer.Argument(metavar="JOB", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]


@app.command()
def submit(
    sources: flags.Sources,
    to: flags.To,
    address: Address,
    model: flags.ModelName = None,
    language: flags.Language = None,
    task: flags.Task = None,
    precision: flags.Precision = None,
    max_hours: flags.MaxHours = None,
    deadline: flags.Deadline = None,
    config: flags.ConfigFile = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use so many, and await what is missing; else those it has.")
    ] = None,
    gpus_per_job: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="More GPUs are shared by several jobs; else 256.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job, and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Transcribe an archive on a cluster, and follow the job.

    SOURCE is as for transcribe, and is read on the cluster: a path must be on a disk that all its machines share.

    The same command again follows the job that works, or goes on where it ended. Interrupting it ends the following
    and not the job. The exit code is that of the job. With a bound, as for a night, the oldest files come first.

    No credentials are sent: those of the cluster's own environment count (AWS_* variables, or a role).
    """
    from pipeline.config import configured
    from pipeline.slices import GPUS_PER_JOB

    prepare_dashboard_client()
    given = flags.given(model=model) | {
        "decode": flags.decoding(language, task=task),
        "run": flags.given(precision=precision, gpus=gpus),
    }
    settings = configured(config, given)
    from jobs.ingest import bounds
    from jobs.submit import Request
    from jobs.submit import submit as follow
    from pipeline.run import Bounds

    limits = Bounds() if max_hours is None and deadline is None else bounds(max_hours, deadline)
    request = Request(tuple(sources), to, settings, address, gpus_per_job or GPUS_PER_JOB, limits, detach, as_json)
    _leave(follow(request))


@jobs.callback(invoke_without_command=True)
def help_when_alone(context: typer.Context) -> None:
    """A command without its subcommand is a question."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@jobs.command("list")
def list_jobs(address: Address, as_json: Json = False) -> None:
    """What runs, and what ran, newest first."""
    prepare_dashboard_client()
    from jobs.cluster_jobs import show_jobs

    show_jobs(address, as_json)


@jobs.command("stop")
def stop_job(job: Job, address: Address) -> None:
    """End a job; what was stored stays.

    JOB is one of `earwitness jobs list`. The same submit goes on where it stopped.
    """
    prepare_dashboard_client()
    from jobs.cluster_jobs import stop

    stop(address, job)


@jobs.command("logs")
def show_job_logs(job: Job, address: Address) -> None:
    """What a job and its slices have printed.

    JOB is one of `earwitness jobs list`.
    """
    prepare_dashboard_client()
    from jobs.cluster_jobs import show_logs

    show_logs(address, job)


def _leave(code: int) -> None:
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `cli.main`
    if code:
        sys.exit(code)
