"""What the readers of one run tell each other: whose content this is, and which object they did not survive.

    claim     the same bytes under two names are transcribed under the first, and the second refers to it
    begins    behind the deadline of a run no object is begun
    opened    an object that ends its reader again and again is given up instead of being read for ever

It counts and remembers, and refuses to know what an object or a part is. Nothing of it is stored: the next run starts
from the ledger.

Ray runs the task of a lost reader again, and takes what the second run yields in the place of what the first has
yielded already. So whatever is answered here is answered the same way again, and an object is given up behind the last
row that anybody had of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.errors import SourceError
from pipeline.records import DIGEST_BYTES, OWNERS

MAX_DEATHS = 3  # of readers with the same object open; a machine may run short of memory once, or twice
_DIGEST = f"S{DIGEST_BYTES}"


@dataclass(slots=True)
class _Visit:
    """What is known of one object in this run."""

    open: int = 0  # opened and not closed: by readers that died, and at most one that lives
    rows: int = 0  # handed on by the reader that came furthest
    given_up: bool = False


class Answers(Protocol):
    """What a reader asks: `Claims` itself where there is one reader, a `Register` where there are many."""

    def claim(self, sha256: str, media_id: str) -> str: ...
    def begins(self, media_id: str) -> bool: ...
    def opened(self, media_id: str) -> int | None: ...
    def handed_on(self, media_id: str, rows: int) -> None: ...
    def closed(self, media_id: str) -> None: ...


class Claims:
    """The memory behind a register. `owners`: `records.OWNERS` rows, content that the ledger knows.

    They are held as two sorted columns, 70 bytes a file, for there may be millions. deadline: when no object is begun
    any more, by the clock of this machine alone, whatever those of the readers say.
    """

    def __init__(self, owners: pa.Table | None = None, deadline: datetime | None = None) -> None:
        known = owners or OWNERS.empty_table()
        column = known["sha256"].combine_chunks()
        digests = np.frombuffer(column.buffers()[1] or b"", _DIGEST, len(column), column.offset * DIGEST_BYTES)
        order = np.argsort(digests)
        self._digests = digests[order]
        self._owners = known["media_id"].take(pa.array(order))
        self._claims: dict[bytes, str] = {}
        self._visits: dict[str, _Visit] = {}
        self._deadline = deadline
        self._late: set[str] = set()

    def claim(self, sha256: str, media_id: str) -> str:
        """The media_id under which this content is transcribed: `media_id` itself for whoever asks first."""
        digest = bytes.fromhex(sha256)
        if digest not in self._claims:
            self._claims[digest] = self._from_ledger(digest) or media_id
        return self._claims[digest]

    def begins(self, media_id: str) -> bool:
        """Whether a reader may begin with an object: before the deadline, or if one has begun with it already."""
        late = self._deadline is not None and datetime.now(UTC) >= self._deadline and media_id not in self._visits
        if late:
            self._late.add(media_id)
        return not late

    def turned_away(self) -> int:
        """How many objects came too late to be begun."""
        return len(self._late)

    def opened(self, media_id: str) -> int | None:
        """Note that a reader is about to open an object. None: go ahead; else give it up after so many rows of it.

        Raises: `SourceError` when readers do not even survive those rows any more.
        """
        visit = self._visits.setdefault(media_id, _Visit())
        if visit.open >= 2 * MAX_DEATHS:
            raise SourceError(
                f"The object {media_id} of the view media ends every process that reads it: take it out of the archive."
            )
        visit.given_up |= visit.open >= MAX_DEATHS
        visit.open += 1
        return visit.rows if visit.given_up else None

    def handed_on(self, media_id: str, rows: int) -> None:
        """Note, before they leave, that so many rows of an object have left its reader."""
        visit = self._visits[media_id]
        visit.rows = max(visit.rows, rows)

    def closed(self, media_id: str) -> None:
        """Note that a reader has survived an object."""
        self._visits[media_id].open -= 1

    def _from_ledger(self, digest: bytes) -> str | None:
        place = int(np.searchsorted(self._digests, np.array(digest, _DIGEST)))
        if place == len(self._digests) or self._digests[place] != np.array(digest, _DIGEST):
            return None
        owner: str = self._owners[place].as_py()
        return owner


class Register:
    """A handle on the memory of one run: started by the driver, handed to every reader.

    Its actor stands on the driver's machine. When that is lost the driver is lost as well, and the next run starts with
    what the ledger knows: at worst the same bytes are transcribed under two names, each under its own media_id.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls, owners: pa.Table | None = None, deadline: datetime | None = None) -> Register:
        """A register on the cluster this process is connected to; it lives as long as its handles."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return cls(ray.remote(Claims).options(num_cpus=0, scheduling_strategy=here).remote(owners, deadline))

    def claim(self, sha256: str, media_id: str) -> str:
        """As `Claims.claim`."""
        owner: str = ray.get(self._actor.claim.remote(sha256, media_id))
        return owner

    def begins(self, media_id: str) -> bool:
        """As `Claims.begins`."""
        begins: bool = ray.get(self._actor.begins.remote(media_id))
        return begins

    def turned_away(self) -> int:
        """As `Claims.turned_away`."""
        late: int = ray.get(self._actor.turned_away.remote())
        return late

    def opened(self, media_id: str) -> int | None:
        """As `Claims.opened`; it has arrived when this returns, so that no death can overtake it."""
        rows: int | None = ray.get(self._actor.opened.remote(media_id))
        return rows

    def handed_on(self, media_id: str, rows: int) -> None:
        """As `Claims.handed_on`; it has arrived when this returns."""
        ray.get(self._actor.handed_on.remote(media_id, rows))

    def closed(self, media_id: str) -> None:
        """As `Claims.closed`, without waiting: reports of one reader arrive in their order."""
        self._actor.closed.remote(media_id)
