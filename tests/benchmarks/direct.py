# SPDX-License-Identifier: GPL-3.0-or-later
"""Load for a picker without a gateway before it: whole ext_proc exchanges on a few HTTP/2 connections, in plaintext.

It speaks what Envoy says in full duplex: request headers, body, then (after the decision) response headers and body.
All but the prompt is encoded once, and of the answers only the destination is looked for, since the generator shares
its cores with what is measured.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import uvloop
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpBody, HttpHeaders, ProcessingRequest
from hpack import Encoder, NeverIndexedHeaderTuple

from benchmarks.client import _HEADERS as REQUEST_HEADERS
from benchmarks.client import METHOD
from benchmarks.rig import RigError

GRACE_SECONDS = 30.0
"""How long exchanges that are under way at the end may take."""
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGEST = 2**31 - 1
_PLACE = re.compile(rb"\d+\.\d+\.\d+\.\d+:\d+")


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + number.to_bytes(4) + payload


def _message(message: ProcessingRequest) -> bytes:
    data: bytes = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4) + data


def _map(values: dict[str, str]) -> HttpHeaders:
    return HttpHeaders(headers=HeaderMap(headers=[HeaderValue(key=k, raw_value=v.encode()) for k, v in values.items()]))


def _call() -> bytes:
    """The header block of every call; it adds nothing to the peer's table, so that it may be sent again as it is."""
    fields = {":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": "epp"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in fields.items()])


_CALL = _call()
_ASKED = _message(ProcessingRequest(request_headers=_map(REQUEST_HEADERS)))
_ANSWERED = _message(
    ProcessingRequest(response_headers=_map({":status": "200", "content-type": "application/json"}))
) + _message(
    ProcessingRequest(
        response_body=HttpBody(body=b'{"usage":{"prompt_tokens":800,"completion_tokens":1}}', end_of_stream=True)
    )
)


@dataclass
class Result:
    """What came of it. Latencies are seconds from the first byte sent to the decision."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Source:
    """Where prompts come from, and where it is told what became of them."""

    def next(self) -> tuple[int, bytes]:
        """A prompt without characters that JSON escapes, and a number for it."""
        raise NotImplementedError

    def went(self, number: int, destination: bytes) -> None:
        """The picker has sent that one there (``ip:port``); empty when it was refused."""
        raise NotImplementedError


class _Connection(asyncio.Protocol):
    def __init__(self, streams: int, source: Source, result: Result, more: Callable[[], bool]) -> None:
        self._streams, self._source, self._result, self._more = streams, source, result, more
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""
        self._leaving = False
        """The picker wants this connection to end."""
        self._next = 1
        self._open: dict[int, tuple[int, float]] = {}
        """Exchanges: the prompt's number, and when it began; 0.0 once it is decided."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        settings = b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in ((2, 0), (4, 2**24)))
        window = _frame(_WINDOW, 0, 0, (_LARGEST - 65535).to_bytes(4))
        transport.write(_HELLO + _frame(_SETTINGS, 0, 0, settings) + window)  # type: ignore[attr-defined]
        transport.write(b"".join(self._begin() for _ in range(self._streams)))  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RigError(f"the picker closed the connection: {error}"))

    def _begin(self) -> bytes:
        """The frames of one request."""
        index, prompt = self._source.next()
        number, self._next = self._next, self._next + 2
        self._open[number] = (index, time.perf_counter())
        body = b'{"model":"bench","prompt":"%b"}' % prompt
        asked = _message(ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)))
        start = _frame(_HEADERS, _END_HEADERS, number, _CALL)
        return start + b"".join(_frame(_DATA, 0, number, part) for part in _parts(_ASKED + asked))

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        at, size, out = 0, len(data), []
        while size - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3])
            if end > size:
                break
            kind, flags, number = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9])
            out.append(self._frame(kind, flags, number, data[at + 9 : end]))
            at = end
        self._tail = data[at:]
        if text := b"".join(out):
            self._transport.write(text)
        if not self._open and not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> bytes:
        """Take a frame; returns what is to be said to it."""
        if kind == _DATA and number in self._open:
            index, began = self._open[number]
            place = _PLACE.search(payload) if began else None
            if place is None:
                return b""
            self._result.latencies.append(time.perf_counter() - began)
            self._source.went(index, place[0])
            self._open[number] = (index, 0.0)
            return _frame(_DATA, _END_STREAM, number, _ANSWERED)
        if kind == _SETTINGS and not flags & _ACK:
            return _frame(_SETTINGS, _ACK, 0, b"")
        if kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        if kind == _HEADERS and flags & _END_STREAM:
            return self._ended(number)
        if kind == _GOAWAY and not int.from_bytes(payload[4:8]):
            self._leaving = True
        elif kind in (_RST, _GOAWAY):
            self._fail(f"the picker sent a frame of type {kind}: {payload!r}")
        return b""

    def _ended(self, number: int) -> bytes:
        _, began = self._open.pop(number)
        if began:
            self._fail("an exchange ended without a decision")
        return self._begin() if self._more() and not self._leaving else b""

    def _fail(self, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(RigError(text))
        self._transport.abort()


def _parts(data: bytes) -> list[bytes]:
    return [data[start : start + 16384] for start in range(0, len(data), 16384)]


def run(ports: Sequence[int], source: Source, connections: int, streams: int, seconds: float) -> Result:
    """So many connections to each port with so many exchanges at a time each, for ``seconds``. Raises RigError when one
    fails."""
    return uvloop.run(_run(ports, source, connections, streams, seconds))


async def _run(ports: Sequence[int], source: Source, connections: int, streams: int, seconds: float) -> Result:
    result, loop = Result(), asyncio.get_running_loop()
    started = time.perf_counter()

    def more() -> bool:
        return time.perf_counter() < started + seconds

    async def connection(port: int) -> None:
        """One after the other, as the picker asks for it."""
        while more():
            make = partial(_Connection, streams, source, result, more)
            _, made = await loop.create_connection(make, "127.0.0.1", port)
            await made.done

    async with asyncio.timeout(seconds + GRACE_SECONDS), asyncio.TaskGroup() as group:
        for port in [*ports] * connections:
            group.create_task(connection(port))
    result.seconds = time.perf_counter() - started
    return result
