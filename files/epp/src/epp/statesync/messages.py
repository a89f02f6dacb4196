# SPDX-License-Identifier: GPL-3.0-or-later
"""What peers say, as MessagePack. Fields that a version does not know are ignored, so versions can stand side by side.

Counts are absolute, so that a lost message costs freshness only. Hashes travel as little-endian 64-bit numbers.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

import msgspec

VERSION = 1
MAX_BYTES = 16 * 1024 * 1024
"""A message larger than this is not from a peer that means well."""


class PoolNews(msgspec.Struct, omit_defaults=True):
    """News of one pool. Endpoints are named by their ``hostport``."""

    load: dict[str, tuple[int, int]] = {}
    """Requests and tokens that the sender has in flight at an endpoint."""
    whole: bool = False
    """``load`` names every endpoint at which the sender has any; all others have none."""
    sent: list[tuple[str, int]] = []
    """Requests that have just gone out: endpoint, uncached prompt tokens."""
    prefixes: list[tuple[str, str, bytes]] = []
    """What prompts that have gone out consist of: name of the plugin, endpoint, block hashes; the last ones count as
    the oldest."""


class News(msgspec.Struct):
    """One message."""

    version: int
    sender: str
    """Changes with every start of a process."""
    pools: dict[str, PoolNews]
    goodbye: bool = False
    """The sender ends: nothing of it is in flight any more."""
    serial: int = 0
    """Grows with every message to everybody, so that one which comes on two ways counts once; 0 in all others."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(News)


def encode(news: News) -> bytes:
    """As it travels."""
    return _encoder.encode(news)


def decode(data: bytes) -> News:
    """The opposite. Raises ValueError for what no peer would say."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are more than the {MAX_BYTES} that a message may have")
    news = _decoder.decode(data)  # msgspec's errors are ValueErrors
    if news.version != VERSION:
        raise ValueError(f"version {news.version} instead of {VERSION}")
    return news


def pack(hashes: Iterable[int]) -> bytes:
    """Block hashes as bytes."""
    numbers = array("Q", list(hashes))  # from a list it is made without a call for each
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack(data: bytes) -> Sequence[int]:
    """The opposite. Raises ValueError when it is no whole number of hashes."""
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()  # which is gone through several times: an array would make its numbers anew each time
