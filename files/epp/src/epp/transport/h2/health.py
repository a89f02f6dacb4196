# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC health service on the port of the streams (``--health-checking``): whoever is answered there knows all."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from epp.transport.h2.connection import Method
from epp.transport.h2.framing import CallError, Code
from epp.transport.h2.headers import Metadata
from epp.transport.health import SERVING

_SERVING = HealthCheckResponse(status=SERVING)
_CHECKED = _SERVING.SerializeToString()
_LISTED = HealthListResponse(statuses={"": _SERVING}).SerializeToString()


class _Call:
    """One call: one question, one answer. A watch stays open, for there may be more to tell; there never is."""

    def __init__(self, question: type[HealthCheckRequest | HealthListRequest], answer: bytes, watch: bool) -> None:
        self._question, self._answer, self._watch = question, answer, watch
        self.done = False
        self.interruptible = False
        self.push: Callable[[Iterable[bytes]], None] | None = None

    def receive(self, data: bytes) -> Iterable[bytes]:
        """The answer to the question."""
        try:
            self._question.FromString(data)
        except DecodeError as error:
            raise CallError(Code.INTERNAL, f"not a {self._question.__name__}: {error}") from None
        self.done = not self._watch
        return (self._answer,)

    def close(self, code: str) -> None:
        """Nothing is held."""


def health_methods() -> dict[str, Method]:
    """The methods of ``grpc.health.v1.Health`` by their paths."""

    def check(_: Metadata) -> _Call:
        return _Call(HealthCheckRequest, _CHECKED, watch=False)

    def list_all(_: Metadata) -> _Call:
        return _Call(HealthListRequest, _LISTED, watch=False)

    def watch(_: Metadata) -> _Call:
        return _Call(HealthCheckRequest, _CHECKED, watch=True)

    service = "/grpc.health.v1.Health"
    return {
        f"{service}/Check": Method(check),
        f"{service}/List": Method(list_all),
        f"{service}/Watch": Method(watch, stays=True),
    }
