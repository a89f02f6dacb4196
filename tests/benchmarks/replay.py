# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends requests through a gateway when they are due, whatever has become of those before (an open loop), and times
their first tokens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.rig import RigError

GRACE_SECONDS = 120.0
"""How long answers may take after the last request."""
_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\naccept: */*\r\n"
    b"content-length: %d\r\n\r\n"
)
_END = b"\r\n0\r\n\r\n"
_KEPT_BYTES = 1000
"""Of the end of a stream: its last event tells how many tokens there were."""
_PROMPT, _CACHED = re.compile(rb'"prompt_tokens": *(\d+)'), re.compile(rb'"cached_tokens": *(\d+)')
_NEVER = float("inf")


@dataclass(frozen=True)
class Answer:
    """What became of a request. Seconds from when it was due; both are infinite when it was refused."""

    due: float
    first: float
    """Until the first token."""
    last: float
    """Until the answer's end."""
    tokens: int
    """Of the prompt."""
    cached: int
    """Of these, those that the model server had in its cache."""


class _Connection(asyncio.Protocol):
    """A connection that asks one thing after another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[bool] | None = None
        self.data = b""
        """The end of the answer."""
        self.first = self.last = 0.0
        """When the first and the last token came (loop time)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(RigError(f"the gateway closed the connection: {error}"))

    async def ask(self, body: bytes) -> bool:
        """Whether it was answered; the connection can be used again only then."""
        self.data, self.first = b"", 0.0
        self._answered = self._loop.create_future()
        self._transport.write(_HEAD % len(body) + body)
        return await self._answered

    def data_received(self, data: bytes) -> None:
        if self._answered is None or self._answered.done():
            return
        now = self._loop.time()
        self.data = self.data[-_KEPT_BYTES:] + data if self.first else self.data + data
        if not self.first:
            if b"\r\n\r\n" in self.data and not self.data.startswith(b"HTTP/1.1 200"):
                self._answered.set_result(False)
                self._transport.abort()
                return
            if b"data: " in self.data:
                self.first = now
        if self.first and self.data.endswith(_END):
            self.last = now
            self._answered.set_result(True)

    def close(self) -> None:
        """It is not needed any more."""
        self._transport.abort()


def run(url: str, bodies: Sequence[bytes], times: Sequence[float]) -> list[Answer]:
    """Each of the bodies at its time (seconds from the start, the latest one at the end); returns their answers in the
    same order. Raises RigError when a connection breaks, TimeoutError when answers do not come."""
    return uvloop.run(_run(url, bodies, times))


async def _run(url: str, bodies: Sequence[bytes], times: Sequence[float]) -> list[Answer]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    loop, free = asyncio.get_running_loop(), list[_Connection]()
    start = loop.time() + 0.1

    async def one(body: bytes, at: float) -> Answer:
        due = start + at
        await asyncio.sleep(due - loop.time())
        connection = free.pop() if free else (await loop.create_connection(_Connection, host, int(port)))[1]
        if not await connection.ask(body):
            return Answer(at, _NEVER, _NEVER, 0, 0)
        prompt, cached = _PROMPT.search(connection.data), _CACHED.search(connection.data)
        found = int(prompt[1]) if prompt else 0, int(cached[1]) if cached else 0
        free.append(connection)
        return Answer(at, connection.first - due, connection.last - due, *found)

    try:
        async with asyncio.timeout(times[-1] + GRACE_SECONDS):
            return await asyncio.gather(*(one(body, at) for body, at in zip(bodies, times, strict=True)))
    finally:
        for each in free:
            each.close()
