# SPDX-License-Identifier: GPL-3.0-or-later
"""What Envoy sends to a picker over one connection, byte for byte as Envoy 1.40 was seen to send it.

Per request in full duplex: the headers, the body in DATA frames of at most 16 KiB, an empty message at its end; then,
with the answer, its headers, each piece of its body, an empty message at its end; then RST_STREAM. Header blocks are
alike from the second stream on.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

import hpack
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProtocolConfiguration,
)

from epp.transport.api import METHOD
from epp.transport.h2 import frames as f

FULL_DUPLEX, NONE = 4, 0
"""Body modes, by the numbers of Envoy's enumeration."""
WINDOW = 16 * 1024 * 1024
EVENT = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":800,"completion_tokens":100,"total_tokens":900}}\n\ndata: [DONE]\n\n'
)
COMPLETION = (
    b'{"id":"cmpl-1","object":"text_completion","model":"bench","choices":[{"index":0,"text":"ok","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":800,"completion_tokens":1,"total_tokens":801}}'
)
_CALL = (
    (":method", "POST"),
    (":path", METHOD),
    (":authority", "epp"),
    (":scheme", "http"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("x-envoy-internal", "true"),
    ("x-forwarded-for", "192.0.2.2"),
)
_HEADERS = {
    ":authority": "bench",
    ":path": "/v1/completions",
    ":method": "POST",
    ":scheme": "http",
    "content-type": "application/json",
    "user-agent": "bench",
    "authorization": "Bearer sk-0123456789",
    "accept": "*/*",
    "x-forwarded-proto": "http",
}


def data(stream: int, message: ProcessingRequest) -> bytes:
    """A message in DATA frames."""
    payload = message.SerializeToString()
    framed = b"\0" + len(payload).to_bytes(4) + payload
    size = f.DEFAULT_FRAME_SIZE
    return b"".join(f.frame(f.DATA, 0, stream, framed[at : at + size]) for at in range(0, len(framed), size))


def _map(headers: dict[str, str]) -> HeaderMap:
    return HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()])


@dataclass(frozen=True)
class Answer:
    """What the model server says to every request."""

    content_type: str
    pieces: tuple[bytes, ...]
    """Of the body, one after the other; empty where the picker does not see it."""


class EnvoyFrames:
    """One connection."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._modes = (FULL_DUPLEX, FULL_DUPLEX if answer.pieces else NONE)
        self._next = 1
        encoder = hpack.Encoder()
        first = encoder.encode(_CALL)
        self._block = encoder.encode(_CALL)
        self.greeting = f.PREFACE + f.settings({f.ENABLE_PUSH: 0, f.INITIAL_WINDOW_SIZE: WINDOW})
        self.greeting += f.window_update(0, 2**30) + f.frame(f.HEADERS, f.END_HEADERS, self._stream(), first)
        """The connection's beginning; its first stream is given up at once."""
        self.greeting += f.rst_stream(1, f.CANCEL)

    def _stream(self) -> int:
        number, self._next = self._next, self._next + 2
        return number

    def request(self, body: bytes) -> tuple[int, bytes]:
        """A stream begins: its number, and all up to the end of the request."""
        stream = self._stream()
        headers = _map(_HEADERS | {"content-length": str(len(body)), "x-request-id": str(uuid.uuid4())})
        config = ProtocolConfiguration(request_body_mode=self._modes[0], response_body_mode=self._modes[1])
        begin = ProcessingRequest(
            request_headers=HttpHeaders(headers=headers), metadata_context=Metadata(), protocol_config=config
        )
        parts = [
            f.frame(f.HEADERS, f.END_HEADERS, stream, self._block),
            data(stream, begin),
            data(stream, ProcessingRequest(request_body=HttpBody(body=body))),
            data(stream, ProcessingRequest(request_body=HttpBody(end_of_stream=True), metadata_context=Metadata())),
        ]
        return stream, b"".join(parts)

    def answer(self, stream: int, served: str) -> list[bytes]:
        """All that comes with the answer of the endpoint ``served``, each part when the server has sent it."""
        metadata = Metadata()
        metadata.filter_metadata["envoy.lb"].update({"x-gateway-destination-endpoint": served})
        headers = {":status": "200", "content-type": self._answer.content_type, "x-envoy-upstream-service-time": "0"}
        begin = ProcessingRequest(response_headers=HttpHeaders(headers=_map(headers)), metadata_context=metadata)
        parts = [data(stream, begin)]
        for number, piece in enumerate(self._answer.pieces):
            message = ProcessingRequest(response_body=HttpBody(body=piece), metadata_context=metadata)
            parts[number:] = [b"".join((*parts[number:], data(stream, message)))]
        if self._answer.pieces:
            end = ProcessingRequest(response_body=HttpBody(end_of_stream=True), metadata_context=metadata)
            parts[-1] += data(stream, end)
        return [*parts, f.rst_stream(stream, f.CANCEL)]


def streams_answered(written: bytes) -> dict[int, int]:
    """Bytes of DATA by stream, of what a picker has written."""
    found: dict[int, int] = {}
    at = 0
    while at < len(written):
        high, low, kind, _, stream = struct.unpack_from(">BHBBL", written, at)
        size = high << 16 | low
        if kind == f.DATA:
            found[stream] = found.get(stream, 0) + size
        at += f.HEADER_SIZE + size
    return found
