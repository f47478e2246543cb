"""What the slices of one campaign share: the register and the tally of their publisher, found by a name.

The board is an actor of the publisher's own job and ends with it. So it says as well whether anybody will publish what
a slice prepares: a slice whose board is down ends, and what it has prepared waits for the next publisher. It refuses to
know what is claimed or counted.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.errors import LeaseError
from pipeline.register import Register
from pipeline.tally import Tally

NAMESPACE = "earwitness"  # of Ray, in which a name is looked up from another job


class _Pinned:
    """The actor behind a board."""

    def __init__(self, register: Register, tally: Tally) -> None:
        self._handles = register, tally

    def handles(self) -> tuple[Register, Tally]:
        return self._handles


class Board:
    """A handle on the board of a campaign: made by `put_up` in the publisher, by `find` in a slice."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def put_up(cls, name: str, register: Register, tally: Tally) -> Board:
        """The board of this process, on this machine, as long as this process lives and keeps it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
        board = cls(ray.remote(_Pinned).options(**options).remote(register, tally))
        board.handles()  # it can be found from here on
        return board

    @classmethod
    def find(cls, name: str) -> Board:
        """The board that another job has put up. Raises: `LeaseError` when there is none, or none any more."""
        try:
            return cls(ray.get_actor(name, namespace=NAMESPACE))
        except ValueError as error:
            raise _alone() from error

    def handles(self) -> tuple[Register, Tally]:
        """The register and the tally on it. Raises: `LeaseError` when the publisher has gone."""
        try:
            register, tally = ray.get(self._actor.handles.remote())
        except RayActorError as error:
            raise _alone() from error
        return register, tally


def _alone() -> LeaseError:
    return LeaseError("The job that publishes what this slice prepares has ended: submit the same again to go on.")
