# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection against ``h2``, an HTTP/2 implementation that knows nothing of ours, with everything interleaved.

The peer makes calls with messages of all sizes, cuts what it writes anywhere, opens windows when it likes, changes its
settings, pings, pads and resets. Whatever the order: nobody breaks a rule, and every call that was not reset gets
its answers, whole and in order.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.transport import H2Transport, TlsSource, TransportOptions
from epp.transport.api import METHOD

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    (":authority", "epp"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


@dataclass
class Call:
    """One call as the peer sees it."""

    unsent: bytes = b""
    expected: list[bytes] = field(default_factory=list)
    answer: bytes = b""
    status: str = ""
    ended: bool = False
    """The peer has sent everything."""
    reset: bool = False

    def messages(self) -> list[bytes]:
        found, data = [], self.answer
        while len(data) >= 5:
            end = 5 + int.from_bytes(data[1:5])
            found.append(data[5:end])
            data = data[end:]
        assert not data, "an answer is cut short"
        return found


class Peer:
    """A client on h2's state machine, in memory: bytes wait on both sides until they are moved."""

    def __init__(self, server: Any) -> None:
        self.server = server
        config = h2.config.H2Configuration(client_side=True)
        self.protocol = h2.connection.H2Connection(config)
        self.protocol.initiate_connection()
        self.calls: dict[int, Call] = {}
        self.owed: defaultdict[int, int] = defaultdict(int)
        """Bytes that were received and for which no window was given back, by stream."""
        self.outbox = b""
        self.settled = False

    def resize(self, window: int) -> None:
        """Change the window of every stream. h2 takes the acknowledgement of its first SETTINGS for one of later ones,
        so that one must be here before."""
        if not self.settled:
            self.settled = True
            self.exchange(100_000)
        self.protocol.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})

    def call(self, tag: int) -> int:
        stream: int = self.protocol.get_next_available_stream_id()
        self.protocol.send_headers(stream, [*HEADERS, ("x-tag", str(tag))])
        self.calls[stream] = Call()
        return stream

    def message(self, stream: int, data: bytes) -> None:
        call = self.calls[stream]
        call.unsent += b"\0" + len(data).to_bytes(4) + data
        call.expected.append(data.upper())

    def push(self, stream: int, most: int, padding: int | None) -> None:
        """Send of a call what its window allows."""
        call = self.calls[stream]
        while call.unsent and not call.reset:
            room = self.protocol.local_flow_control_window(stream) - (0 if padding is None else padding + 1)
            size = min(len(call.unsent), room, most, self.protocol.max_outbound_frame_size - 300)
            if size <= 0:
                return
            self.protocol.send_data(stream, call.unsent[:size], pad_length=padding)
            call.unsent = call.unsent[size:]

    def end(self, stream: int) -> None:
        call = self.calls[stream]
        if not call.unsent and not call.ended and not call.reset:
            self.protocol.end_stream(stream)
            call.ended = True

    def reset(self, stream: int) -> None:
        call = self.calls[stream]
        if not call.reset and not call.status:
            self.protocol.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            call.reset = True

    def open_windows(self, stream: int) -> None:
        owed = self.owed.pop(stream, 0)
        if owed:
            # Counts for the connection and, while it is open, for the stream.
            self.protocol.acknowledge_received_data(owed, stream)

    def exchange(self, cut: int) -> None:
        """Move everything that waits, in pieces of ``cut`` bytes, until nothing does any more."""
        while True:
            self.outbox += self.protocol.data_to_send()
            self.server.flush_all()
            if not self.outbox and not self.server.written:
                return
            for at in range(0, len(self.outbox), cut):
                self.server.send(self.outbox[at : at + cut])
            self.outbox = b""
            data, self.server.written = self.server.written, b""
            for at in range(0, len(data), cut):
                self._receive(data[at : at + cut])

    def _receive(self, data: bytes) -> None:
        for event in self.protocol.receive_data(data):
            stream = getattr(event, "stream_id", 0)
            match event:
                case h2.events.DataReceived():
                    self.calls[stream].answer += event.data
                    self.owed[stream] += event.flow_controlled_length
                case h2.events.TrailersReceived() | h2.events.ResponseReceived():
                    headers = {bytes(name): bytes(value) for name, value in event.headers}
                    self.calls[stream].status = headers.get(b"grpc-status", b"").decode()
                case h2.events.ConnectionTerminated():
                    raise AssertionError(f"the server has ended the connection: {event}")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 3)),
        st.tuples(st.just("message"), st.integers(0, 9), st.sampled_from([0, 1, 100, 16_379, 16_380, 40_000, 150_000])),
        st.tuples(st.just("push"), st.integers(0, 9), st.sampled_from([1000, 16_384]), st.sampled_from([None, 0, 9])),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("reset"), st.integers(0, 9)),
        st.tuples(st.just("open"), st.integers(0, 9)),
        st.tuples(st.just("settings"), st.sampled_from([0, 1000, 65_535, 1_000_000])),
        st.tuples(
            st.just("ping"),
        ),
        st.tuples(st.just("exchange"), st.sampled_from([7, 1000, 100_000])),
    ),
    max_size=60,
)


@pytest.mark.timeout(300)
def test_any_interleaving(wire: Any) -> None:
    class Server(wire.Client):  # type: ignore[misc,name-defined]
        """The server's side, as a transport would hold it."""

        def flush_all(self) -> None:
            self._flush()

    @settings(max_examples=150, deadline=None, database=None)
    @given(STEPS, st.sampled_from([70_000, 1_000_000]))
    def target(steps: list[tuple[Any, ...]], window: int) -> None:
        asyncio.run(play(steps, Server(hello=False, stream_window=window)))

    target()


async def play(steps: list[tuple[Any, ...]], server: Any) -> None:
    peer = Peer(server)
    streams: list[int] = []
    for name, *arguments in steps:
        if name == "call":
            streams.append(peer.call(arguments[0]))
        elif name == "settings":
            peer.resize(arguments[0])
        elif name == "ping":
            peer.protocol.ping(b"12345678")
        elif name == "exchange":
            peer.exchange(arguments[0])
        elif streams:
            one(peer, name, streams[arguments[0] % len(streams)], arguments[1:])
    finish(peer, streams)
    for stream in streams:
        call = peer.calls[stream]
        if not call.reset:
            assert call.messages() == call.expected
            assert call.status == "0"
    assert server.connection.streams == {}
    assert not server.connection.finished
    assert len(server.service.closed) == len(streams)


def one(peer: Peer, name: str, stream: int, arguments: list[Any]) -> None:
    call = peer.calls[stream]
    if name == "message" and not call.ended and not call.reset:
        peer.message(stream, b"x" * arguments[0])
    elif name == "push":
        peer.push(stream, *arguments)
    elif name == "end":
        peer.end(stream)
    elif name == "reset":
        peer.reset(stream)
    elif name == "open" and not call.reset:
        peer.open_windows(stream)


def finish(peer: Peer, streams: list[int]) -> None:
    """Let every call come to its end."""
    peer.resize(1_000_000)
    for _ in range(200):
        for stream in streams:
            if not peer.calls[stream].reset:
                peer.push(stream, 16_384, None)
                peer.end(stream)
            peer.open_windows(stream)
        peer.exchange(100_000)
        if all(call.reset or call.status for call in peer.calls.values()) and not peer.owed:
            return
    raise AssertionError("calls do not end")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("secure", [False, True])
def test_sockets(wire: Any, loop: Any, secure: bool) -> None:
    """The same peer over a real socket, on both kinds of event loop, with an answer larger than any buffer."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(over_socket(wire, secure))


async def over_socket(wire: Any, secure: bool) -> None:
    service = wire.EchoService()
    transport = H2Transport(service, TransportOptions(host="127.0.0.1", port=0, tls=TlsSource() if secure else None))
    port = await transport.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context if secure else None)
    if secure:
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    protocol.initiate_connection()
    protocol.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**24})
    protocol.increment_flow_control_window(2**24)
    protocol.send_headers(1, HEADERS)
    question = b"big 4000000"
    protocol.send_data(1, b"\0" + len(question).to_bytes(4) + question, end_stream=True)
    writer.write(protocol.data_to_send())
    size, ended = 0, False
    async with asyncio.timeout(60):
        while not ended:
            data = await reader.read(65_536)
            assert data, "the server has closed the connection"
            for event in protocol.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    size += len(event.data)
                ended = ended or isinstance(event, h2.events.StreamEnded)
            writer.write(protocol.data_to_send())
    assert size == 2 * 4_000_005
    assert service.closed == ["OK"]
    writer.close()
    await transport.stop()
