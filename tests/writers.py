"""Writers for tests: each gives its lease back when the test ends, for a heartbeat must not outlive its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pipeline.writer import Writer

WriterAt = Callable[[str], Writer]


@pytest.fixture
def writer_at() -> Iterator[WriterAt]:
    """Opens the one writer of a destination; of the same destination a second time, it is the same one."""
    with ExitStack() as stack:
        opened: dict[str, Writer] = {}

        def open_once(destination: str) -> Writer:
            if destination not in opened:
                opened[destination] = stack.enter_context(Writer.open(destination))
            return opened[destination]

        yield open_once
