# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON that travels inside of a gRPC message: Vertex AI's ``ChatCompletionsRequest``, ``RawPredictRequest`` and
``StreamRawPredictRequest``.

A gRPC message is a byte (0: not compressed), four bytes of length, and a protobuf message. Of that, field 2
(``http_body``, a ``google.api.HttpBody``) is of interest, and of this one field 2 (``data``). Nothing else is decoded,
and a change of the JSON changes three lengths around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

FRAME = 5
"""Bytes before a gRPC message."""
_HTTP_BODY = 2
_DATA = 2
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}


class WrappedError(ValueError):
    """Bytes that are no such message; the text says why."""


class _Field(NamedTuple):
    number: int
    kind: int
    tag: int
    """Where the field begins."""
    start: int
    """Where its value begins."""
    end: int


class Wrapped(NamedTuple):
    """Where the JSON stands in a gRPC message: ``message[start:end]``, and the fields around it."""

    http_body: _Field
    data: _Field


def unwrap(body: bytes) -> Wrapped:
    """Find the JSON in one gRPC message. Raises WrappedError."""
    if len(body) < FRAME:
        raise WrappedError("it is shorter than a gRPC message")
    if body[0] != 0:
        raise WrappedError("compressed gRPC messages are not understood; send them without compression")
    if int.from_bytes(body[1:FRAME], "big") != len(body) - FRAME:
        raise WrappedError("it is not one whole gRPC message")
    outer = _last(body, FRAME, len(body), _HTTP_BODY)
    if outer is None:
        raise WrappedError("the message has no http_body")
    inner = _last(body, outer.start, outer.end, _DATA)
    if inner is None:
        raise WrappedError("its http_body has no data")
    return Wrapped(outer, inner)


def rewrap(body: bytes, wrapped: Wrapped, json: bytes) -> bytes:
    """The gRPC message with other JSON in it."""
    outer, inner = wrapped
    data = body[inner.tag : inner.tag + 1] + _varint(len(json)) + json
    http_body = body[outer.start : inner.tag] + data + body[inner.end : outer.end]
    field = body[outer.tag : outer.tag + 1] + _varint(len(http_body)) + http_body
    message = body[FRAME : outer.tag] + field + body[outer.end :]
    return b"\0" + len(message).to_bytes(4, "big") + message


def _last(data: bytes, start: int, end: int, number: int) -> _Field | None:
    """The last field of that number, which is the one that counts."""
    found = [field for field in _fields(data, start, end) if field.number == number and field.kind == _LENGTH_DELIMITED]
    return found[-1] if found else None


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        tag = at
        key, at = _read_varint(data, at, end)
        kind, size = key & 7, 0
        if kind == _LENGTH_DELIMITED:
            size, at = _read_varint(data, at, end)
        elif kind == 0:
            _, after = _read_varint(data, at, end)
            size = after - at
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise WrappedError("it is not a protobuf message")
        if at + size > end:
            raise WrappedError("it is not a protobuf message: a field is longer than the message")
        yield _Field(key >> 3, kind, tag, at, at + size)
        at += size


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WrappedError("it is not a protobuf message: a number has no end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
