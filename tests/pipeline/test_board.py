"""What slices share, and how they notice that nobody publishes any more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import pytest
import ray

from jobs.cluster import Machines
from model.errors import LeaseError
from pipeline.board import Board
from pipeline.register import Register
from pipeline.tally import Tally

PATIENCE_SECONDS = 20.0
# Another job of the same Ray, as a slice is.
ELSEWHERE = """
import ray
from pipeline.board import Board
ray.init(address={address!r}, log_to_driver=False)
register, tally = Board.find({name!r}).handles()
print(register.claim("ab" * 32, "theirs"))
tally.transcribed(2.5)
print(tally.counts().seconds_transcribed)
"""


def test_another_job_finds_it_and_shares_what_is_on_it(machines: Machines) -> None:
    register, tally = Register.start(), Tally.start()
    name = uuid.uuid4().hex
    board = Board.put_up(name, register, tally)
    assert register.claim("ab" * 32, "ours") == "ours"
    code = ELSEWHERE.format(address=ray.get_runtime_context().gcs_address, name=name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ours", "2.5"]
    assert tally.counts().seconds_transcribed == 2.5
    assert board.handles()


def test_without_its_publisher_it_is_down(machines: Machines) -> None:
    name = uuid.uuid4().hex
    board = Board.put_up(name, Register.start(), Tally.start())
    found = Board.find(name)
    ray.kill(board._actor)  # which returns before it is dead, and its name is free a moment after that
    deadline = time.monotonic() + PATIENCE_SECONDS
    for look in (found.handles, lambda: Board.find(name)):
        with pytest.raises(LeaseError, match="The job that publishes what this slice prepares has ended: submit"):
            while time.monotonic() < deadline:
                look()


def test_a_board_that_nobody_put_up_is_not_found(machines: Machines) -> None:
    with pytest.raises(LeaseError, match="has ended"):
        Board.find("nobody")
