# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON that travels inside of a gRPC message: Vertex AI's ``ChatCompletionsRequest``, ``RawPredictRequest`` and
``StreamRawPredictRequest``.

Field 2 of the message (``http_body``, a ``google.api.HttpBody``) is of interest, and of this one field 2 (``data``).
Nothing else is decoded, and a change of the JSON changes three lengths around it.
"""

from __future__ import annotations

from typing import NamedTuple

from epp.requests.protobuf import FRAME, Field, WireError, framed, last, varint

_HTTP_BODY = 2
_DATA = 2


class Wrapped(NamedTuple):
    """Where the JSON stands in a gRPC message: ``message[start:end]``, and the fields around it."""

    http_body: Field
    data: Field


def unwrap(body: bytes) -> Wrapped:
    """Find the JSON in one gRPC message. Raises WireError."""
    outer = last(body, *framed(body), _HTTP_BODY)
    if outer is None:
        raise WireError("the message has no http_body")
    inner = last(body, outer.start, outer.end, _DATA)
    if inner is None:
        raise WireError("its http_body has no data")
    return Wrapped(outer, inner)


def rewrap(body: bytes, wrapped: Wrapped, json: bytes) -> bytes:
    """The gRPC message with other JSON in it."""
    outer, inner = wrapped
    data = body[inner.tag : inner.tag + 1] + varint(len(json)) + json
    http_body = body[outer.start : inner.tag] + data + body[inner.end : outer.end]
    field = body[outer.tag : outer.tag + 1] + varint(len(http_body)) + http_body
    message = body[FRAME : outer.tag] + field + body[outer.end :]
    return b"\0" + len(message).to_bytes(4, "big") + message
