# SPDX-License-Identifier: GPL-3.0-or-later
"""Envoy's ext_proc messages as the client of a picker sees them, encoded by ``envoy-data-plane``.

Builders make requests; readers take replies apart. Nothing here knows a particular picker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envoy_data_plane.envoy.config.core.v3 import HeaderMap, HeaderValue, Metadata
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ProcessingModeBodySendMode as Mode
from envoy_data_plane.envoy.service.ext_proc.v3 import (
    CommonResponse,
    HeaderMutation,
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from envoy_data_plane.google.protobuf import Struct

__all__ = ["Mode", "ProcessingRequest", "ProcessingResponse"]

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SCORES = "x-gateway-destination-endpoint-scores"
SUBSET = "x-gateway-destination-endpoint-subset"
DROPPED = "x-llm-d-request-dropped-reason"
CHUNK = 62_000
"""The most bytes of body that a message to Envoy may carry."""

JSON = "application/json"
EVENTS = "text/event-stream"

Hint = Sequence[Any] | str | None
Fields = Mapping[str, Mapping[str, Any]]
"""Metadata: namespace → key → value."""


def request_headers(
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/v1/completions",
    end: bool = False,
    metadata: Fields | None = None,
    modes: tuple[Mode, Mode] | None = None,
) -> ProcessingRequest:
    """The first message. ``modes`` announces the body modes of request and response, as Envoy since 1.34 does."""
    fields = {":method": method, ":path": path, ":scheme": "http", ":authority": "model", **(headers or {})}
    if not end:
        fields = {"content-type": JSON, **fields}
    message = ProcessingRequest(request_headers=_headers(fields, end))
    if metadata is not None:
        message.metadata_context = _metadata(metadata)
    if modes is not None:
        message.protocol_config = ProtocolConfiguration(request_body_mode=modes[0], response_body_mode=modes[1])
    return message


def subset(hint: Hint) -> dict[str, dict[str, Any]]:
    """Metadata that names the endpoints that the gateway allows."""
    return {"envoy.lb.subset_hint": {SUBSET: hint}}


def request_body(body: bytes, end: bool = True, *, metadata: Fields | None = None) -> ProcessingRequest:
    """A piece of the request's body; Envoy repeats the metadata with each."""
    message = ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=end))
    if metadata is not None:
        message.metadata_context = _metadata(metadata)
    return message


def request_trailers() -> ProcessingRequest:
    """The end of a request with trailers."""
    return ProcessingRequest(request_trailers=HttpTrailers(trailers=HeaderMap()))


def response_headers(
    status: int = 200, content_type: str = JSON, *, end: bool = False, served: str = ""
) -> ProcessingRequest:
    """The beginning of the answer; ``served`` is the endpoint that Envoy says it used."""
    message = ProcessingRequest(response_headers=_headers({":status": str(status), "content-type": content_type}, end))
    if served:
        message.metadata_context = _metadata({"envoy.lb": {SERVED: served}})
    return message


def response_body(body: bytes, end: bool = True) -> ProcessingRequest:
    """A piece of the answer's body."""
    return ProcessingRequest(response_body=HttpBody(body=body, end_of_stream=end))


def response_trailers() -> ProcessingRequest:
    """The end of an answer with trailers."""
    return ProcessingRequest(response_trailers=HttpTrailers(trailers=HeaderMap()))


def kind(reply: ProcessingResponse) -> str:
    """Which of the replies this is, by its name in the protocol."""
    names = ("request_headers", "request_body", "request_trailers")
    answers = ("response_headers", "response_body", "response_trailers", "immediate_response")
    return next((name for name in (*names, *answers) if getattr(reply, name) is not None), "nothing")


def common(reply: ProcessingResponse) -> CommonResponse:
    """The common part of a reply to headers or a body; an empty one where there is none."""
    part = reply.request_headers or reply.request_body or reply.response_headers or reply.response_body
    return (part and part.response) or CommonResponse()


def set_headers(mutation: HeaderMutation | None) -> dict[str, str]:
    """What a mutation sets, names in lower case."""
    found = {}
    for option in mutation.set_headers if mutation else ():
        if option.header is not None:
            value = option.header.raw_value or option.header.value.encode()
            found[option.header.key.lower()] = value.decode()
    return found


def headers_of(reply: ProcessingResponse) -> dict[str, str]:
    """The headers that a reply sets."""
    return set_headers(common(reply).header_mutation)


def piece(reply: ProcessingResponse) -> tuple[bytes, bool]:
    """Body and end_of_stream of a reply in FULL_DUPLEX_STREAMED. Raises AssertionError for any other reply."""
    mutation = common(reply).body_mutation
    streamed = mutation.streamed_response if mutation else None
    assert streamed is not None, f"a {kind(reply)} without a streamed body: {reply!r}"
    return streamed.body, streamed.end_of_stream


def replaced(reply: ProcessingResponse, original: bytes) -> bytes:
    """What becomes of a body in the modes where one reply answers one message: the same, or something in its place.

    Raises AssertionError for a streamed body, which Envoy takes in FULL_DUPLEX_STREAMED only.
    """
    mutation = common(reply).body_mutation
    assert mutation is None or mutation.streamed_response is None, "a streamed body outside of FULL_DUPLEX_STREAMED"
    if mutation is None or (mutation.body is None and not mutation.clear_body):
        return original
    return b"" if mutation.clear_body else (mutation.body or b"")


def metadata_of(reply: ProcessingResponse) -> dict[str, Any]:
    """The dynamic metadata of a reply, as plain values."""
    found = reply.dynamic_metadata.to_dict() if reply.dynamic_metadata else {}
    assert isinstance(found, dict)
    return found


def _headers(fields: Mapping[str, str], end: bool) -> HttpHeaders:
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in fields.items()]
    return HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=end)


def _metadata(fields: Fields) -> Metadata:
    return Metadata(filter_metadata={name: Struct.from_dict(dict(values)) for name, values in fields.items()})
