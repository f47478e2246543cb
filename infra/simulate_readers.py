"""The readers of one job: blocks of the manifest in, parts out, with pauses when nobody takes them.

A block is read file by file, fetched whole and then decoded. When a node is lost, the blocks of its readers go to
others, and so does every block of which a part was lost; what is still there is skipped, at the price of reading it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from infra.simulate_archive import Archive
from infra.simulate_assumptions import Assumptions
from infra.simulate_bucket import Bucket
from infra.simulate_clock import Clock, Process, Sleeps
from infra.simulate_ledger import UNREAD, Ledger

Block = list[int]  # files


@dataclass(eq=False)
class Reader:
    """One actor: it reads the first of its blocks."""

    node: int  # its incarnation
    speed: float  # times real time
    blocks: deque[Block] = field(default_factory=deque)
    process: Process | None = None


class Readers:
    """All of a job. hand_on: takes a part that was read; has_room: whether more may be read ahead."""

    def __init__(
        self,
        clock: Clock,
        given: Assumptions,
        content: tuple[Archive, Ledger],
        bucket: Bucket,
        blocks: Iterable[Block],
        consumer: tuple[Callable[[int], None], Callable[[], bool]],
    ) -> None:
        self._clock, self._given, self._bucket = clock, given, bucket
        self._archive, self._ledger = content
        self._blocks_by_number = list(blocks)
        self._block_of = array("i", bytes(4 * len(self._archive.seconds)))
        for number, block in enumerate(self._blocks_by_number):
            for file in block:
                self._block_of[file] = number
        self._blocks = deque(self._blocks_by_number)
        self._hand_on, self._has_room = consumer
        self._readers: dict[int, list[Reader]] = {}  # by node
        self._idle: deque[Reader] = deque()
        self._paused: deque[Reader] = deque()

    def all_read(self) -> bool:
        """Whether nothing is being read, or waits for it."""
        busy = any(reader.process is not None for own in self._readers.values() for reader in own)
        return not busy and not self._blocks

    def join(self, node: int, speeds: Iterable[float]) -> None:
        """A node is ready, with so many readers."""
        self._readers[node] = [Reader(node, speed) for speed in speeds]
        self._idle += self._readers[node]
        self._start()

    def go_on(self) -> None:
        """There is room for one more part."""
        while self._paused:
            reader = self._paused.popleft()
            if reader.process is not None:
                reader.process.wake()
                return

    def lose(self, node: int) -> None:
        """A node is gone: its readers' blocks are for others."""
        lost = self._readers.pop(node, [])
        for reader in lost:
            if reader.process is not None:
                reader.process.kill()
                reader.process = None
        self._idle = deque(reader for reader in self._idle if reader.node != node)
        self._read_again(block for reader in lost for block in reader.blocks)

    def read_again(self, parts: Iterable[int]) -> None:
        """Parts whose log-mel is lost: their whole blocks, as Ray runs the tasks again that made them."""
        lost = list(parts)
        for part in lost:
            self._ledger.forget(part)
        self._read_again(self._blocks_by_number[self._block_of[self._archive.file_of(part)]] for part in lost)

    def _read_again(self, blocks: Iterable[Block]) -> None:
        queued = {id(block) for block in self._blocks}
        for block in blocks:
            if id(block) not in queued:
                queued.add(id(block))
                self._blocks.appendleft(block)
                self._ledger.counts.reread_blocks += 1
        self._start()

    def _start(self) -> None:
        for _ in range(min(len(self._idle), len(self._blocks))):
            reader = self._idle.popleft()
            reader.process = Process(self._clock, self._work(reader))

    def _work(self, reader: Reader) -> Sleeps:
        """Block after block. A block that waits for this reader waits for no other."""
        while True:
            while self._blocks and len(reader.blocks) < self._given.blocks_per_reader:
                reader.blocks.append(self._blocks.popleft())
            if not reader.blocks:
                break
            for file in reader.blocks[0]:
                yield from self._fetch(file)
                yield from self._decode(file, reader)
            reader.blocks.popleft()
        reader.process = None
        self._idle.append(reader)

    def _fetch(self, file: int) -> Sleeps:
        size = int(self._archive.bytes[file])
        requests, refusals = self._bucket.requests_of(size), 0
        while self._bucket.refuses(self._clock.now, file, requests):
            refusals += 1
            yield self._bucket.back_off(refusals)
        yield self._bucket.transfer(self._clock.now, size)

    def _decode(self, file: int, reader: Reader) -> Sleeps:
        """Its parts, as they are read. Those that nobody wants any more cost their time, in one piece."""
        skipped = 0.0
        for part in range(self._archive.first_part[file], self._archive.first_part[file + 1]):
            seconds = skipped + float(self._archive.part_seconds[part])
            self._ledger.counts.read_seconds += seconds - skipped
            if self._ledger.state[part] != UNREAD:
                skipped = seconds
                continue
            skipped = 0.0
            yield seconds / reader.speed
            while not self._has_room():
                self._paused.append(reader)
                yield None
            if self._ledger.hand_on(part, reader.node):
                self._hand_on(part)
        if skipped:
            yield skipped / reader.speed
