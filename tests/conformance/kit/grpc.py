# SPDX-License-Identifier: GPL-3.0-or-later
"""gRPC for the cases: streams of ext_proc, and health checks, over ``grpclib``. Certificates are not verified."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import Any

import betterproto2
from envoy_data_plane.envoy.service.ext_proc.v3 import ProcessingRequest, ProcessingResponse
from grpclib.client import Channel as GrpclibChannel
from grpclib.client import Stream as GrpclibStream
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from h2.errors import ErrorCodes
from h2.events import StreamReset
from h2.exceptions import ProtocolError

from conformance.kit.loop import CLIENT
from conformance.kit.wait import PATIENCE

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
HEALTH = "/grpc.health.v1.Health/"
STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


@dataclass(eq=False, repr=False)
class HealthRequest(betterproto2.Message):
    """``grpc.health.v1.HealthCheckRequest``."""

    service: str = betterproto2.field(1, betterproto2.TYPE_STRING)


@dataclass(eq=False, repr=False)
class HealthReply(betterproto2.Message):
    """``grpc.health.v1.HealthCheckResponse``."""

    status: int = betterproto2.field(1, betterproto2.TYPE_INT32)


@dataclass(eq=False, repr=False)
class HealthListRequest(betterproto2.Message):
    """``grpc.health.v1.HealthListRequest``."""


@dataclass(eq=False, repr=False)
class HealthListReply(betterproto2.Message):
    """``grpc.health.v1.HealthListResponse``."""

    statuses: dict[str, HealthReply] = betterproto2.field(  # noqa: RUF009 - how betterproto declares a field
        1, betterproto2.TYPE_MAP, map_meta=betterproto2.map_meta(betterproto2.TYPE_STRING, betterproto2.TYPE_MESSAGE)
    )


class Codec(CodecBase):
    """betterproto2's messages for grpclib."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """To bytes."""
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """From bytes."""
        return message_type.FromString(data)


class Ended(Exception):
    """The picker ended the stream; ``status`` is the gRPC status by its name, ``OK`` for a regular end."""

    def __init__(self, status: str, text: str = "") -> None:
        super().__init__(f"the stream has ended with {status}: {text}")
        self.status = status
        self.text = text


class Silence(AssertionError):
    """No reply within the time that a case allows."""


class Stream:
    """One ext_proc stream, as Envoy opens one per request."""

    def __init__(self, stream: GrpclibStream[ProcessingRequest, ProcessingResponse]) -> None:
        self._stream = stream
        self._open = True
        self._reading: asyncio.Task[ProcessingResponse] | None = None

    def send(self, *messages: ProcessingRequest, end: bool = False) -> None:
        """Send messages in order; with ``end`` nothing follows. A stream that the picker has ended takes them, too."""
        with contextlib.suppress(StreamTerminatedError, ProtocolError):
            CLIENT.run(self._send(messages, end))

    def receive(self, seconds: float | None = None) -> ProcessingResponse:
        """The next reply. Raises Ended, or Silence when there is none in time (the reply may still be read later)."""
        seconds = PATIENCE.seconds if seconds is None else seconds
        return CLIENT.run(self._receive(seconds), seconds + 10)

    def silent(self, seconds: float = 0.25) -> bool:
        """Whether no reply comes for this long."""
        try:
            self.receive(seconds)
        except Silence:
            return True
        return False

    def peek(self, seconds: float = 0.25) -> bool:
        """Whether there is a reply, or comes one within this time; it is still there to be received."""
        return CLIENT.run(self._peek(seconds), seconds + 10)

    def close(self) -> None:
        """Leave, as Envoy does when the client goes away."""
        if self._open:
            self._open = False
            CLIENT.run(self._close())

    async def _send(self, messages: tuple[ProcessingRequest, ...], end: bool) -> None:
        for each in messages:
            await self._stream.send_message(each)
        if end:
            await self._stream.end()

    async def _receive(self, seconds: float) -> ProcessingResponse:
        if not await self._peek(seconds):
            raise Silence(f"no reply within {seconds:g} s")
        reading, self._reading = self._reading, None
        assert reading is not None
        return reading.result()

    async def _peek(self, seconds: float) -> bool:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._next())
            # The stream may end when its case has, and then nobody asks how: asyncio need not complain.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        done, _ = await asyncio.wait([self._reading], timeout=seconds)
        return bool(done)

    async def _next(self) -> ProcessingResponse:
        try:
            reply = await self._stream.recv_message()
            if reply is None:
                # A server may end a stream before its client does; grpclib thinks only of the other order.
                self._stream._end_done = True
                await self._stream.recv_trailing_metadata()
                raise Ended("OK")
            return reply
        except GRPCError as error:
            raise Ended(error.status.name, error.message or "") from None
        except (StreamTerminatedError, OSError) as error:
            raise Ended("TERMINATED", str(error)) from None

    async def _close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        with contextlib.suppress(Exception):
            await self._stream.cancel()
        with contextlib.suppress(Exception):
            await self._stream.__aexit__(None, None, None)


class _Protocol(H2Protocol):
    """HTTP/2 as RFC 9113 §8.1 allows it: a server that has answered may reset the stream without an error.

    grpclib takes that for a failure, and forgets what the server has said.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)

        def reset(event: StreamReset) -> None:
            if event.error_code != ErrorCodes.NO_ERROR:
                self.processor.process_stream_reset(event)
            elif stream := self.processor.streams.get(event.stream_id):
                # Whoever waits to send the rest need not: h2 forgets the stream when it counts its streams.
                _ = self.connection._connection.open_outbound_streams
                stream.window_updated.set()

        self.processor.processors[StreamReset] = reset


class _Channel(GrpclibChannel):
    def _protocol_factory(self) -> H2Protocol:
        plain = super()._protocol_factory()
        return _Protocol(plain.handler, plain.config, plain.h2_config)


class Channel:
    """A connection to one port of a picker."""

    def __init__(self, port: int, tls: bool) -> None:
        self._channel = CLIENT.run(self._connect(port, tls))

    async def _connect(self, port: int, tls: bool) -> GrpclibChannel:
        return _Channel("127.0.0.1", port, codec=Codec(), ssl=any_certificate() if tls else None)

    def stream(self) -> Stream:
        """A new ext_proc stream. Raises OSError when nobody listens."""
        return Stream(CLIENT.run(self._open(PROCESS, Cardinality.STREAM_STREAM, ProcessingRequest, ProcessingResponse)))

    async def _open(self, method: str, cardinality: Cardinality, sent: Any, received: Any) -> GrpclibStream[Any, Any]:
        stream = self._channel.request(method, cardinality, sent, received)
        await stream.__aenter__()
        await stream.send_request()
        return stream

    def check(self, service: str) -> str:
        """A health check: the status by its name, or the name of the gRPC error."""
        reply = CLIENT.run(self._ask("Check", HealthRequest(service=service), HealthReply))
        return reply if isinstance(reply, str) else STATUS[reply.status]

    def list(self) -> dict[str, str] | str:
        """The health of every service that the picker lists, or the name of the gRPC error."""
        reply = CLIENT.run(self._ask("List", HealthListRequest(), HealthListReply))
        if isinstance(reply, str):
            return reply
        return {name: STATUS[each.status] for name, each in reply.statuses.items()}

    def watch(self, service: str) -> Watch:
        """A health watch."""
        stream = CLIENT.run(self._open(f"{HEALTH}Watch", Cardinality.UNARY_STREAM, HealthRequest, HealthReply))
        CLIENT.run(stream.send_message(HealthRequest(service=service), end=True))
        return Watch(stream)

    async def _ask(self, method: str, request: Any, reply: Any) -> Any:
        call = (f"{HEALTH}{method}", Cardinality.UNARY_UNARY, type(request), reply)
        try:
            async with self._channel.request(*call, timeout=10) as stream:
                await stream.send_message(request, end=True)
                return await stream.recv_message()
        except GRPCError as error:
            return error.status.name
        except (StreamTerminatedError, OSError, TimeoutError):
            return Status.UNAVAILABLE.name

    def close(self) -> None:
        """Close the connection, and with it every stream."""
        CLIENT.loop.call_soon_threadsafe(self._channel.close)


class Watch:
    """A health watch."""

    def __init__(self, stream: GrpclibStream[HealthRequest, HealthReply]) -> None:
        self._stream = stream

    def next(self) -> str:
        """The next status by its name, or the name of the gRPC error, ``OK`` when the watch has ended."""
        return CLIENT.run(self._next(PATIENCE.seconds), PATIENCE.seconds + 10)

    async def _next(self, seconds: float) -> str:
        try:
            reply = await asyncio.wait_for(self._stream.recv_message(), seconds)
        except GRPCError as error:
            return error.status.name
        except TimeoutError:
            raise Silence(f"the watch said nothing within {seconds:g} s") from None
        return "OK" if reply is None else STATUS[reply.status]

    def close(self) -> None:
        """Stop watching."""
        CLIENT.run(self._close())

    async def _close(self) -> None:
        with contextlib.suppress(Exception):
            await self._stream.cancel()


def any_certificate() -> ssl.SSLContext:
    """A TLS context for HTTP/2 that takes any certificate: pickers sign their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
