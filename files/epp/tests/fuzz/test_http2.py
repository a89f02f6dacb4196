# SPDX-License-Identifier: GPL-3.0-or-later
"""What no HTTP/2 client would send, into one connection: frames of any kind in any order, and bytes changed anywhere.

Nothing is raised, whatever comes; what is written back is whole frames; nothing is written behind a GOAWAY with an
error; and every exchange that was opened is closed exactly once when the connection is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import hpack
from hypothesis import given
from hypothesis import strategies as st

from epp.transport.api import METHOD
from epp.transport.h2 import frames as f
from epp.transport.h2.connection import Connection, Method, Options

CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Service:
    """Echoes, and counts what is open."""

    def __init__(self) -> None:
        self.open_now = 0

    def open(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> Exchange:
        self.open_now += 1
        return Exchange(self)


class Exchange:
    interruptible = False
    push = None

    def __init__(self, service: Service) -> None:
        self._service, self._closed, self.done = service, False, False

    def receive(self, data: bytes) -> Iterable[bytes]:
        self.done = data.startswith(b"end")
        return (data, data * 2)

    def close(self, code: str) -> None:
        assert not self._closed
        self._closed = True
        self._service.open_now -= 1


BLOCKS = st.one_of(
    st.sampled_from([CALL, CALL[:2], [("x", "y")], [*CALL, ("grpc-timeout", "1S")], [*CALL, ("content-length", "7")]]),
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=4),
).map(lambda fields: bytes(hpack.Encoder().encode(fields)))
MESSAGES = st.binary(max_size=40).map(lambda data: b"\0" + len(data).to_bytes(4) + data)
PAYLOADS = st.one_of(st.binary(max_size=40), BLOCKS, MESSAGES, st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4)))
SETTINGS = st.dictionaries(st.integers(0, 8), st.sampled_from([0, 1, 100, 16_384, 2**31 - 1, 2**31]), max_size=3)
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, 2**31 - 1])
FRAMES = st.one_of(
    st.builds(f.frame, st.integers(0, 11), st.integers(0, 255), STREAMS, PAYLOADS),
    st.builds(lambda stream, block: f.frame(f.HEADERS, f.END_HEADERS, stream, block), STREAMS, BLOCKS),
    st.builds(
        lambda stream, flags, data: f.frame(f.DATA, flags, stream, data), STREAMS, st.sampled_from([0, 1]), MESSAGES
    ),
    st.builds(f.window_update, STREAMS, st.sampled_from([0, 1, 70_000, 2**31 - 1])),
    SETTINGS.map(f.settings),
)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=2)


def play(data: bytes, cut: int) -> None:
    service, written = Service(), bytearray()
    connection = Connection({METHOD: Method(service.open)}, Options(1000, 1000), lambda: None)
    for at in range(0, len(data), cut):
        finished = connection.finished
        connection.receive(data[at : at + cut])
        assert not finished or not connection.out
        written += b"".join(connection.out)
        connection.out = []
        if connection.waiting:
            connection.resume()
    connection.second()
    connection.lost()
    assert service.open_now == 0
    assert connection.streams == {}
    written += b"".join(connection.out)
    check(bytes(written))


def check(written: bytes) -> None:
    at = 0
    while at < len(written):
        high, low, kind, _, _ = f.read_header(written, at)
        if kind == f.GOAWAY:
            code = int.from_bytes(written[at + 13 : at + 17])
            assert code != f.INTERNAL_ERROR, "an exception that nobody foresaw"
        at += f.HEADER_SIZE + (high << 16 | low)
        assert kind <= f.CONTINUATION
    assert at == len(written)


def test_frames_in_any_order(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(st.lists(FRAMES, max_size=12), CHANGES, st.sampled_from([1, 13, 10_000]))
    def target(frames: list[bytes], changes: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(f.PREFACE + f.settings({}) + b"".join(frames))
        for position, byte in changes:
            data[position % len(data)] = byte

        async def run() -> None:
            play(bytes(data), cut)

        campaign.timed(lambda: asyncio.run(run()))

    campaign.run(target)
