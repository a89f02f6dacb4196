# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/2 frame by frame: a case for each rule of RFC 9113 that binds a server. Numbers are the RFC's sections."""

from __future__ import annotations

from typing import Any

import pytest

from epp.transport.h2 import frames as f


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4) for number in numbers)


class TestConnection:
    async def test_3_4_the_server_begins_with_settings(self, wire: Any) -> None:
        first = wire.Client(hello=False).read()[0]
        assert (first.kind, first.flags, first.stream) == (f.SETTINGS, 0, 0)

    async def test_3_4_a_preface_may_come_byte_by_byte(self, wire: Any) -> None:
        client = wire.Client(hello=False)
        for byte in f.PREFACE + f.settings({}) + client.headers() + wire.message(b"hi"):
            client.send(bytes((byte,)))
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize(
        "data", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01" + b"x" * 40]
    )
    async def test_3_4_anything_else_is_no_http2(self, wire: Any, data: bytes) -> None:
        client = wire.Client(hello=False)
        client.send(data)
        assert client.error()[0] == f.PROTOCOL_ERROR

    @pytest.mark.parametrize("frame", [f.frame(f.PING, 0, 0, b"x" * 8), f.SETTINGS_ACK, f.frame(f.DATA, 0, 1, b"x")])
    async def test_3_4_the_client_begins_with_settings(self, wire: Any, frame: bytes) -> None:
        client = wire.Client(hello=False)
        client.send(f.PREFACE, frame)
        assert client.error()[0] == f.PROTOCOL_ERROR

    async def test_4_1_unknown_frames_and_flags_are_ignored(self, client: Any, wire: Any) -> None:
        client.send(
            f.frame(0xBE, 0xFF, 7, b"x"), client.headers(flags=0x40 | f.END_HEADERS), wire.message(b"hi", flags=0x40)
        )
        assert client.answers(client.read()) == [b"HI"]

    async def test_4_1_the_reserved_bit_is_ignored(self, client: Any, wire: Any) -> None:
        client.send(client.headers(stream=1 | 1 << 31), wire.message(b"hi", stream=1 | 1 << 31))
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize("kind", [f.DATA, f.HEADERS, 0xBE])
    async def test_4_2_frames_have_a_largest_size(self, client: Any, kind: int) -> None:
        client.send(f.frame(kind, 0, 1, b"x" * (client.connection.options.frame_size + 1)))
        assert client.error()[0] == f.FRAME_SIZE_ERROR

    async def test_4_2_the_largest_frame_is_taken(self, client: Any, wire: Any) -> None:
        client.open()
        client.send(wire.message(b"x" * (client.connection.options.frame_size - 5)))
        assert client.service.received == [b"x" * (client.connection.options.frame_size - 5)]

    async def test_4_3_a_block_that_cannot_be_decoded_ends_the_connection(self, client: Any) -> None:
        client.send(f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff\xff\xff\xff"))
        assert client.error()[0] == f.COMPRESSION_ERROR

    async def test_5_4_1_after_an_error_nothing_is_taken(self, client: Any, wire: Any) -> None:
        client.open()
        client.send(f.frame(f.PING, 0, 1, b"x" * 8), wire.message(b"hi"))
        assert client.error()[0] == f.PROTOCOL_ERROR
        client.send(wire.message(b"hi"))
        assert client.read() == []
        assert client.service.received == []
        assert client.service.closed == ["CANCELLED"]


class TestStreams:
    async def test_5_1_idle_streams_take_no_data(self, client: Any, wire: Any) -> None:
        client.send(wire.message(b"hi"))
        assert client.error()[0] == f.PROTOCOL_ERROR

    @pytest.mark.parametrize("kind", [f.RST_STREAM, f.WINDOW_UPDATE])
    async def test_5_1_idle_streams_take_no_such_frames(self, client: Any, kind: int) -> None:
        client.send(f.frame(kind, 0, 1, words(1)))
        assert client.error()[0] == f.PROTOCOL_ERROR

    async def test_5_1_idle_streams_take_priority(self, client: Any) -> None:
        client.send(f.frame(f.PRIORITY, 0, 1, b"\0" * 5))
        assert client.read() == []

    async def test_5_1_a_half_closed_stream_takes_no_data(self, client: Any, wire: Any) -> None:
        client.open(1, b"late", end=True)
        client.read()
        client.send(wire.message(b"hi"))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.STREAM_CLOSED)
        assert client.service.closed == ["CANCELLED"]

    async def test_5_1_a_half_closed_stream_takes_no_headers(self, client: Any) -> None:
        client.open(1, b"late", end=True)
        client.read()
        client.send(client.headers(1))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.STREAM_CLOSED)

    async def test_5_1_a_stream_that_the_client_closed_takes_no_data(self, client: Any, wire: Any) -> None:
        client.open(1, end=True)
        client.read()
        client.send(wire.message(b"hi"))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.STREAM_CLOSED)

    async def test_5_1_a_stream_that_the_client_closed_takes_no_headers(self, client: Any) -> None:
        client.open(1, end=True)
        client.read()
        client.send(client.headers(1))
        assert client.error()[0] == f.STREAM_CLOSED

    async def test_5_1_late_frames_of_a_stream_that_the_server_closed_are_ignored(self, client: Any, wire: Any) -> None:
        client.open(1, b"end")
        client.read()
        client.send(wire.message(b"hi"), f.window_update(1, 9), f.rst_stream(1, f.CANCEL))
        client.send(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, client.block([("x", "y")])))
        assert client.read() == []
        assert not client.connection.finished

    async def test_5_1_1_clients_open_odd_streams(self, client: Any) -> None:
        client.send(client.headers(stream=2))
        assert client.error()[0] == f.PROTOCOL_ERROR

    async def test_5_1_1_numbers_grow(self, client: Any) -> None:
        client.open(5, b"hi")
        client.read()
        client.send(client.headers(stream=3))
        assert client.error()[0] == f.STREAM_CLOSED

    async def test_5_1_2_too_many_streams_are_refused(self, wire: Any) -> None:
        client = wire.Client(streams=2)
        for stream in (1, 3, 5):
            client.open(stream)
        (frame,) = client.read()
        assert (frame.kind, frame.stream, frame.number) == (f.RST_STREAM, 5, f.REFUSED_STREAM)
        client.send(f.rst_stream(1, f.CANCEL))
        client.open(7, b"hi")
        assert client.answers(client.read()) == [b"HI"]


class TestData:
    async def test_6_1_data_belongs_to_a_stream(self, client: Any) -> None:
        client.send(f.frame(f.DATA, 0, 0, b"x"))
        assert client.error()[0] == f.PROTOCOL_ERROR

    @pytest.mark.parametrize("padding", [0, 1, 255])
    async def test_6_1_padding_is_taken_away(self, client: Any, wire: Any, padding: int) -> None:
        client.open()
        payload = bytes((padding,)) + wire.prefixed(b"hi") + b"\0" * padding
        client.send(f.frame(f.DATA, f.PADDED, 1, payload))
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize(("payload", "code"), [(b"\x05xxxxx"[:5], f.PROTOCOL_ERROR), (b"", f.FRAME_SIZE_ERROR)])
    async def test_6_1_padding_fits_its_frame(self, client: Any, payload: bytes, code: int) -> None:
        client.open()
        client.send(f.frame(f.DATA, f.PADDED, 1, payload))
        assert client.error()[0] == code


class TestHeaders:
    async def test_6_2_headers_belong_to_a_stream(self, client: Any) -> None:
        client.send(client.headers(stream=0))
        assert client.error()[0] == f.PROTOCOL_ERROR

    @pytest.mark.parametrize("padding", [0, 7])
    async def test_6_2_padding_and_priority_are_taken_away(self, client: Any, wire: Any, padding: int) -> None:
        payload = bytes((padding,)) + words(1 << 31) + b"\x07" + client.block() + b"\0" * padding
        client.send(f.frame(f.HEADERS, f.PADDED | f.PRIORITY_FLAG | f.END_HEADERS, 1, payload), wire.message(b"hi"))
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize(
        ("flags", "payload", "code"),
        [(f.PADDED, b"\x05xx", f.PROTOCOL_ERROR), (f.PRIORITY_FLAG, b"xxxx", f.FRAME_SIZE_ERROR)],
    )
    async def test_6_2_they_fit_their_frame(self, client: Any, flags: int, payload: bytes, code: int) -> None:
        client.send(f.frame(f.HEADERS, flags | f.END_HEADERS, 1, payload))
        assert client.error()[0] == code

    @pytest.mark.parametrize("size", [1, 7, 40])
    async def test_6_10_a_block_may_come_in_parts(self, client: Any, wire: Any, size: int) -> None:
        block = client.block()
        parts = [block[at : at + size] for at in range(0, len(block), size)]
        client.send(f.frame(f.HEADERS, 0, 1, parts[0]))
        for part in parts[1:]:
            client.send(f.frame(f.CONTINUATION, 0, 1, part))
        client.send(f.frame(f.CONTINUATION, f.END_HEADERS, 1), wire.message(b"hi"))
        assert client.answers(client.read()) == [b"HI"]

    async def test_6_10_end_stream_stands_at_the_first_part(self, client: Any) -> None:
        block = client.block()
        client.send(
            f.frame(f.HEADERS, f.END_STREAM, 1, block[:9]), f.frame(f.CONTINUATION, f.END_HEADERS, 1, block[9:])
        )
        assert client.status(client.read())["grpc-status"] == "0"

    @pytest.mark.parametrize(
        "frame",
        [
            f.frame(f.DATA, 0, 1, b"x"),
            f.frame(f.CONTINUATION, f.END_HEADERS, 3, b"x"),
            f.frame(f.PING, 0, 0, b"x" * 8),
            f.frame(0xBE, 0, 1, b"x"),
        ],
    )
    async def test_6_10_nothing_comes_between_the_parts(self, client: Any, frame: bytes) -> None:
        client.send(f.frame(f.HEADERS, 0, 1, client.block()), frame)
        assert client.error()[0] == f.PROTOCOL_ERROR

    async def test_6_10_a_part_follows_a_beginning(self, client: Any) -> None:
        client.send(f.frame(f.CONTINUATION, f.END_HEADERS, 1, b"x"))
        assert client.error()[0] == f.PROTOCOL_ERROR


class TestControl:
    async def test_6_3_priority_is_ignored(self, client: Any, wire: Any) -> None:
        client.open()
        client.send(f.frame(f.PRIORITY, 0, 1, words(1) + b"\0"), wire.message(b"hi"))
        assert client.answers(client.read()) == [b"HI"]

    async def test_6_3_priority_belongs_to_a_stream(self, client: Any) -> None:
        client.send(f.frame(f.PRIORITY, 0, 0, b"\0" * 5))
        assert client.error()[0] == f.PROTOCOL_ERROR

    async def test_6_3_priority_has_five_bytes(self, client: Any) -> None:
        client.open()
        client.send(f.frame(f.PRIORITY, 0, 1, b"\0" * 4))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.FRAME_SIZE_ERROR)

    async def test_6_4_a_reset_ends_the_call(self, client: Any) -> None:
        client.open(1, b"hi")
        client.send(f.rst_stream(1, f.CANCEL))
        assert client.service.closed == ["CANCELLED"]
        assert client.connection.streams == {}

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            (f.frame(f.RST_STREAM, 0, 0, b"\0" * 4), f.PROTOCOL_ERROR),
            (f.frame(f.RST_STREAM, 0, 1, b"\0" * 3), f.FRAME_SIZE_ERROR),
            (f.frame(f.SETTINGS, 0, 1), f.PROTOCOL_ERROR),
            (f.frame(f.SETTINGS, f.ACK, 0, b"\0" * 6), f.FRAME_SIZE_ERROR),
            (f.frame(f.SETTINGS, 0, 0, b"\0" * 5), f.FRAME_SIZE_ERROR),
            (f.settings({f.ENABLE_PUSH: 2}), f.PROTOCOL_ERROR),
            (f.settings({f.INITIAL_WINDOW_SIZE: 2**31}), f.FLOW_CONTROL_ERROR),
            (f.settings({f.MAX_FRAME_SIZE_SETTING: 16_383}), f.PROTOCOL_ERROR),
            (f.settings({f.MAX_FRAME_SIZE_SETTING: 2**24}), f.PROTOCOL_ERROR),
            (f.frame(f.PUSH_PROMISE, 0, 1, b"\0" * 4), f.PROTOCOL_ERROR),
            (f.frame(f.PING, 0, 1, b"\0" * 8), f.PROTOCOL_ERROR),
            (f.frame(f.PING, 0, 0, b"\0" * 7), f.FRAME_SIZE_ERROR),
            (f.frame(f.GOAWAY, 0, 1, b"\0" * 8), f.PROTOCOL_ERROR),
            (f.frame(f.GOAWAY, 0, 0, b"\0" * 7), f.FRAME_SIZE_ERROR),
            (f.frame(f.WINDOW_UPDATE, 0, 0, b"\0" * 3), f.FRAME_SIZE_ERROR),
            (f.window_update(0, 0), f.PROTOCOL_ERROR),
            (f.window_update(0, 2**31 - 1), f.FLOW_CONTROL_ERROR),
        ],
    )
    async def test_6_frames_that_no_client_may_send(self, client: Any, frame: bytes, code: int) -> None:
        client.open()
        client.send(frame)
        assert client.error()[0] == code

    async def test_6_5_settings_are_acknowledged_and_unknown_ones_ignored(self, client: Any) -> None:
        client.send(f.settings({0x99: 1, f.MAX_FRAME_SIZE_SETTING: 20_000}))
        assert [(frame.kind, frame.flags) for frame in client.read()] == [(f.SETTINGS, f.ACK)]
        assert client.connection.frame_size == 20_000

    async def test_6_5_3_the_last_value_of_a_setting_counts(self, client: Any) -> None:
        pair = (4).to_bytes(2) + words(5) + (4).to_bytes(2) + words(6)
        client.send(f.frame(f.SETTINGS, 0, 0, pair))
        assert client.connection.initial_window == 6

    async def test_6_7_a_ping_is_answered(self, client: Any) -> None:
        client.send(f.frame(f.PING, 0, 0, b"12345678"), f.frame(f.PING, f.ACK, 0, b"12345678"))
        assert [(frame.kind, frame.flags, frame.payload) for frame in client.read()] == [(f.PING, f.ACK, b"12345678")]

    async def test_6_8_a_client_that_goes_away_is_served_to_its_end(self, client: Any, wire: Any) -> None:
        client.open()
        client.send(f.goaway(0, f.NO_ERROR, "bye"), wire.message(b"hi"))
        assert client.answers(client.read()) == [b"HI"]

    async def test_6_8_the_server_goes_away_in_two_steps(self, client: Any, wire: Any) -> None:
        client.open(1)
        client.connection.go_away(final=False)
        (frame,) = client.read()
        assert (frame.kind, frame.payload) == (f.GOAWAY, words(f.LAST_STREAM, f.NO_ERROR))
        client.open(3, b"hi")
        assert client.answers(client.read()) == [b"HI"]
        client.connection.go_away(final=True)
        assert client.read()[0].payload == words(3, f.NO_ERROR)
        client.open(5, b"hi")
        assert client.read() == []
        client.send(wire.message(b"end", 1))
        assert not client.connection.finished
        client.send(wire.message(b"end", 3))
        assert client.connection.finished
        assert client.service.closed == ["OK", "OK"]


class TestRequests:
    """8.2 and 8.3: malformed requests end their stream, and no more."""

    @pytest.mark.parametrize(
        "fields",
        [
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":path", "/")],
            [(":method", "POST"), (":scheme", "http"), ("x", "y"), (":path", "/")],
            [(":method", "POST"), (":scheme", "http")],
            [(":method", "POST"), (":path", "/")],
            [(":scheme", "http"), (":path", "/")],
            [(":method", "POST"), (":scheme", "http"), (":path", "")],
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":status", "200")],
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":unknown", "x")],
        ],
    )
    async def test_8_3_pseudo_headers(self, client: Any, fields: list[tuple[str, str]]) -> None:
        self._is_reset(client, client.block(fields))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[
                ("connection", "close"),
                ("keep-alive", "x"),
                ("proxy-connection", "x"),
                ("transfer-encoding", "chunked"),
            ],
            *[("upgrade", "x"), ("te", "gzip"), ("Upper", "x"), ("a b", "x"), ("", "x"), ("x", "a\0b"), ("x", "a\nb")],
            *[("x", " a"), ("x", "a "), ("content-length", "x"), ("grpc-timeout", "soon"), ("x-bin", "*")],
        ],
    )
    async def test_8_2_fields(self, client: Any, wire: Any, name: str, value: str) -> None:
        fields = [(key, text) for key, text in wire.CALL if key != name]
        block = client.hpack.encode([*fields, (name, value)])
        self._is_reset(client, block)

    def _is_reset(self, client: Any, block: bytes) -> None:
        client.send(f.frame(f.HEADERS, f.END_HEADERS, 1, block))
        (frame,) = client.read()
        assert (frame.kind, frame.stream, frame.number) == (f.RST_STREAM, 1, f.PROTOCOL_ERROR)
        client.open(3, b"hi")
        assert client.answers(client.read()) == [b"HI"]

    @pytest.mark.parametrize(
        ("length", "body", "good"), [("7", b"hi", True), ("8", b"hi", False), ("6", b"hi", False), ("0", b"", True)]
    )
    async def test_8_1_1_content_length_is_true(self, client: Any, length: str, body: bytes, good: bool) -> None:
        client.open(1, *([body] if body else []), end=True, content_length=length)
        frames = client.read()
        if good:
            assert client.status(frames)["grpc-status"] == "0"
        else:
            assert (frames[-1].kind, frames[-1].number) == (f.RST_STREAM, f.PROTOCOL_ERROR)

    async def test_8_1_trailers_end_the_request(self, client: Any) -> None:
        client.open(1, b"hi")
        client.send(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, client.block([("x", "y")])))
        assert client.status(client.read())["grpc-status"] == "0"

    @pytest.mark.parametrize("end", [0, f.END_STREAM])
    async def test_8_1_a_second_block_is_trailers_and_the_end(self, client: Any, wire: Any, end: int) -> None:
        client.open(1, b"hi")
        client.read()
        fields = wire.CALL if end else [("x", "y")]
        client.send(f.frame(f.HEADERS, f.END_HEADERS | end, 1, client.block(fields)))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.PROTOCOL_ERROR)

    async def test_8_1_the_rest_of_a_request_is_declined_after_the_answer(self, client: Any) -> None:
        client.open(1, b"end")
        last = client.read()[-1]
        assert (last.kind, last.number) == (f.RST_STREAM, f.NO_ERROR)


class TestFlowControl:
    async def test_6_9_answers_wait_for_the_streams_window(self, client: Any, wire: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 10}))
        client.open(1, b"x" * 20)
        frames = client.read()
        assert [len(frame.payload) for frame in frames if frame.kind == f.DATA] == [10]
        client.send(f.window_update(1, 3), f.window_update(1, 100))
        assert [len(frame.payload) for frame in client.read()] == [3, 12]

    async def test_6_9_answers_wait_for_the_connections_window(self, client: Any, wire: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: f.MAX_WINDOW}))
        client.open(1, b"big 40000")
        assert sum(len(frame.payload) for frame in client.read() if frame.kind == f.DATA) == 65_535
        client.send(f.window_update(0, 100_000))
        assert sum(len(frame.payload) for frame in client.read() if frame.kind == f.DATA) == 80_010 - 65_535

    async def test_6_9_answers_are_built_when_there_is_room(self, client: Any) -> None:
        client.open(1, b"big 70000")
        assert client.service.built == 1
        client.send(f.window_update(0, 1_000_000))
        client.send(f.window_update(1, 70_000))
        assert client.service.built == 2

    async def test_6_9_a_stream_that_waits_holds_back_itself_only(self, client: Any, wire: Any) -> None:
        client.send(f.window_update(0, 1_000_000))
        client.open(1, b"big 70000", b"hi")
        client.read()
        client.open(3, b"you")
        frames = client.read()
        assert client.answers(frames) == [b"YOU"]
        client.send(f.window_update(1, 1_000_000))
        assert client.read()[-1].payload == wire.prefixed(b"HI")

    async def test_6_9_streams_take_turns(self, client: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2**30}))
        for stream in (1, 3):
            client.open(stream, b"big 400000")
        client.read()
        client.send(f.window_update(0, 400_000))
        sent = {1: 0, 3: 0}
        for frame in client.read():
            sent[frame.stream] += len(frame.payload)
        assert min(sent.values()) > 100_000, sent

    async def test_6_9_1_a_window_has_an_end(self, client: Any) -> None:
        client.open()
        client.send(f.window_update(1, f.MAX_WINDOW))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.FLOW_CONTROL_ERROR)

    async def test_6_9_an_increment_is_not_zero(self, client: Any) -> None:
        client.open()
        client.send(f.window_update(1, 0))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.PROTOCOL_ERROR)

    async def test_6_9_2_settings_change_the_windows_of_open_streams(self, client: Any) -> None:
        client.open(1, b"x" * 995)
        client.read()
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 500}))
        assert client.connection.streams[1].window == -500
        client.send(f.frame(f.DATA, 0, 1, b"\0\0\0\0\2hi"))
        assert client.answers(client.read()) == []
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2000}))
        assert client.answers(client.read()) == [b"HI"]

    async def test_6_9_2_settings_are_acknowledged_before_they_are_used(self, client: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 0}))
        client.open(1, b"hi")
        client.read()
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 100}))
        assert [frame.kind for frame in client.read()] == [f.SETTINGS, f.DATA]

    async def test_6_9_2_settings_do_not_overflow_a_window(self, client: Any) -> None:
        client.open()
        client.send(f.window_update(1, 1000), f.settings({f.INITIAL_WINDOW_SIZE: f.MAX_WINDOW}))
        assert client.error()[0] == f.FLOW_CONTROL_ERROR

    async def test_6_9_frames_fit_the_peers_largest(self, client: Any) -> None:
        client.send(f.settings({f.INITIAL_WINDOW_SIZE: 2**20, f.MAX_FRAME_SIZE_SETTING: 20_000}))
        client.open(1, b"big 50000")
        assert max(len(frame.payload) for frame in client.read()) == 20_000

    async def test_6_9_a_client_gets_its_room_back(self, wire: Any) -> None:
        client = wire.Client(stream_window=10_000)
        client.open(1)
        for _ in range(5):
            client.send(wire.message(b"x" * 4000))
        updates = [frame for frame in client.read() if frame.kind == f.WINDOW_UPDATE]
        assert {frame.stream for frame in updates} == {1}
        assert client.connection.streams[1].room == 10_000 - 5 * 4005 + sum(frame.number for frame in updates) >= 4000

    async def test_6_9_a_message_larger_than_the_window_comes_in(self, wire: Any) -> None:
        client = wire.Client(stream_window=10_000)
        client.open(1)
        data, room = wire.prefixed(b"x" * 95_000), 10_000
        while data:
            assert room > 0, "the server leaves the client without a window"
            step = min(room, 7_000)
            client.send(f.frame(f.DATA, 0, 1, data[:step]))
            data, room = data[step:], room - step
            room += sum(frame.number for frame in client.read() if frame.kind == f.WINDOW_UPDATE)
        assert [len(each) for each in client.service.received] == [95_000]

    async def test_6_9_messages_that_wait_give_no_room_back(self, wire: Any) -> None:
        client = wire.Client(stream_window=10_000)
        client.open(1, b"late")
        client.read()
        for _ in range(4):
            client.send(wire.message(b"x" * 2000))
        assert client.read() == []
        client.send(wire.message(b"x" * 2000))
        (frame,) = client.read()
        assert (frame.kind, frame.number) == (f.RST_STREAM, f.FLOW_CONTROL_ERROR)

    async def test_6_9_padding_counts(self, client: Any, wire: Any) -> None:
        client.open(1)
        client.send(f.frame(f.DATA, f.PADDED, 1, b"\x09" + wire.prefixed(b"hi") + b"\0" * 9))
        assert client.connection.streams[1].room == client.connection.options.stream_window - 17

    async def test_6_9_the_connections_room_comes_back_whoever_waits(self, client: Any, wire: Any) -> None:
        client.open(1, b"late")
        client.read()
        given = 0
        for stream in range(3, 3 + 2 * 60, 2):
            client.open(stream, b"late")
            for _ in range(60):
                client.send(wire.message(b"x" * 16_000, stream))
            given += sum(frame.number for frame in client.read() if frame.kind == f.WINDOW_UPDATE and not frame.stream)
        assert given > 30_000_000
