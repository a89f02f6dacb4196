# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC health protocol (``grpc.health.v1``): Check, List and Watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import grpc
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

SERVING = 1
_WATCH_INTERVAL = 0.25
"""Seconds between two looks at a status that somebody watches."""


class HealthSource(Protocol):
    """Knows the status of services."""

    def status(self, service: str) -> int:
        """A number of ``grpc.health.v1``'s ServingStatus."""


class AlwaysServing:
    """For the health checks that share a port with the streams: whoever gets an answer there knows all."""

    def status(self, service: str) -> int:
        """SERVING."""
        return SERVING


def health_handler(source: HealthSource, services: Iterable[str]) -> grpc.GenericRpcHandler:
    """The health service; ``services`` are the names that List shows."""
    listed = tuple(services)

    async def check(request: HealthCheckRequest, _: object) -> HealthCheckResponse:
        return HealthCheckResponse(status=source.status(request.service))

    async def list_all(request: HealthListRequest, _: object) -> HealthListResponse:
        statuses = {name: HealthCheckResponse(status=source.status(name)) for name in listed}
        return HealthListResponse(statuses=statuses)

    async def watch(request: HealthCheckRequest, _: object) -> AsyncIterator[HealthCheckResponse]:
        told = None
        while True:
            status = source.status(request.service)
            if status != told:
                told = status
                yield HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_INTERVAL)

    encode = HealthCheckResponse.SerializeToString
    decode = HealthCheckRequest.FromString
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check, decode, encode),
        "List": grpc.unary_unary_rpc_method_handler(
            list_all, HealthListRequest.FromString, HealthListResponse.SerializeToString
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, decode, encode),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


class HealthServer:
    """The health service on a port of its own, in plaintext, as probes expect it."""

    def __init__(self, source: HealthSource, services: Iterable[str], host: str = "[::]", port: int = 9003) -> None:
        self._source = source
        self._services = services
        self._address = f"{host}:{port}"
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when it is taken."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((health_handler(self._source, self._services),))
        port = bind(self._server, self._address, None)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Stop answering."""
        if self._server is not None:
            await self._server.stop(0)


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Bind a server to ``host:port``; returns the port. Raises OSError with a text for people."""
    try:
        if credentials is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        reason = str(error).partition("; set GRPC_VERBOSITY")[0]
        raise OSError(f"cannot listen on {address}: {reason}; is the port taken?") from None
    return port
