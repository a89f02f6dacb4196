# SPDX-License-Identifier: GPL-3.0-or-later
"""The fields of a protobuf message, and the frame around it in gRPC: where they stand, without decoding the rest.

In gRPC a message is a byte (0: not compressed), four bytes of length, and the message itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

FRAME = 5
"""Bytes before a gRPC message."""
VARINT, LENGTH_DELIMITED = 0, 2
"""Kinds of fields that matter here: numbers, and all that has a length."""
_FIXED = {1: 8, 5: 4}


class WireError(ValueError):
    """Bytes that are no such message; the text says why."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    kind: int
    tag: int
    """Where the field begins."""
    start: int
    """Where its value begins."""
    end: int


def framed(body: bytes) -> tuple[int, int]:
    """Where the one message of a gRPC body begins and ends. Raises WireError."""
    if len(body) < FRAME:
        raise WireError("it is shorter than a gRPC message")
    if body[0] != 0:
        raise WireError("compressed gRPC messages are not understood; send them without compression")
    if int.from_bytes(body[1:FRAME], "big") != len(body) - FRAME:
        raise WireError("it is not one whole gRPC message")
    return FRAME, len(body)


def fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """The fields of the message ``data[at:end]``, in their order. Raises WireError where it makes no sense."""
    while at < end:
        tag = at
        key, at = number_at(data, at, end)
        kind, size = key & 7, 0
        if kind == LENGTH_DELIMITED:
            size, at = number_at(data, at, end)
        elif kind == VARINT:
            _, after = number_at(data, at, end)
            size = after - at
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise WireError("it is not a protobuf message")
        if at + size > end:
            raise WireError("it is not a protobuf message: a field is longer than the message")
        yield Field(key >> 3, kind, tag, at, at + size)
        at += size


def last(data: bytes, start: int, end: int, number: int) -> Field | None:
    """The last field of that number that has a length, which is the one that counts. Raises WireError."""
    found = [field for field in fields(data, start, end) if field.number == number and field.kind == LENGTH_DELIMITED]
    return found[-1] if found else None


def number_at(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number that stands at an offset, and the offset behind it. Raises WireError."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WireError("it is not a protobuf message: a number has no end")


def varint(value: int) -> bytes:
    """A number as it is written."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
