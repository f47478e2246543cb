"""A proxy in front of an S3 server that loses, delays and cuts what passes, or kills who sent it, as it is told.

A request is forwarded byte for byte: its signature covers the Host header, which names the proxy, and the server takes
it as it stands. Each request has a number and a verb; a rule decides what happens to it. It refuses to know what is
stored.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

VERBS = ("GET", "HEAD", "PUT", "POST", "DELETE", "LIST")
CHANGING = ("PUT", "POST", "DELETE")
STALL_SECONDS = 4.0  # longer than a client waits whose timeouts are those of the tests
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends RST, not FIN


class Fault(Enum):
    """What can happen to one request."""

    UNAVAILABLE = "503"
    LOST_REQUEST = "reset before forwarding"
    LOST_ANSWER = "reset after forwarding"
    SHORT_BODY = "short body"  # of a PUT on its way to the server, else of the answer
    STALL = "stall"  # no answer, and then a reset
    KILLED_BEFORE = "sender killed before forwarding"
    KILLED_AFTER = "sender killed after forwarding"


@dataclass(frozen=True)
class Call:
    """One request: its number from 0, its verb (LIST for a GET that lists) and its target."""

    number: int
    verb: str
    target: str


Rule = Callable[[Call], Fault | None]


@dataclass
class Proxy:
    """A running proxy: set `rule`, point clients at `endpoint`, look at `calls`."""

    upstream: tuple[str, int]
    endpoint: str = ""
    calls: list[Call] = field(default_factory=list)
    struck: list[Call] = field(default_factory=list)  # those to which a fault happened
    victim: int | None = None  # the process that KILLED_… kills

    def __post_init__(self) -> None:
        self._rule: Rule = lambda call: None
        self._open: set[asyncio.Task[None]] = set()

    def expect(self, rule: Rule) -> None:
        """Forget what passed, and follow another rule from now on."""
        self.calls, self.struck, self.victim, self._rule = [], [], None, rule

    def env(self) -> dict[str, str]:
        """What sends clients of the AWS_* environment here."""
        return {"AWS_ENDPOINT_URL": self.endpoint}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, until either side has enough."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while request := await _Message.read(reader, before_body=lambda: writer.write(_CONTINUE)):
                await self._pass_on(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, _Reset):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def stop(self) -> None:
        """End every connection."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _pass_on(self, request: _Message, writer: asyncio.StreamWriter) -> None:
        call = Call(len(self.calls), request.verb, request.target)
        self.calls.append(call)
        fault = self._rule(call)
        if fault is not None:
            self.struck.append(call)
        await self._before(fault, request, writer)
        if fault is Fault.UNAVAILABLE:
            return
        cut = len(request.body) // 2 if fault is Fault.SHORT_BODY and request.verb == "PUT" else None
        answer = await self._ask(request, cut)
        await self._after(fault, answer, writer)
        writer.write(answer.head + answer.body)
        await writer.drain()

    async def _before(self, fault: Fault | None, request: _Message, writer: asyncio.StreamWriter) -> None:
        if fault is Fault.UNAVAILABLE:
            body = b"" if request.verb == "HEAD" else _SLOW_DOWN
            head = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        if fault is Fault.KILLED_BEFORE:
            self._kill()
        if fault in (Fault.LOST_REQUEST, Fault.KILLED_BEFORE):
            raise _Reset

    async def _after(self, fault: Fault | None, answer: _Message, writer: asyncio.StreamWriter) -> None:
        if fault is Fault.KILLED_AFTER:
            self._kill()
        if fault is Fault.STALL:
            await asyncio.sleep(STALL_SECONDS)
        if fault is Fault.SHORT_BODY:
            whole = answer.head + answer.body
            writer.write(whole[: len(answer.head) + len(answer.body) // 2] if answer.body else whole[:-10])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        if fault is not None:
            raise _Reset

    def _kill(self) -> None:
        assert self.victim is not None, "nobody was named as the victim"
        with suppress(ProcessLookupError):
            os.kill(self.victim, signal.SIGKILL)

    async def _ask(self, request: _Message, cut: int | None) -> _Message:
        """The server's answer; `cut` bytes of the request's body reach it, if not all."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(request.head + request.body[:cut])
            await writer.drain()
            if cut is not None:
                raise _Reset
            answer = await _Message.read(reader, has_body=request.verb != "HEAD")
            while answer and answer.is_provisional:
                answer = await _Message.read(reader, has_body=request.verb != "HEAD")
            if answer is None:
                raise _Reset
            return answer
        finally:
            writer.close()


class _Reset(Exception):
    """The connection of the client is to end at once."""


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class _Message:
    """One request or answer of HTTP/1.1, as bytes."""

    head: bytes
    body: bytes

    @classmethod
    async def read(
        cls,
        reader: asyncio.StreamReader,
        has_body: bool = True,
        before_body: Callable[[], None] = lambda: None,
    ) -> _Message | None:
        """The next message, or None where the other side has closed."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
        if b"expect" in headers:
            before_body()
        if not has_body or head.startswith((b"HTTP/1.1 1", b"HTTP/1.1 204", b"HTTP/1.1 304")):
            return cls(head, b"")
        if b"chunked" in headers.get(b"transfer-encoding", b""):
            return cls(head, await _chunks(reader))
        return cls(head, await reader.readexactly(int(headers.get(b"content-length", b"0"))))

    @property
    def is_provisional(self) -> bool:
        return self.head.startswith(b"HTTP/1.1 1")

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def verb(self) -> str:
        method = self.head.split(b" ", 1)[0].decode()
        lists = method == "GET" and ("list-type=" in self.target or "prefix=" in self.target)
        return "LIST" if lists else method


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks, as it came."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return body


@contextmanager
def faulty(endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of `endpoint`, on a thread of its own, without any fault yet."""
    url = urlsplit(endpoint)
    assert url.hostname and url.port
    proxy, loop = Proxy((url.hostname, url.port)), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(STALL_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
