# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes Envoy's ProcessingResponse. What never changes is written once, what changes is put between fixed bytes.

Building a message of protobuf's and serialising it costs five to ten times as much; the tests hold both side by side.
A *common* is a serialised CommonResponse, the part that replies to headers and to bodies share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from envoy.service.ext_proc.v3.external_processor_pb2 import ImmediateResponse, ProcessingResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct

from epp.model import Immediate, Rejection

DESTINATION: Final = "x-gateway-destination-endpoint"
SCORES: Final = "x-gateway-destination-endpoint-scores"
LB_NAMESPACE: Final = "envoy.lb"
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"

MAX_CHUNK: Final = 62_000
"""Bytes of body per message: Envoy refuses larger ones than 64 KiB with its default limits."""

_OVERWRITE: Final = b"\x18\x02"
"""append_action: OVERWRITE_IF_EXISTS_OR_ADD."""
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"
_END_OF_STREAM: Final = b"\x10\x01"
_SMALL: Final = tuple(bytes((number,)) for number in range(128))

REQUEST_TRAILERS: Final = b"\x2a\x00"
"""Answer to request trailers."""
RESPONSE_TRAILERS: Final = b"\x32\x00"
"""Answer to response trailers."""


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(tag: bytes, payload: bytes) -> bytes:
    """A field with a length."""
    return tag + _varint(len(payload)) + payload


@lru_cache(maxsize=1024)
def _before_value(name: str, size: int) -> bytes:
    """All of an entry of HeaderMutation's set_headers that stands before a value of ``size`` bytes."""
    header = _field(b"\x0a", name.encode()) + (b"\x1a" + _varint(size) if size else b"")
    option = b"\x0a" + _varint(len(header) + size) + header
    return b"\x0a" + _varint(len(option) + size + len(_OVERWRITE)) + option


def _option(name: str, value: str) -> bytes:
    """One header to set in place of whatever is there, as raw bytes: an entry of HeaderMutation's set_headers."""
    raw = value.encode()
    return _before_value(name, len(raw)) + raw + _OVERWRITE


@lru_cache(maxsize=4096)
def _destination(hostport: str) -> bytes:
    return _option(DESTINATION, hostport)


def _set_headers(headers: Mapping[str, str]) -> bytes:
    return b"".join([_option(name, value) for name, value in headers.items()])


def routing(
    destination: str, headers: Mapping[str, str], body: bytes | None = None, removed: Sequence[str] = ()
) -> bytes:
    """The common of a request that goes on: where to (empty leaves that to others), headers to set and to remove, the
    route to be looked up again, and the body that goes on in place of the one that Envoy holds (None: that one)."""
    mutation = _destination(destination) if destination else b""
    if headers:
        mutation += _set_headers(headers)
    for name in removed:
        mutation += _field(b"\x12", name.encode())
    if not mutation and body is None:
        return b""
    common = _field(b"\x12", mutation)
    if body is not None:
        common += _field(b"\x1a", _field(b"\x0a", body))
    return common + _CLEAR_ROUTE_CACHE


@lru_cache(maxsize=4096)
def _metadata(destination: str) -> bytes:
    return _struct(destination, {})


def lb_metadata(destination: str, scores: Mapping[str, float]) -> bytes:
    """Dynamic metadata for the load balancer: the destination and, if any, the score of each endpoint."""
    return _struct(destination, scores) if scores else _metadata(destination)


def _struct(destination: str, scores: Mapping[str, float]) -> bytes:
    metadata = Struct()
    values = metadata.fields[LB_NAMESPACE].struct_value.fields
    values[DESTINATION].string_value = destination
    for endpoint, score in scores.items():
        values[SCORES].struct_value.fields[endpoint].number_value = score
    return bytes(ProcessingResponse(dynamic_metadata=metadata).SerializeToString())


def request_headers(common: bytes = b"", metadata: bytes = b"") -> bytes:
    """Answer to request headers; without a common they go on as they are. ``metadata`` is :func:`lb_metadata`'s."""
    return _field(b"\x0a", _field(b"\x0a", common) if common else b"") + metadata


def request_body(common: bytes = b"", metadata: bytes = b"") -> bytes:
    """Answer to a request body that Envoy holds; without a common it goes on as it is."""
    return _field(b"\x1a", _field(b"\x0a", common) if common else b"") + metadata


def response_headers(headers: Mapping[str, str]) -> bytes:
    """Answer to response headers: headers to set."""
    return _field(b"\x12", _field(b"\x0a", _field(b"\x12", _set_headers(headers))))


def response_body(body: bytes | None = None, fixed_length: bool = False) -> bytes:
    """Answer to a response body that Envoy holds; ``body`` replaces it, None lets it pass.

    With ``fixed_length`` the headers announced a length that Envoy insists on (BUFFERED), so it is announced anew.
    """
    if body is None:
        return b"\x22\x00"
    length = _field(b"\x12", _option("content-length", str(len(body)))) if fixed_length else b""
    return _field(b"\x22", _field(b"\x0a", length + replacement(body)))


def replacement(body: bytes) -> bytes:
    """The common that puts ``body`` in place of the body (or chunk) that Envoy holds."""
    return _field(b"\x1a", _field(b"\x0a", body) if body else b"\x10\x01")


@lru_cache(maxsize=1024)
def _before(size: int, end: bool, of_request: bool) -> bytes:
    """All of a streamed piece of ``size`` bytes that stands before them: five messages in each other."""
    rest = len(_END_OF_STREAM) if end else 0
    head = b"\x0a" + _varint(size) if size else b""
    for tag in (b"\x1a", b"\x1a", b"\x0a", b"\x1a" if of_request else b"\x22"):
        head = tag + _varint(len(head) + size + rest) + head
    return head


def streamed(body: bytes, end: bool, of_request: bool) -> Iterable[bytes]:
    """A body for FULL_DUPLEX_STREAMED, cut to size; large ones are built one message at a time, as they are asked for.

    An empty body is a message only if it is the end.
    """
    size = len(body)
    if size > MAX_CHUNK:
        return _pieces(body, end, of_request)
    if end:
        return (_before(size, True, of_request) + body + _END_OF_STREAM,)
    return (_before(size, False, of_request) + body,) if size else ()


def _pieces(body: bytes, end: bool, of_request: bool) -> Iterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(view), MAX_CHUNK):
        piece = view[start : start + MAX_CHUNK]
        last = end and start + MAX_CHUNK >= len(view)
        yield b"".join((_before(len(piece), last, of_request), piece, _END_OF_STREAM if last else b""))


def reported(messages: Iterable[bytes], values: Mapping[str, Mapping[str, float]]) -> list[bytes]:
    """The same messages, the last of them with dynamic metadata: numbers by namespace and key."""
    answers = list(messages)
    if answers:
        metadata = Struct()
        for namespace, figures in values.items():
            for key, number in figures.items():
                metadata.fields[namespace].struct_value.fields[key].number_value = number
        # A field that comes twice is merged.
        answers[-1] += ProcessingResponse(dynamic_metadata=metadata).SerializeToString()
    return answers


def immediate(answer: Immediate) -> bytes:
    """The answer to the client of a request that goes nowhere."""
    reason = answer.reason if isinstance(answer, Rejection) else ""
    response = ImmediateResponse(status=HttpStatus(code=answer.status), body=answer.body().encode(), details=reason)
    headers = {**answer.headers(), **({DROPPED_REASON: reason} if reason else {})}
    if headers:
        response.headers.MergeFromString(_set_headers(headers))
    return bytes(ProcessingResponse(immediate_response=response).SerializeToString())
