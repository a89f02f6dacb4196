# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls: a case for each rule of the text "gRPC over HTTP2", header compression (RFC 7541), and floods."""

from __future__ import annotations

import asyncio
from typing import Any

import hpack
import pytest

from epp.transport.h2 import frames as f
from epp.transport.h2.framing import percent_encoded, timeout
from epp.transport.h2.guard import IDLE_FRAMES
from epp.transport.h2.headers import HeadDecoder
from epp.transport.h2.health import health_methods
from epp.transport.h2.stream import STUCK_SECONDS


class TestMessages:
    async def test_an_answer_has_headers_data_and_trailers(self, client: Any, wire: Any) -> None:
        client.open(1, b"hi", end=True)
        first, data, last = client.read()
        assert dict(client.decoder.decode(first.payload)) == {":status": "200", "content-type": "application/grpc"}
        assert first.flags == f.END_HEADERS
        assert (data.kind, data.payload) == (f.DATA, b"\0\0\0\0\2HI")
        assert dict(client.decoder.decode(last.payload)) == {"grpc-status": "0"}
        assert last.flags == f.END_HEADERS | f.END_STREAM
        assert client.service.closed == ["OK"]

    async def test_a_call_without_messages_ends_well(self, client: Any) -> None:
        client.send(client.headers(flags=f.END_HEADERS | f.END_STREAM))
        (only,) = client.read()
        assert dict(client.decoder.decode(only.payload))["grpc-status"] == "0"

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9, 100])
    async def test_messages_may_be_cut_anywhere(self, client: Any, wire: Any, size: int) -> None:
        sent = [b"one", b"", b"three" * 30, b"4"]
        data = b"".join(map(wire.prefixed, sent))
        client.open()
        for at in range(0, len(data), size):
            client.send(f.frame(f.DATA, 0, 1, data[at : at + size]))
        assert client.answers(client.read()) == [each.upper() for each in sent]

    async def test_large_messages_are_joined(self, client: Any, wire: Any) -> None:
        sent = bytes(range(256)) * 300
        data = wire.prefixed(sent) + wire.prefixed(b"next")
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 100_000}), f.window_update(0, 100_000))
        client.open()
        for at in range(0, len(data), 16_384):
            client.send(f.frame(f.DATA, 0, 1, data[at : at + 16_384]))
        assert client.service.received == [sent, b"next"]

    async def test_a_message_cut_short_is_an_error(self, client: Any) -> None:
        client.open()
        client.send(f.frame(f.DATA, f.END_STREAM, 1, b"\0\0\0\0\5x"))
        assert client.status(client.read())["grpc-status"] == "13"

    async def test_sizes_are_bounded_before_a_message_is_here(self, wire: Any) -> None:
        client = wire.Client(max_receive=100)
        client.open(1, b"x" * 100)
        client.send(f.frame(f.DATA, 0, 1, b"\0\0\0\0\x65"))
        status = client.status(client.read())
        assert status["grpc-status"] == "8"
        assert status["grpc-message"] == "received message larger than max (101 vs. 100)"
        assert client.service.closed == ["RESOURCE_EXHAUSTED"]

    async def test_answers_are_bounded(self, wire: Any) -> None:
        client = wire.Client(max_send=100_000)
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2**20}))
        client.open(1, b"big 100001")
        assert client.status(client.read())["grpc-status"] == "8"

    @pytest.mark.parametrize(
        ("encoding", "flag", "status"), [("gzip", 1, "12"), ("identity", 1, "13"), (None, 1, "13"), (None, 2, "13")]
    )
    async def test_compressed_messages_are_refused(
        self, client: Any, encoding: str | None, flag: int, status: str
    ) -> None:
        client.open(1, grpc_encoding=encoding)
        client.send(f.frame(f.DATA, 0, 1, bytes((flag,)) + b"\0\0\0\2hi"))
        found = client.status(client.read())
        assert found["grpc-status"] == status
        assert ("grpc-accept-encoding" in found) == (status == "12")
        assert client.service.received == []

    async def test_an_announced_encoding_need_not_be_used(self, client: Any) -> None:
        client.open(1, b"hi", grpc_encoding="gzip")
        assert client.answers(client.read()) == [b"HI"]


class TestCalls:
    @pytest.mark.parametrize(
        ("changes", "http", "status"),
        [
            ({"path": "/unknown"}, "200", "12"),
            ({"content_type": "application/json"}, "415", "13"),
            ({"content_type": "application/grpc-web"}, "415", "13"),
            ({"content_type": None}, "415", "13"),
            ({"method": "GET"}, "405", "13"),
        ],
    )
    @pytest.mark.parametrize("end", [True, False])
    async def test_what_is_no_call_gets_headers_alone(
        self, client: Any, changes: dict[str, str], http: str, status: str, end: bool
    ) -> None:
        client.send(client.headers(flags=f.END_HEADERS | (f.END_STREAM if end else 0), **changes))
        first, *rest = client.read()
        fields = dict(client.decoder.decode(first.payload))
        assert (fields[":status"], fields["grpc-status"]) == (http, status)
        assert first.flags & f.END_STREAM
        assert [frame.kind for frame in rest] == ([] if end else [f.RST_STREAM])
        client.open(3, b"hi")
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize("kind", ["", "+proto", ";x=y", "+x ; y=z"])
    async def test_content_types(self, client: Any, kind: str) -> None:
        client.open(1, b"hi", content_type=f"Application/grpc{kind}")
        assert client.answers(client.read()) == [b"HI"]

    async def test_metadata_reaches_the_service(self, client: Any) -> None:
        client.open(1, x_one="1", x_two_bin="AAE", grpc_timeout="5S")
        assert dict(client.service.metadata) == {"x-one": "1", "x-two-bin": b"\0\1"}

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("5S", 5.0),
            ("250m", 0.25),
            ("1H", 3600.0),
            ("2M", 120.0),
            ("7u", 7e-6),
            ("9n", 9e-9),
            ("5", None),
            ("123456789S", None),
        ],
    )
    def test_timeouts_are_read(self, text: str, seconds: float | None) -> None:
        assert timeout(text) == (None if seconds is None else pytest.approx(seconds))

    async def test_a_deadline_ends_a_call(self, client: Any) -> None:
        client.open(1, b"late", grpc_timeout="10m")
        async with asyncio.timeout(10):
            while not client.service.closed:
                await asyncio.sleep(0.005)
        assert client.service.closed == ["DEADLINE_EXCEEDED"]
        assert client.status(client.read())["grpc-status"] == "4"

    async def test_a_call_that_ends_before_its_deadline_is_left_alone(self, client: Any) -> None:
        client.open(1, b"hi", end=True, grpc_timeout="10m")
        client.read()
        await asyncio.sleep(0.05)
        assert client.read() == []

    @pytest.mark.parametrize(
        ("word", "status", "text", "closed"),
        [(b"bad", "3", "this is bad", "INVALID_ARGUMENT"), (b"bug", "2", "unexpected RuntimeError", "INTERNAL")],
    )
    async def test_errors_have_a_status(self, client: Any, word: bytes, status: str, text: str, closed: str) -> None:
        client.open(1, b"hi", word)
        found = client.status(client.read())
        assert found == {"grpc-status": status, "grpc-message": text}
        assert client.service.closed == [closed]

    @pytest.mark.parametrize(("text", "sent"), [("a b", "a b"), ("50%", "50%25"), ("\u00e4\n", "%C3%A4%0A")])
    def test_status_messages_are_percent_encoded(self, text: str, sent: str) -> None:
        assert percent_encoded(text) == sent

    async def test_late_answers_come_in_order(self, client: Any) -> None:
        client.open(1, b"late", b"one", b"two", end=True)
        client.open(3, b"other")
        assert client.answers(client.read()) == [b"OTHER"]
        client.service.released.set()
        await asyncio.sleep(0.01)
        frames = client.read()
        assert client.answers(frames) == [b"LATE", b"ONE", b"TWO"]
        assert client.status(frames) == {"grpc-status": "0"}

    async def test_a_reset_ends_what_was_waited_for(self, client: Any) -> None:
        client.open(1, b"late")
        task = client.connection.streams[1]._task
        client.send(f.rst_stream(1, f.CANCEL))
        await asyncio.sleep(0)
        assert task.cancelled()
        assert client.service.closed == ["CANCELLED"]
        assert client.read() == []

    async def test_thousands_of_messages_may_wait(self, client: Any, wire: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2**20}))
        client.open(1, b"late")
        client.send(*[wire.message(b"x")] * 5000)
        client.service.released.set()
        await asyncio.sleep(0.05)
        assert len(client.answers(client.read())) == 5001

    async def test_a_lost_connection_closes_every_exchange(self, client: Any) -> None:
        for stream, word in ((1, b"hi"), (3, b"late"), (5, b"big 900000")):
            client.open(stream, word)
        client.connection.lost()
        assert client.service.closed == ["CANCELLED"] * 3

    @pytest.mark.parametrize("word", [b"hi", b"late", b"big 50000"])
    async def test_an_exchange_may_have_a_last_word(self, client: Any, word: bytes) -> None:
        client.open(1, word)
        client.read()
        exchange = client.connection.streams[1].exchange
        exchange.done = True
        exchange.push((b"LAST",))
        client.send(f.window_update(0, 100_000), f.window_update(1, 100_000))
        frames = client.read()
        assert frames[-3].payload.endswith(b"LAST")
        assert client.status(frames) == {"grpc-status": "0"}
        exchange.push((b"TOO LATE",))
        assert client.read() == []

    async def test_a_watch_stays(self, client: Any) -> None:
        client.open(1, b"hi", end=True, path="/watch")
        assert client.answers(client.read()) == [b"HI"]
        assert 1 in client.connection.streams
        client.send(f.rst_stream(1, f.CANCEL))
        assert client.connection.streams == {}

    async def test_a_question_of_health_that_cannot_be_read(self) -> None:
        from epp.transport.h2.framing import CallError

        call = health_methods()["/grpc.health.v1.Health/Check"].open(())
        with pytest.raises(CallError, match="not a HealthCheckRequest"):
            call.receive(b"\xff")


class TestHeaderBlocks:
    def decoder(self) -> tuple[HeadDecoder, hpack.Encoder]:
        return HeadDecoder(), hpack.Encoder()

    def block(self, encoder: Any, path: str) -> bytes:
        return bytes(encoder.encode([(":method", "POST"), (":scheme", "http"), (":path", path)]))

    def test_blocks_that_insert_nothing_are_remembered(self) -> None:
        decoder, encoder = self.decoder()
        first = decoder.decode(self.block(encoder, "/a"))
        second = self.block(encoder, "/a")
        assert decoder.decode(second) == first
        assert decoder.decode(second) is decoder.decode(second)

    def test_one_that_inserts_is_decoded_each_time(self) -> None:
        decoder, encoder = self.decoder()
        inserting = self.block(encoder, "/a")
        assert decoder.decode(inserting) is not decoder.decode(inserting)
        assert len(decoder._decoder.header_table.dynamic_entries) == 2

    def test_an_insertion_makes_all_others_worthless(self) -> None:
        """The same bytes (an index of the table) mean another path after another insertion."""
        decoder, encoder = self.decoder()
        decoder.decode(self.block(encoder, "/a"))
        index = self.block(encoder, "/a")
        assert decoder.decode(index).path == "/a"
        decoder.decode(self.block(encoder, "/b"))
        assert decoder.decode(index).path == "/b"

    def test_an_insertion_that_empties_the_table_counts(self) -> None:
        decoder, encoder = self.decoder()
        decoder.decode(self.block(encoder, "/a"))
        index = self.block(encoder, "/a")
        assert decoder.decode(index).path == "/a"
        decoder.decode(self.block(encoder, "/" + "x" * 5000))
        with pytest.raises(f.ConnectionFailed):
            decoder.decode(index)

    def test_a_change_of_the_tables_size_counts(self) -> None:
        decoder, encoder = self.decoder()
        decoder.decode(self.block(encoder, "/a"))
        index = self.block(encoder, "/a")
        assert decoder.decode(index).path == "/a"
        decoder.decode(
            b"\x20" + bytes(hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", "/")]))
        )
        with pytest.raises(f.ConnectionFailed):
            decoder.decode(index)

    def test_memory_is_bounded(self) -> None:
        decoder = HeadDecoder()
        for number in range(1000):
            value = b"%06d" % number
            decoder.decode(b"\x83\x86\x84" + b"\x00\x01x" + bytes((len(value),)) + value)
        assert len(decoder._kept) <= 128

    async def test_7541_4_2_a_smaller_table_is_acknowledged(self, client: Any) -> None:
        client.decoder.max_allowed_table_size = 0
        client.send(f.settings({f.HEADER_TABLE_SIZE: 0}))
        client.read()
        client.open(1, b"hi", end=True)
        first, _, last = client.read()
        assert dict(client.decoder.decode(first.payload))[":status"] == "200"
        assert dict(client.decoder.decode(last.payload)) == {"grpc-status": "0"}

    async def test_header_lists_are_bounded(self, client: Any) -> None:
        """A small block that is a large list: one entry of the table, many times over."""
        index = bytes((0x80 | 62,))
        literal = b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000
        client.send(f.frame(f.HEADERS, f.END_HEADERS, 1, literal + index * 200))
        assert client.error()[0] == f.ENHANCE_YOUR_CALM


class TestFloods:
    def _flood(self, client: Any, frame: bytes, count: int) -> None:
        for _ in range(count // 100):
            client.send(frame * 100)
            client.written = b""
            if client.connection.finished:
                return

    @pytest.mark.parametrize(
        "frame",
        [
            f.frame(f.PING, 0, 0, b"x" * 8),
            f.settings({}),
            f.frame(f.PRIORITY, 0, 1, b"\0" * 5),
            f.frame(f.DATA, 0, 1),
            f.window_update(1, 1),
            f.frame(0xBE, 0, 0),
            f.frame(f.DATA, f.PADDED, 1, b"\x03xxx"),
        ],
    )
    async def test_frames_to_no_purpose(self, client: Any, frame: bytes) -> None:
        client.open()
        self._flood(client, frame, IDLE_FRAMES - 200)
        assert not client.connection.finished
        client.connection.second()
        self._flood(client, frame, IDLE_FRAMES - 200)
        assert not client.connection.finished, "a second later they are counted anew"
        self._flood(client, frame, 400)
        assert client.connection.finished
        assert client.service.closed == ["CANCELLED"]

    async def test_continuation(self, client: Any) -> None:
        client.send(f.frame(f.HEADERS, 0, 1, client.block()))
        self._flood(client, f.frame(f.CONTINUATION, 0, 1, b"\0\1x\1y"), 1_000_000)
        assert client.connection.finished
        assert client.connection._block is None or client.connection._block[3] < 200_000

    async def test_empty_continuation(self, client: Any) -> None:
        client.send(f.frame(f.HEADERS, 0, 1, client.block()))
        self._flood(client, f.frame(f.CONTINUATION, 0, 1), 2 * IDLE_FRAMES)
        assert client.connection.finished

    async def test_rapid_reset(self, wire: Any) -> None:
        client = wire.Client(streams=100)
        for number in range(101):
            client.open(2 * number + 1)
            client.send(f.rst_stream(2 * number + 1, f.CANCEL))
        assert client.error() == (f.ENHANCE_YOUR_CALM, "most streams are reset before they are answered")

    async def test_a_gateway_whose_clients_leave_is_no_attacker(self, wire: Any) -> None:
        client = wire.Client(streams=100)
        for number in range(0, 4000, 2):
            client.open(2 * number + 1)
            client.send(f.rst_stream(2 * number + 1, f.CANCEL))
            client.open(2 * number + 3, b"hi", end=True)
        assert not client.connection.finished

    async def test_answered_streams_may_be_reset(self, wire: Any) -> None:
        client = wire.Client(streams=100)
        for number in range(500):
            client.open(2 * number + 1, b"hi")
            client.send(f.rst_stream(2 * number + 1, f.CANCEL))
        assert not client.connection.finished

    async def test_a_slow_reader_is_ended(self, client: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 10}))
        client.open(1, b"big 1000")
        client.open(3)
        for _ in range(STUCK_SECONDS):
            client.connection.second()
        assert sorted(client.connection.streams) == [1, 3]
        client.connection.second()
        assert sorted(client.connection.streams) == [3]
        assert client.service.closed == ["CANCELLED"]

    async def test_a_socket_that_takes_nothing_holds_back_answers(self, client: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2**30}), f.window_update(0, 2**30))
        client.connection.paused = True
        client.open(1, b"big 500000")
        assert client.service.built == 1
        client.connection.paused = False
        client.connection.resume()
        client.read()
        assert client.service.built == 2
