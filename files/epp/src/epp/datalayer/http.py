# SPDX-License-Identifier: GPL-3.0-or-later
"""A keep-alive HTTP/1.1 GET client for one purpose: reading metric pages thousands of times a second.

A general client costs several times the CPU per request, which at a hundred endpoints and twenty readings a second is
a core. This one sends a constant request, and understands what a server may answer to it: a length, chunks, or a body
that ends with the connection. Whatever else happens closes the connection and is an error.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

MAX_HEAD = 64 * 1024
MAX_BODY = 32 * 1024 * 1024


@dataclass(frozen=True)
class ClientTls:
    """How servers are met. Paths are files in PEM."""

    scheme: str = "http"
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""

    def context(self) -> ssl.SSLContext | None:
        """The TLS context for scheme https, None for http. Raises OSError for files that cannot be used."""
        if self.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.ca_cert_path or None)
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert_path:
            context.load_cert_chain(self.client_cert_path, self.client_key_path or None)
        return context


class HttpError(Exception):
    """A request that got no usable answer; the text says why."""


class Refused(HttpError):
    """Nobody listens there, or there is no such place any more."""


class NoPage(HttpError):
    """A server answers there, and says that it has no such page."""


class Closed(Exception):
    """The connection ended before an answer did."""


Taker = Callable[[bytes | Exception], object]
"""Takes the body of an answer, or what went wrong."""

_NO_PAGE = (b"404", b"405", b"410", b"501")


_GONE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class GetClient(asyncio.Protocol):
    """One connection to one server, one request at a time, reconnecting as needed."""

    def __init__(
        self, host: str, port: int, path: str, tls: ssl.SSLContext | None = None, accept: str = "text/plain"
    ) -> None:
        name = f"[{host}]" if ":" in host else host
        self._host, self._port, self._tls = host, port, tls
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nUser-Agent: epp\r\nAccept: {accept}\r\n\r\n"
        ).encode()
        self._transport: asyncio.Transport | None = None
        self._take: Taker | None = None
        self._parser = _Parser()

    def ask(self, take: Taker) -> bool:
        """Send the request over the connection that stands; False, and nothing happens, if there is none.

        ``take`` gets the body of a 200 answer, or what went wrong: HttpError, or Closed where the server has just
        closed a connection that it had kept, which is no fault. It is called once, unless :meth:`close` comes first,
        and there is no limit to the time: that is the caller's, who saves a timer for each.
        """
        transport = self._transport
        if transport is None:
            return False
        self._parser = _Parser()
        self._take = take
        transport.write(self._request)
        return True

    async def get(self, seconds: float) -> bytes:
        """The body of a 200 answer, within ``seconds``, or twice as many if a kept connection ends meanwhile.

        Raises HttpError.
        """
        try:
            if self._transport is not None:
                try:
                    async with asyncio.timeout(seconds):
                        return await self._answer()
                except Closed:
                    pass  # a kept connection may be closed just when it is used
            async with asyncio.timeout(seconds):
                return await self._exchange()
        except TimeoutError:
            raise late(seconds) from None
        except ConnectionRefusedError:
            raise Refused("connection refused") from None
        except Closed:
            raise HttpError("the server closed the connection without an answer") from None
        except OSError as error:
            kind = Refused if error.errno in _GONE else HttpError
            raise kind(f"cannot connect: {error.strerror or error}") from error
        finally:
            if self._take is not None:
                self.close()

    def close(self) -> None:
        """Drop the connection; the next :meth:`get` opens another."""
        transport, self._transport, self._take = self._transport, None, None
        if transport is not None:
            transport.abort()

    async def _exchange(self) -> bytes:
        if self._transport is None:
            server_name = self._host if self._tls else None
            await asyncio.get_running_loop().create_connection(
                lambda: self, self._host, self._port, ssl=self._tls, server_hostname=server_name
            )
        return await self._answer()

    async def _answer(self) -> bytes:
        """Ask, and wait. Raises what went wrong."""
        answer: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()

        def take(outcome: bytes | Exception) -> None:
            if not answer.done():
                answer.set_result(outcome)

        if not self.ask(take):
            raise Closed
        outcome = await answer
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _settle(self, outcome: bytes | Exception) -> None:
        take, self._take = self._take, None
        if self._parser.close or not isinstance(outcome, bytes):
            self.close()
        if take is not None:
            take(outcome)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection stands."""
        # uvloop's transports derive from no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; what comes unasked ends the connection."""
        if self._take is None:
            self.close()
            return
        try:
            body = self._parser.feed(data)
        except HttpError as error:
            self._settle(error)
            return
        if body is not None:
            self._settle(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; that may be how a body ends."""
        self._transport = None
        if self._take is not None:
            body = self._parser.end()
            self._settle(Closed() if body is None else body)


def late(seconds: float) -> HttpError:
    """What to say of an answer that has not come within so many seconds."""
    return HttpError(f"no answer within {seconds:g} s")


class _Head(NamedTuple):
    """What a response's head says of its body."""

    length: int
    """Bytes; -1 when it does not say."""
    chunked: bool
    close: bool
    """The connection ends with the body."""


@lru_cache(maxsize=256)
def _head(data: bytes) -> _Head:
    """The head of a response, without its empty line. Raises HttpError.

    Kept: answers of one server differ in the date, which changes once a second, and seldom in the length.
    """
    status, *lines = data.split(b"\r\n")
    words = status.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise HttpError("the answer is not HTTP")
    if words[1] != b"200":
        kind = NoPage if words[1] in _NO_PAGE else HttpError
        raise kind(f"status {words[1].decode('latin-1')}")
    length, chunked, close = -1, False, words[0] == b"HTTP/1.0"
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip().lower()
        if name == b"content-length":
            if not value.isdigit():
                raise HttpError("the answer has a bad Content-Length")
            length = int(value)
        elif name == b"transfer-encoding" and value != b"identity":
            if value != b"chunked":
                raise HttpError(f"the answer has the unknown encoding {value.decode('latin-1')}")
            chunked = True
        elif name == b"connection" and value == b"close":
            close = True
        elif name == b"content-encoding" and value != b"identity":
            raise HttpError(f"the answer is compressed ({value.decode('latin-1')}) though nobody asked for it")
    return _Head(length, chunked, close)


class _Parser:
    """One HTTP/1.1 response."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head: _Head | None = None
        self._buffer = bytearray()
        self._body = bytearray()

    @property
    def close(self) -> bool:
        """The connection ends with the body."""
        return self._head is not None and self._head.close

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; the body once it is complete."""
        if self._head is None:
            if self._parts:
                data = b"".join((*self._parts, data))
                self._parts.clear()
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise HttpError("the answer is not HTTP")
                self._parts.append(data)
                return None
            self._head = _head(data[:end])
            data = data[end + 4 :]
        self._size += len(data)
        if self._size > MAX_BODY:
            raise HttpError(f"the answer is longer than {MAX_BODY} bytes")
        if self._head.chunked:
            self._buffer += data
            return self._chunks()
        self._parts.append(data)
        if 0 <= self._head.length <= self._size:
            return self._whole()[: self._head.length]
        return None

    def end(self) -> bytes | None:
        """The connection has ended; the body if that completes it."""
        head = self._head
        return self._whole() if head is not None and not head.chunked and head.length < 0 else None

    def _whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _chunks(self) -> bytes | None:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return None
            try:
                size = int(bytes(self._buffer[:end]).split(b";", 1)[0], 16)
            except ValueError:
                raise HttpError("the answer has a bad chunk") from None
            if size < 0:
                raise HttpError("the answer has a bad chunk")
            start = end + 2
            if size == 0:
                return self._trailers(start)
            if len(self._buffer) < start + size + 2:
                return None
            self._body += self._buffer[start : start + size]
            del self._buffer[: start + size + 2]

    def _trailers(self, start: int) -> bytes | None:
        """The body, once the trailers' empty line is there."""
        rest = self._buffer[start:]
        return bytes(self._body) if rest.startswith(b"\r\n") or b"\r\n\r\n" in rest else None
