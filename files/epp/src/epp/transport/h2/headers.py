# SPDX-License-Identifier: GPL-3.0-or-later
"""Header blocks: decoded by ``hpack``, checked against RFC 9113 (8.2, 8.3), and remembered by their bytes.

A gateway sends the same few bytes for every call after the first ones of a connection, because all its headers are in
the compression table by then. Decoding a block costs about 30 us, finding it in a dictionary 0.1. A block's meaning
depends on the table, so blocks are remembered only while the table stays as it is: one that changes it is not kept, and
makes all that were kept before it worthless.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import hpack

from epp.transport.h2 import frames as f
from epp.transport.h2.framing import timeout

MAX_LIST: Final = 64 * 1024
"""Bytes of one decoded header list (RFC 9113's way of counting: 32 more for each field)."""
MAX_KEPT: Final = 128
"""Blocks that are remembered per connection; a peer whose blocks all differ gains nothing by more."""
MAX_KEPT_BYTES: Final = 4096
"""Longer blocks are not remembered."""

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")
_PSEUDO: Final = (b":method", b":scheme", b":path", b":authority")
_OF_CONNECTION: Final = (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
_RESERVED: Final = ("grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "te", "content-type", "content-length")

Metadata = tuple[tuple[str, str | bytes], ...]


class Malformed(Exception):
    """A request that RFC 9113 calls malformed: its stream is reset with PROTOCOL_ERROR."""


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of one call, as far as they matter."""

    method: str
    path: str
    content_type: str
    metadata: Metadata
    """What the peer sent along with the call; values of names that end in ``-bin`` are bytes."""
    timeout: float | None
    """Seconds; None for no deadline."""
    encoding: str
    length: int | None
    """What content-length announces; None when it is not there."""
    trailers: bool = False
    """No pseudo-header at all: these are trailers."""
    grpc: bool = False
    """A call of gRPC: method and content type are as they must be."""


class HeadDecoder:
    """Decodes the header blocks of one connection, in the order in which they came."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(MAX_LIST)
        self._kept: dict[bytes, Head] = {}

    def decode(self, block: bytes) -> Head:
        """Raises Malformed, and ConnectionFailed for what leaves the compression state unknown."""
        return self._kept.get(block) or self._decode(block)

    def _decode(self, block: bytes) -> Head:
        table: Any = self._decoder.header_table  # its entries' types would make compiled code copy them
        newest = table.dynamic_entries[0] if table.dynamic_entries else None
        before = (table.maxsize, len(table.dynamic_entries))
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError as error:
            raise f.ConnectionFailed(f.ENHANCE_YOUR_CALM, str(error)) from None
        except (hpack.HPACKError, IndexError) as error:
            raise f.ConnectionFailed(f.COMPRESSION_ERROR, str(error)) from None
        # Every insertion makes a new object the newest entry.
        same = newest is (table.dynamic_entries[0] if table.dynamic_entries else None)
        if not same or before != (table.maxsize, len(table.dynamic_entries)):
            self._kept.clear()
            return read(fields)
        head = read(fields)
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        if len(block) <= MAX_KEPT_BYTES:
            self._kept[block] = head
        return head


def read(fields: Sequence[tuple[bytes, bytes]]) -> Head:
    """Check and sort the fields of one block. Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    values: dict[str, str] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name.startswith(b":"):
            _pseudo(name, value, pseudo, regular=bool(values or metadata))
            continue
        _regular(name, value)
        key, text = name.decode(), value.decode("latin-1")
        if key in _RESERVED:
            values[key] = text
        metadata += _metadata(key, text)
    if pseudo:
        missing = [name for name in (b":method", b":scheme", b":path") if not pseudo.get(name)]
        if missing and pseudo.get(b":method") != b"CONNECT":
            raise Malformed(f"a request without {missing[0].decode()}")
    method, content_type = pseudo.get(b":method", b"").decode("latin-1"), values.get("content-type", "")
    return Head(
        method=method,
        path=pseudo.get(b":path", b"").decode("latin-1"),
        content_type=content_type,
        metadata=tuple(metadata),
        timeout=_timeout(values.get("grpc-timeout")),
        encoding=values.get("grpc-encoding", ""),
        length=_length(values.get("content-length")),
        trailers=not pseudo,
        grpc=method == "POST" and is_grpc(content_type),
    )


def is_grpc(content_type: str) -> bool:
    """Whether a body of this type is made of messages of gRPC."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/grpc" or kind.startswith("application/grpc+")


def _pseudo(name: bytes, value: bytes, seen: dict[bytes, bytes], regular: bool) -> None:
    if regular:
        raise Malformed("a pseudo-header after a regular one")
    if name not in _PSEUDO:
        raise Malformed(f"{name!r} in a request")
    if name in seen:
        raise Malformed(f"{name.decode()} twice")
    seen[name] = value


def _regular(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise Malformed(f"the header name {name!r}")
    if _BAD_VALUE.search(value):
        raise Malformed(f"the value of {name.decode()}")
    if name in _OF_CONNECTION or (name == b"te" and value != b"trailers"):
        raise Malformed(f"{name.decode()}: {value!r}, which belongs to a connection of HTTP/1.1")


def _metadata(key: str, text: str) -> list[tuple[str, str | bytes]]:
    """What a handler sees of a header. Binary values may have come joined with commas, and without their padding."""
    if key in _RESERVED:
        return []
    if not key.endswith("-bin"):
        return [(key, text)]
    try:
        return [(key, base64.b64decode(part + "=" * (-len(part) % 4), validate=True)) for part in text.split(",")]
    except (binascii.Error, ValueError):
        raise Malformed(f"{key} is not base64") from None


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = timeout(text)
    if seconds is None:
        raise Malformed(f"grpc-timeout: {text}")
    return seconds


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,18}", text):
        raise Malformed(f"content-length: {text}")
    return int(text)
