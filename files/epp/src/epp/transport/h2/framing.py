# SPDX-License-Identifier: GPL-3.0-or-later
"""gRPC over HTTP/2: messages in DATA frames, statuses in trailers, timeouts in headers.

Source: the text "gRPC over HTTP2" of the gRPC project. Header blocks that are sent use HPACK's literals without
indexing only, so that they never depend on what was sent before.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Final

read_prefix: Final = struct.Struct(">BL").unpack_from
"""The compressed flag and the length of a message."""

PREFIX_SIZE: Final = 5
_VIEW_SHARE: Final = 16
_VIEW_FROM: Final = 4096
"""Bytes from which a part of a message is kept as a view of what was read, and not copied."""


class Code(IntEnum):
    """The statuses of gRPC that a server of this kind gives."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class CallError(Exception):
    """A call that ends with this status."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Deframer:
    """Cuts a stream's bytes into messages. A message that comes in parts is joined once."""

    __slots__ = ("_compression", "_limit", "_missing", "_parts", "_prefix", "between")

    def __init__(self, limit: int, compression: str) -> None:
        """``limit`` is the largest message in bytes, ``compression`` what the header grpc-encoding announced."""
        self.between = True
        """Nothing is kept: the next byte begins a message."""
        self._limit, self._compression = limit, compression
        self._prefix = b""
        self._parts: list[bytes | memoryview] = []
        self._missing = 0

    def feed(self, data: bytes, start: int, stop: int) -> list[bytes]:
        """The messages that bytes ``start`` to ``stop`` of ``data`` complete. Raises CallError for one that is not
        taken."""
        size = stop - start
        if self._missing > size:
            # A view keeps all of ``data`` in memory, so it is taken only of what is a good part of it.
            view = size >= _VIEW_FROM and size * _VIEW_SHARE >= len(data)
            self._parts.append(memoryview(data)[start:stop] if view else data[start:stop])
            self._missing -= size
            return []
        data = data[start:stop]
        if self._prefix:
            data, self._prefix = self._prefix + data, b""
        messages: list[bytes] = []
        at, end = 0, len(data)
        if self._missing:
            at = min(self._missing, end)
            self._keep(data, 0, at)
            if not self._missing:
                messages.append(b"".join(self._parts))
                self._parts.clear()
        while not self._missing and end - at >= PREFIX_SIZE:
            size = self.size(data, at)
            at += PREFIX_SIZE
            if end - at >= size:
                messages.append(data[at : at + size])
                at += size
            else:
                self._missing = size
                self._keep(data, at, end)
                at = end
        self._prefix = data[at:]
        self.between = not self._missing and not self._prefix
        return messages

    def size(self, data: bytes, at: int) -> int:
        """Bytes of the message whose prefix stands at ``at``. Raises CallError."""
        compressed, size = read_prefix(data, at)
        if compressed:
            if compressed == 1 and self._compression not in ("", "identity"):
                text = f"grpc: Decompressor is not installed for grpc-encoding {self._compression!r}"
                raise CallError(Code.UNIMPLEMENTED, text)
            raise CallError(Code.INTERNAL, "a compressed message without a grpc-encoding")
        if size > self._limit:
            raise CallError(Code.RESOURCE_EXHAUSTED, f"received message larger than max ({size} vs. {self._limit})")
        return int(size)

    def _keep(self, data: bytes, at: int, end: int) -> None:
        if end > at:
            self._parts.append(memoryview(data)[at:end] if end - at >= _VIEW_FROM else data[at:end])
            self._missing -= end - at


_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout(text: str) -> float | None:
    """Seconds that a grpc-timeout header gives; None if it cannot be read."""
    match = _TIMEOUT.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _integer(value: int, bits: int, first: int) -> bytes:
    """HPACK's integer (RFC 7541, 5.1): ``first`` holds the bits before the prefix of ``bits`` bits."""
    full = (1 << bits) - 1
    if value < full:
        return bytes((first | value,))
    out = bytearray((first | full,))
    value -= full
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: str, value: str) -> bytes:
    """One header field, as a literal without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    raw = value.encode("latin-1")
    return b"\x00" + _integer(len(name), 7, 0) + name.encode() + _integer(len(raw), 7, 0) + raw


HTTP_OK: Final = b"\x88"
"""``:status: 200``, by its place in the static table."""
_CONTENT_TYPE: Final = literal("content-type", "application/grpc")
RESPONSE: Final = HTTP_OK + _CONTENT_TYPE
"""The header block of every answer."""
TRAILERS_OK: Final = literal("grpc-status", "0")
NO_TABLE: Final = b"\x20"
"""Before the first block after a peer made its table smaller: this encoder uses none (RFC 7541, 4.2)."""
_ACCEPTED: Final = literal("grpc-accept-encoding", "identity")


def trailers(code: Code, text: str = "") -> bytes:
    """The block that ends a call."""
    if code == Code.OK:
        return TRAILERS_OK
    block = literal("grpc-status", str(int(code))) + literal("grpc-message", percent_encoded(text))
    return block + _ACCEPTED if code == Code.UNIMPLEMENTED else block


def refused(http_status: int, code: Code, text: str) -> bytes:
    """The whole answer (headers alone) to what is no call: another method, another content type."""
    status = HTTP_OK if http_status == 200 else literal(":status", str(http_status))
    return status + _CONTENT_TYPE + trailers(code, text)


def percent_encoded(text: str) -> str:
    """A status message as gRPC wants it: printable ASCII as it is, the rest by its UTF-8 bytes in hexadecimal."""
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text.encode())
