"""The job of one slice: prepares its files as any run would, and tells the publisher what is prepared.

    python -m jobs.slice ORDER

It has no lease and commits nothing, so any number of slices work beside each other. It ends when its publisher does: a
watch looks for the board every few seconds. Started by the coordinator (`jobs/coordinator.py`), never by hand.
"""

from __future__ import annotations

import _thread
import sys
import threading

from jobs.cluster import prepare_environment, ray_session
from jobs.orders import SliceOrder, read, reporting_failure
from model.errors import LeaseError
from pipeline.announcements import Announcements
from pipeline.board import Board
from pipeline.campaign import read_manifest
from pipeline.job import Job
from pipeline.objects import PATIENCE_SECONDS, ObjectStore
from pipeline.plan import Plan
from pipeline.records import MEDIA
from pipeline.run import Run, Summary

WATCH_SECONDS = 5.0


def prepare_slice(order: SliceOrder) -> None:
    """Prepare every part of a slice, and announce each group of shards.

    Raises: `LeaseError` when nobody is there to publish them; user errors of the workers, as any run.
    """
    objects = ObjectStore(order.to, PATIENCE_SECONDS)
    manifest = read_manifest(objects, order.folder)
    line = Announcements(objects, order.folder)
    job = Job(order.config, order.model, order.place, order.to)
    plan = Plan(manifest, MEDIA.empty_table(), 0.0, 0.0)
    run = Run(job, plan, Summary(job.generation, pending=plan.pending))
    with ray_session("auto"):
        board = Board.find(order.board)
        register, tally = board.handles()
        _limit_object_store(order.object_store_bytes)
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=[board, over], name="board", daemon=True)
        watch.start()
        try:
            for shards in run.prepared(tally, register):
                line.put(shards)
        except KeyboardInterrupt:
            board.handles()  # tells whether it was the watch that interrupted
            raise
        finally:
            over.set()
            watch.join(WATCH_SECONDS)  # else it would start a Ray of its own when this one is gone


def _limit_object_store(size: int) -> None:
    """Each Dataset would take half of the whole cluster's object store for its own."""
    from ray.data import DataContext, ExecutionResources

    limits = ExecutionResources.for_limits(object_store_memory=size)
    DataContext.get_current().execution_options.resource_limits = limits


def _watch(board: Board, over: threading.Event) -> None:
    """Interrupt this process when nobody publishes any more."""
    while not over.wait(WATCH_SECONDS):
        try:
            board.handles()
        except LeaseError:
            _thread.interrupt_main()
            return


if __name__ == "__main__":
    prepare_environment()
    sys.exit(reporting_failure(lambda: prepare_slice(read(SliceOrder, sys.argv[1]))))
