# SPDX-License-Identifier: GPL-3.0-or-later
"""Load for a gateway: so many connections, each with one request at a time, for a bounded time. Latencies in seconds.

Written on ``asyncio.Protocol``, since the generator shares its cores with what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import uvloop

from benchmarks.rig import RigError

PREFIXES = 32
"""Different beginnings of prompts: the first half is one of these, the second half never comes twice."""

GRACE_SECONDS = 60.0
"""How long requests that are under way at the end may take."""

_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nuser-agent: bench\r\n"
    b"authorization: Bearer sk-0123456789\r\naccept: */*\r\ncontent-length: %d\r\n\r\n"
)


@dataclass(frozen=True)
class Shape:
    """What every request of a measurement looks like."""

    prompt_bytes: int
    streams: int
    """Requests at the same time."""
    streamed: bool = False
    """Whether the answer is a stream of events."""


@dataclass
class Result:
    """What came of it."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Until the end of the answer."""
    first: list[float] = field(default_factory=list)
    """Until the first byte of the answer's body."""


class _Requests:
    """The requests of one run; every prompt is new, half of it is shared with others."""

    def __init__(self, shape: Shape, seed: int) -> None:
        half = shape.prompt_bytes // 2
        self._starts = [f"{number:04d} ".encode() + b"shared " * (half // 7) for number in range(PREFIXES)]
        self._rest = b"words of its own " * ((shape.prompt_bytes - half) // 17)
        self._tail = b',"stream":true' if shape.streamed else b""
        self._numbers = itertools.count(seed << 24)

    def next(self) -> bytes:
        """One request, head and body."""
        number = next(self._numbers)
        start = self._starts[number % PREFIXES]
        body = b'{"model":"bench","prompt":"%b %016x %b","max_tokens":1%b}' % (start, number, self._rest, self._tail)
        return _HEAD % len(body) + body


class _Connection(asyncio.Protocol):
    """One connection: the next request goes out when the answer to the last one has ended."""

    def __init__(self, requests: _Requests, end: float, result: Result) -> None:
        self._requests, self._end, self._result = requests, end, result
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._data = bytearray()
        self._head = 0
        self._length = -1
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RigError(f"the gateway closed the connection: {error}"))

    def _send(self) -> None:
        self._data.clear()
        self._head, self._length = 0, -1
        self._started = time.perf_counter()
        self._transport.write(self._requests.next())

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._head and not self._begun():
            return
        ended = len(self._data) - self._head >= self._length if self._length >= 0 else self._data.endswith(b"0\r\n\r\n")
        if ended:
            self._answered()

    def _begun(self) -> bool:
        """Whether the answer's head is here; takes note of how the body will end."""
        head = self._data.find(b"\r\n\r\n") + 4
        if head < 4:
            return False
        if not self._data.startswith(b"HTTP/1.1 200"):
            text = bytes(self._data[:300]).decode(errors="replace")
            self.done.set_exception(RigError(f"the gateway answered {text}"))
            self._transport.abort()
            return False
        lower = bytes(self._data[:head]).lower()
        if b"chunked" not in lower:
            self._length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self._head = head
        self._result.first.append(time.perf_counter() - self._started)
        return True

    def _answered(self) -> None:
        now = time.perf_counter()
        self._result.latencies.append(now - self._started)
        if now < self._end:
            self._send()
        else:
            self.done.set_result(None)
            self._transport.close()


def run(url: str, shape: Shape, seconds: float, seed: int) -> Result:
    """Requests for ``seconds``; those under way then are waited for. Raises RigError when one is not answered 200."""
    return uvloop.run(_run(url, shape, seconds, seed))


async def _run(url: str, shape: Shape, seconds: float, seed: int) -> Result:
    host, _, port = url.removeprefix("http://").rpartition(":")
    result, requests = Result(), _Requests(shape, seed)
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(shape.streams):
        _, connection = await loop.create_connection(
            lambda: _Connection(requests, started + seconds, result), host, int(port)
        )
        connections.append(connection.done)
    async with asyncio.timeout(seconds + GRACE_SECONDS):
        await asyncio.gather(*connections)
    result.seconds = time.perf_counter() - started
    return result
