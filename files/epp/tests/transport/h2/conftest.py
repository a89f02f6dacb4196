# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of single frames, and a service that echoes: what goes in and comes out is bytes, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hpack
import pytest

from epp.extproc import ProtocolError
from epp.transport.api import METHOD
from epp.transport.h2 import frames as f
from epp.transport.h2.connection import Connection, Method, Options

CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    (":authority", "epp"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True)
class Frame:
    """A frame that the server has sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The payload's last four bytes: an error code, an increment."""
        return int.from_bytes(self.payload[-4:])


class Echo:
    """An exchange that answers each message with the same in upper case, but for some words.

    ``end``: no answer, the stream ends. ``late``: the answer waits for :attr:`EchoService.released`. ``bad``: a
    protocol error. ``bug``: an exception. ``big N``: N bytes.
    """

    interruptible = True

    def __init__(self, service: EchoService) -> None:
        self._service = service
        self.push: Callable[[Iterable[bytes]], None] | None = None
        self.done = False
        self.closed = ""

    def receive(self, data: bytes) -> Iterable[bytes] | Awaitable[Iterable[bytes]]:
        self._service.received.append(data)
        match data.split():
            case [b"end"]:
                self.done = True
                return ()
            case [b"late"]:
                return self._later()
            case [b"bad"]:
                raise ProtocolError("this is bad")
            case [b"bug"]:
                raise RuntimeError("this is a bug")
            case [b"big", size]:
                return self._built(int(size))
        return (data.upper(),)

    def close(self, code: str) -> None:
        assert not self.closed, "closed twice"
        self.closed = code
        self._service.closed.append(code)

    def _built(self, size: int) -> Iterator[bytes]:
        for _ in range(2):
            self._service.built += 1
            yield b"x" * size

    async def _later(self) -> Iterable[bytes]:
        await self._service.released.wait()
        return (b"LATE",)


class EchoService:
    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.closed: list[str] = []
        self.metadata: Sequence[tuple[str, str | bytes]] = ()
        self.built = 0
        self.released = asyncio.Event()

    def open(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> Echo:
        self.metadata = metadata
        return Echo(self)


class Client:
    """Speaks to a connection frame by frame. It has said hello unless told otherwise."""

    def __init__(self, hello: bool = True, **options: Any) -> None:
        self.service = EchoService()
        limits = Options(**{"max_receive": 1_000_000, "max_send": 1_000_000, **options})
        methods = {METHOD: Method(self.service.open), "/watch": Method(self.service.open, stays=True)}
        self.connection = Connection(methods, limits, self._flush)
        self.written = b""
        self.hpack = hpack.Encoder()
        self.decoder = hpack.Decoder()
        if hello:
            self.hello()

    def hello(self) -> None:
        self.send(f.PREFACE, f.settings({}))
        self.read()

    def _flush(self) -> None:
        """As a transport does it."""
        while out := self.connection.out:
            self.connection.out = []
            self.written += b"".join(out)
            if self.connection.waiting and not self.connection.paused:
                self.connection.resume()

    def send(self, *data: bytes) -> None:
        self.connection.receive(b"".join(data))
        self._flush()

    def read(self) -> list[Frame]:
        """The frames that have come since the last time."""
        self._flush()
        frames, data = [], self.written
        while data:
            high, low, kind, flags, stream = f.read_header(data, 0)
            end = 9 + (high << 16 | low)
            assert end <= len(data), "a frame is cut short"
            frames.append(Frame(kind, flags, stream, data[9:end]))
            data = data[end:]
        self.written = b""
        return frames

    def block(self, headers: Iterable[tuple[str, str]] = CALL, **changes: str | None) -> bytes:
        """An encoded block: headers with some replaced (``content_type``), left out (None) or added."""
        names = {name.replace("_", "-"): value for name, value in changes.items()}
        fields = [(name, names.pop(name.lstrip(":"), value)) for name, value in headers]
        fields += list(names.items())
        return bytes(self.hpack.encode([(name, value) for name, value in fields if value is not None]))

    def headers(self, stream: int = 1, flags: int = f.END_HEADERS, **changes: str | None) -> bytes:
        return f.frame(f.HEADERS, flags, stream, self.block(**changes))

    def open(self, stream: int = 1, *messages: bytes, end: bool = False, **changes: str | None) -> None:
        """A call with these messages."""
        data = [self.headers(stream, **changes)]
        data += [message(each, stream) for each in messages]
        if end:
            data.append(f.frame(f.DATA, f.END_STREAM, stream))
        self.send(*data)

    def answers(self, frames: Iterable[Frame]) -> list[bytes]:
        """The messages in DATA frames."""
        data = b"".join(frame.payload for frame in frames if frame.kind == f.DATA)
        found = []
        while data:
            end = 5 + int.from_bytes(data[1:5])
            found.append(data[5:end])
            data = data[end:]
        return found

    def status(self, frames: Iterable[Frame]) -> dict[str, str]:
        """The fields of the block that ended the stream."""
        last = [frame for frame in frames if frame.kind == f.HEADERS][-1]
        assert last.flags & f.END_STREAM
        return dict(self.decoder.decode(last.payload))

    def error(self) -> tuple[int, str]:
        """What the GOAWAY says that ended the connection."""
        frames = self.read()
        assert frames, "nothing was sent"
        assert frames[-1].kind == f.GOAWAY, frames
        assert self.connection.finished
        return int.from_bytes(frames[-1].payload[4:8]), frames[-1].payload[8:].decode()


def message(data: bytes, stream: int = 1, flags: int = 0) -> bytes:
    """A whole message in one DATA frame."""
    return f.frame(f.DATA, flags, stream, prefixed(data))


def prefixed(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def kinds(frames: Iterable[Frame]) -> list[int]:
    return [frame.kind for frame in frames]


@pytest.fixture
async def client() -> Client:
    return Client()


@pytest.fixture
def wire() -> Any:
    """The helpers of this module, for tests that are imported without their folder."""

    class Helpers:
        Client = Client
        EchoService = EchoService
        message = staticmethod(message)
        prefixed = staticmethod(prefixed)
        kinds = staticmethod(kinds)
        CALL = CALL

    return Helpers
