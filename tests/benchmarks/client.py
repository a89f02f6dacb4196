# SPDX-License-Identifier: GPL-3.0-or-later
"""An ext_proc client that costs little: grpcio and upb, one stream per request, plaintext. It times decisions."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
SUBSET_NAMESPACE, SUBSET = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
DESTINATION = "x-gateway-destination-endpoint"
POOL = "x-gateway-inference-pool"
TIMEOUT_SECONDS = 20.0

_HEADERS = {
    ":method": "POST",
    ":path": "/v1/completions",
    ":authority": "bench",
    "content-type": "application/json",
    "x-request-id": "7f3c0e5e-6a0d-4a6f-9a63-0d8d7d6f1c11",
}


@dataclass(frozen=True)
class Reply:
    """What became of a request."""

    seconds: float
    """From the first byte sent to the reply to the headers."""
    destination: str
    """``ip:port``; empty when it was refused."""
    status: int
    """The HTTP status of a refusal; 0 when it was routed."""


class Client:
    """One connection to a picker."""

    def __init__(self, port: int, pool: str = "", root: bytes = b"") -> None:
        """``pool`` names one of several that the picker serves; ``root`` is the certificate (PEM) that it must have."""
        target = f"127.0.0.1:{port}"
        own = ("grpc.use_local_subchannel_pool", 1)  # two clients never share a connection
        if root:
            named = ("grpc.ssl_target_name_override", "localhost")
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root), options=[own, named])
        else:
            self._channel = grpc.insecure_channel(target, options=[own])
        self._call = self._channel.stream_stream(
            METHOD,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        self._metadata = ((POOL, pool),) if pool else ()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def decide(self, prompt: str, subset: Sequence[str] = ()) -> Reply:
        """Ask for a completion, in full duplex, and look only at the decision. Raises grpc.RpcError."""
        with self.asking(prompt, subset) as reply:
            return reply

    @contextlib.contextmanager
    def asking(self, prompt: str, subset: Sequence[str] = ()) -> Iterator[Reply]:
        """The same, and the request is in flight until the block ends."""
        sent: queue.SimpleQueue[ProcessingRequest | None] = queue.SimpleQueue()
        body = json.dumps({"model": "bench", "prompt": prompt}).encode()
        started = time.perf_counter()
        call = self._call(iter(sent.get, None), timeout=TIMEOUT_SECONDS, metadata=self._metadata)
        for message in _messages(body, subset):
            sent.put(message)
        try:
            reply = next(call)
            seconds = time.perf_counter() - started
            yield _reply(seconds, reply)
        finally:
            sent.put(None)
            call.cancel()


def _messages(body: bytes, subset: Sequence[str]) -> Iterator[ProcessingRequest]:
    values = [HeaderValue(key=key, raw_value=value.encode()) for key, value in _HEADERS.items()]
    first = ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=values)))
    for message in (first, ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True))):
        if subset:  # Envoy repeats the metadata with each message
            message.metadata_context.filter_metadata[SUBSET_NAMESPACE].update({SUBSET: list(subset)})
        yield message


def _reply(seconds: float, reply: ProcessingResponse) -> Reply:
    if reply.HasField("immediate_response"):
        return Reply(seconds, "", reply.immediate_response.status.code)
    for option in reply.request_headers.response.header_mutation.set_headers:
        if option.header.key == DESTINATION:
            return Reply(seconds, option.header.raw_value.decode() or option.header.value, 0)
    raise ValueError(f"a reply without a destination: {reply}")
