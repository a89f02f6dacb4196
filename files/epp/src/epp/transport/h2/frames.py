# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/2's frames as bytes (RFC 9113, sections 4 to 7): numbers, limits, errors, and frames ready to be sent.

Reading is the connection's work, for it is the hot path; everything here is plain and without state.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client's connection begins with."""

HEADER_SIZE: Final = 9
DEFAULT_FRAME_SIZE: Final = 16_384
DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
MAX_FRAME_SIZE: Final = 2**24 - 1
LAST_STREAM: Final = 2**31 - 1
"""The highest stream identifier: in GOAWAY it says that the end is near, and that no stream is refused yet."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE_SETTING: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

read_header: Final = struct.Struct(">BHBBL").unpack_from
"""Bits 16 to 23 of the payload's length, its lower bits, type, flags, stream."""

_HEAD: Final = struct.Struct(">BHBBL")
_SETTING: Final = struct.Struct(">HL")
_LONG: Final = struct.Struct(">L")


class ConnectionFailed(Exception):
    """The peer broke a rule of the whole connection, which ends with GOAWAY and ``code``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """SETTINGS with these values by identifier."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def data_head(size: int, stream: int) -> bytes:
    """The header of a DATA frame whose payload of ``size`` bytes follows."""
    return _HEAD.pack(size >> 16, size & 0xFFFF, DATA, 0, stream)


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values in their order. Raises ConnectionFailed for what no peer may send."""
    if len(payload) % _SETTING.size:
        raise ConnectionFailed(FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    found = list(_SETTING.iter_unpack(payload))
    for key, value in found:
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFailed(PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFailed(FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        if key == MAX_FRAME_SIZE_SETTING and not DEFAULT_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
            raise ConnectionFailed(PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
    return found


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _LONG.pack(increment))


def rst_stream(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, _LONG.pack(code))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """GOAWAY; streams up to ``last`` are still served."""
    return frame(GOAWAY, 0, 0, _LONG.pack(last) + _LONG.pack(code) + text.encode()[:256])


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload of DATA or HEADERS without its padding. Raises ConnectionFailed if the padding is too long."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFailed(FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFailed(PROTOCOL_ERROR, "padding as long as the frame")
    return payload[1 : len(payload) - padding]
