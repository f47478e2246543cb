"""What became of every part, and the counts of a simulated job: the simulation's own truth, which loses nothing.

A part is unread, then handed on by its reader, then stored; a loss makes it unread, or leaves it handed on.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

UNREAD, HANDED_ON, STORED = 0, 1, 2


@dataclass
class Counts:
    """Sums over the whole job. Turns are work: tokens, of one slot."""

    turns: float = 0.0  # of parts that ended, each time they did
    lost_turns: float = 0.0  # had for nothing, or done again
    lost_parts: int = 0  # that were open, or ended and not stored, when their node was lost
    read_seconds: float = 0.0  # of audio, each time it was read
    reread_blocks: int = 0
    nodes_lost: int = 0
    commits: int = 0
    shards: int = 0


@dataclass
class Ledger:
    """The state of parts by number, and the node incarnation that holds the log-mel of each."""

    parts: int
    state: bytearray = field(init=False)
    home: array[int] = field(init=False)
    stored: int = 0
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.state = bytearray(self.parts)
        self.home = array("i", bytes(4 * self.parts))

    def hand_on(self, part: int, node: int) -> bool:
        """Whether a part that was just read is wanted: else somebody has it, or it is done."""
        if self.state[part] != UNREAD:
            return False
        self.state[part], self.home[part] = HANDED_ON, node
        return True

    def forget(self, part: int) -> None:
        """Its log-mel is lost: it has to be read again."""
        assert self.state[part] == HANDED_ON, "only what is on its way can be lost"
        self.state[part] = UNREAD

    def store(self, part: int) -> None:
        """Prepared: nothing can take it away any more."""
        assert self.state[part] == HANDED_ON, "stored twice, or never read"
        self.state[part] = STORED
        self.stored += 1
