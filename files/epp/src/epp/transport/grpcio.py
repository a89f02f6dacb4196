# SPDX-License-Identifier: GPL-3.0-or-later
"""The transport on grpcio's asyncio server: the reference for what a transport must do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable

import grpc

from epp.extproc import ProtocolError
from epp.transport.api import METHOD, QUIET_SECONDS, Exchange, Service, TransportOptions
from epp.transport.health import AlwaysServing, bind, health_handler
from epp.transport.tls import TlsSource

log = logging.getLogger(__name__)


class GrpcioTransport:
    """Serves ext_proc streams with ``grpc.aio``."""

    def __init__(self, service: Service, options: TransportOptions) -> None:
        self._service = service
        self._options = options
        self._server: grpc.aio.Server | None = None
        self._open = 0

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when it cannot."""
        options = self._options
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.max_receive),
                ("grpc.max_send_message_length", options.max_send),
                ("grpc.max_concurrent_streams", 2**31 - 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        name, _, method = METHOD[1:].partition("/")
        process = grpc.stream_stream_rpc_method_handler(self._process)  # bytes in, bytes out
        handlers = [grpc.method_handlers_generic_handler(name, {method: process})]
        if options.health_checking:
            handlers.append(health_handler(AlwaysServing(), [""]))
        server.add_generic_rpc_handlers(tuple(handlers))
        credentials = None if options.tls is None else _credentials(options.tls)
        port = bind(server, f"{options.host}:{options.port}", credentials)
        await server.start()
        self._server = server
        return port

    async def drain(self, grace: float) -> None:
        """Keep serving, new streams too, until none is left for a moment; at most ``grace`` seconds."""
        end = time.monotonic() + grace
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < end:
            if self._open:
                quiet_since = now
            elif now - quiet_since >= QUIET_SECONDS:
                return
            await asyncio.sleep(min(0.05, end - now))

    async def stop(self) -> None:
        """End whatever is still open."""
        if self._open:
            log.warning("%d streams are still open and end now; a longer --drain-timeout would let them", self._open)
        if self._server is not None:
            await self._server.stop(0)

    async def _process(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """One stream. When the peer goes away, grpcio cancels this, or lets it read an ordinary end."""
        self._open += 1
        exchange = self._service.open(context.invocation_metadata() or ())
        code = "CANCELLED"
        try:
            await _pump(exchange, context)
            code = "OK"
        except ProtocolError as error:
            code = "INVALID_ARGUMENT"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            self._open -= 1
            exchange.close(code)


async def _pump(exchange: Exchange, context: grpc.aio.ServicerContext) -> None:
    """Hand over each message and write its answers, until either side has no more."""
    interrupt = _Interrupt(exchange) if exchange.interruptible else None
    while not exchange.done:
        message = await (context.read() if interrupt is None else interrupt.read(context))
        if message is grpc.aio.EOF:
            return
        if message is None:
            break
        answers = exchange.receive(message)
        if isinstance(answers, Coroutine):
            answers = await answers
        for answer in answers:
            await context.write(answer)
    if interrupt is not None:
        for answer in interrupt.answers:
            await context.write(answer)


class _Interrupt:
    """Ends the reading of a stream when its exchange has something to say that no message has asked for."""

    def __init__(self, exchange: Exchange) -> None:
        self.answers: Iterable[bytes] = ()
        self._pushed = False
        self._task: asyncio.Task[object] | None = None
        """The stream's task while it reads. Only then may it be disturbed: a write must come to its end."""
        exchange.push = self._push

    async def read(self, context: grpc.aio.ServicerContext) -> bytes | None:
        """The next message (or EOF); None for an interruption."""
        self._task = asyncio.current_task()
        assert self._task is not None
        try:
            message: bytes | None = await context.read()
            return message
        except asyncio.CancelledError:
            if not self._pushed or self._task.uncancel() > 0:
                raise
            return None
        finally:
            self._task = None

    def _push(self, answers: Iterable[bytes]) -> None:
        self.answers, self._pushed = answers, True
        if self._task is not None:
            self._task.cancel()


def _credentials(source: TlsSource) -> grpc.ServerCredentials:
    """TLS credentials; with a source that reloads, each handshake gets the certificate of its time."""
    pair = source.current()
    if not source.reloads:
        return grpc.ssl_server_credentials([(pair.key, pair.chain)])

    used = pair

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by grpcio on a thread of its own; None keeps what is in use."""
        nonlocal used
        now = source.current()
        if now is used:
            return None
        used = now
        return grpc.ssl_server_certificate_configuration([(now.key, now.chain)])

    first = grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])
    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=False)
