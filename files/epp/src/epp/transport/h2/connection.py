# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's side of one HTTP/2 connection (RFC 9113): bytes in, bytes out, no socket.

:meth:`Connection.receive` takes what was read and leaves what is to be written in :attr:`Connection.out`, so that all
frames of one turn of the event loop leave in one write. What asks the loop for something later (an answer that takes
its time, a deadline) calls :meth:`Connection.flush` at its end.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from epp.transport.h2 import frames as f
from epp.transport.h2.framing import NO_TABLE, PREFIX_SIZE, Code, Deframer, read_prefix, refused
from epp.transport.h2.guard import Guard
from epp.transport.h2.headers import Head, HeadDecoder, Malformed, is_grpc
from epp.transport.h2.stream import Stream

if TYPE_CHECKING:
    from epp.transport.api import Exchange
    from epp.transport.h2.headers import Metadata

log: Final = logging.getLogger(__name__)

REMEMBERED: Final = 1024
"""Streams that this side has ended, whose late frames are ignored; older ones are an error of the peer's."""
MAX_BLOCK: Final = 128 * 1024
"""Bytes of one header block over all its frames."""
CONNECTION_WINDOW: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class Method:
    """What serves the calls of one path."""

    open: Callable[[Metadata], Exchange]
    stays: bool = False
    """The end of the client's messages does not end the call."""


@dataclass(frozen=True)
class Options:
    """Limits of one connection. Sizes are bytes."""

    max_receive: int
    max_send: int
    streams: int = 16_384
    """Streams that the peer may have open."""
    asked: int = 16_384
    """Streams that it is asked to have open at most; those beyond are served. Envoy opens a connection with all that
    waits for one, before it has read the SETTINGS."""
    stream_window: int = 1024 * 1024
    """What a peer may send on one stream before its messages are taken."""
    frame_size: int = f.DEFAULT_FRAME_SIZE


class Connection:
    """One connection; everything happens in one event loop."""

    def __init__(self, methods: Mapping[str, Method], options: Options, flush: Callable[[], None]) -> None:
        """``flush`` writes what is in :attr:`out`."""
        self.options = options
        self.flush = flush
        self.out: list[bytes | memoryview] = []
        """What is to be written, in order."""
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[Stream, None] = {}
        """Streams that could send on if the connection let them, the one that has waited longest first."""
        self.window = f.DEFAULT_WINDOW
        """Bytes of DATA that may be sent over all streams."""
        self.initial_window = f.DEFAULT_WINDOW
        self.frame_size = f.DEFAULT_FRAME_SIZE
        """The largest payload that the peer takes."""
        self.paused = False
        """The socket takes nothing at the moment."""
        self.finished = False
        """Close the connection when everything is written."""
        self.heard = True
        """Something has come since the last second."""
        self.greeted = False
        """The peer's preface and first SETTINGS have come."""
        self._steady = False
        """They have, and no header block is half here: any frame may come."""
        self._largest = min(options.max_receive, options.frame_size)
        self.guard = Guard(options.streams)
        self._methods = methods
        self._decoder = HeadDecoder()
        self._tail = b""
        self._last = 0
        self._limit = f.LAST_STREAM
        """Streams beyond this are not served (after GOAWAY)."""
        self._ours: OrderedDict[int, None] = OrderedDict()
        self._block: tuple[int, int, list[bytes], int] | None = None
        """A header block in parts: stream, flags, parts, their bytes."""
        self._table_update = b""
        self._prefaced = False
        self.out.append(
            f.settings(
                {
                    f.MAX_CONCURRENT_STREAMS: min(options.asked, options.streams),
                    f.INITIAL_WINDOW_SIZE: options.stream_window,
                    f.MAX_FRAME_SIZE_SETTING: options.frame_size,
                    f.MAX_HEADER_LIST_SIZE: 64 * 1024,
                }
            )
            + f.window_update(0, CONNECTION_WINDOW - f.DEFAULT_WINDOW)
        )
        self._room = CONNECTION_WINDOW

    def receive(self, data: bytes) -> None:
        """Take what was read. Never raises: what breaks the rules ends the connection."""
        self.heard = True
        if self.finished:
            return
        try:
            at = 0
            if self._tail:
                data, at = self._complete(data)
            if self._prefaced:
                self._frames(data, at)
            elif data := self._preface(data):
                self._frames(data, 0)
        except f.ConnectionFailed as error:
            self.fail(error.code, str(error))
        except Exception:
            log.exception("a connection failed; this is a bug")
            self.fail(f.INTERNAL_ERROR, "")

    def fail(self, code: int, text: str) -> None:
        """End the connection with an error."""
        if code != f.INTERNAL_ERROR:
            log.warning("a gateway's connection ends, for it broke the rules of HTTP/2 (error %d): %s", code, text)
        self.out.append(f.goaway(min(self._last, self._limit), code, text))
        self.finished = True
        self.lost()

    def lost(self) -> None:
        """There is no connection any more."""
        for stream in list(self.streams.values()):
            stream.gone()

    def go_away(self, final: bool) -> None:
        """Ask the peer to take new streams elsewhere; with ``final`` refuse those that come after what is known now."""
        if final:
            self._limit = self._last
        self.out.append(f.goaway(self._limit, f.NO_ERROR))
        self._finish_if_done()

    @property
    def leaving(self) -> bool:
        """New streams are refused."""
        return self._limit != f.LAST_STREAM

    def end_all(self, text: str) -> None:
        """End every call with UNAVAILABLE, and the connection."""
        for stream in list(self.streams.values()):
            stream.finish(Code.UNAVAILABLE, text)
        self.go_away(final=True)

    def resume(self) -> None:
        """Every stream that waits for the connection has its turn, and sends on if it is open."""
        for _ in range(len(self.waiting)):
            if self.window <= 0 or self.paused:
                return
            stream = next(iter(self.waiting))
            del self.waiting[stream]
            stream.resume()

    def second(self) -> None:
        """A second has passed."""
        self.guard.second()
        for stream in list(self.streams.values()):
            stream.second()

    def send_headers(self, number: int, block: bytes, flags: int) -> None:
        """HEADERS with an encoded block, which fits one frame of any size."""
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        self.out.append(f.frame(f.HEADERS, flags | f.END_HEADERS, number, block))

    def closed(self, stream: Stream) -> None:
        """For streams: this one is over."""
        self.streams.pop(stream.number, None)
        self.waiting.pop(stream, None)
        if not stream.remote_closed:
            self._ours[stream.number] = None
            if len(self._ours) > REMEMBERED:
                self._ours.popitem(last=False)
        if not self.streams:
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.leaving and not self.streams:
            self.finished = True

    def _complete(self, data: bytes) -> tuple[bytes, int]:
        """Join the beginning of a frame with no more of ``data`` than the frame needs, if it is a long one. Returns
        where what has not been taken yet stands."""
        tail, self._tail = self._tail, b""
        if not self._prefaced or len(tail) < f.HEADER_SIZE or len(data) < f.DEFAULT_FRAME_SIZE:
            return tail + data, 0
        high, low, _, _, _ = f.read_header(tail, 0)
        missing = f.HEADER_SIZE + (high << 16 | low) - len(tail)
        if missing >= len(data):
            return tail + data, 0
        self._frames(tail + data[:missing], 0)
        return data, missing

    def _preface(self, data: bytes) -> bytes:
        length = len(f.PREFACE)
        if data[:length] != f.PREFACE[: len(data)]:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "this is no HTTP/2: the preface is missing")
        if len(data) < length:
            self._tail = data
            return b""
        self._prefaced = True
        return data[length:]

    def _frames(self, data: bytes, at: int) -> None:
        """Take the whole frames from offset ``at`` on; what is left waits for the rest of it."""
        end = len(data)
        find, read_header, limit, largest = self.streams.get, f.read_header, self.options.frame_size, self._largest
        half = self.options.stream_window // 2
        while end - at >= f.HEADER_SIZE:
            high, low, kind, flags, number = read_header(data, at)
            size = high << 16 | low
            start = at + f.HEADER_SIZE
            stop = start + size
            if stop > end or size > limit:
                if size > limit:
                    raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                break
            at = stop
            if kind or not self._steady:
                self._control(kind, flags, number & f.LAST_STREAM, data[start:stop])
                if self.finished:
                    return
                continue
            # The hot path: DATA, most often one whole message in one frame.
            self._room -= size
            stream = find(number)
            if (
                stream is None
                or flags
                or not stream.plain
                or not PREFIX_SIZE <= size <= largest
                or read_prefix(data, start) != (0, size - PREFIX_SIZE)
            ):
                self._data(flags, number & f.LAST_STREAM, data, start, stop)
                continue
            stream.room -= size
            if stream.room < 0:
                self._reset(stream, f.FLOW_CONTROL_ERROR)
                continue
            stream.message(data[start + PREFIX_SIZE : stop])
            if stream.room < half and not stream.ended:
                stream.replenish()
        if self._room * 2 < CONNECTION_WINDOW:
            self._replenish()
        self._tail = data[at:] if at else data

    def _replenish(self) -> None:
        """The connection's window opens at once, whoever holds back what: streams must not wait for each other."""
        if self._room < 0:
            raise f.ConnectionFailed(f.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self.out.append(f.window_update(0, CONNECTION_WINDOW - self._room))
        self._room = CONNECTION_WINDOW

    def _data(self, flags: int, number: int, data: bytes, start: int, stop: int) -> None:
        """DATA that is more or less than one message, padded, empty, counted by content-length, for no open stream, or
        the last."""
        stream = self.streams.get(number)
        if stream is None or stream.remote_closed:
            self._stray(f.DATA, number)
            return
        stream.room -= stop - start
        if stream.room < 0:
            self._reset(stream, f.FLOW_CONTROL_ERROR)
            return
        if flags & f.PADDED:
            data = f.unpadded(data[start:stop], flags)
            start, stop = 0, len(data)
        if stream.expected is not None:
            stream.expected -= stop - start
            if stream.expected < 0 or (flags & f.END_STREAM and stream.expected):
                self._reset(stream, f.PROTOCOL_ERROR)
                return
        if stop > start:
            stream.part(data, start, stop)
        elif not flags & f.END_STREAM:
            self.guard.idle_frame()
        if stream.ended:
            return
        if flags & f.END_STREAM:
            stream.half_closed()
        else:
            stream.replenish()

    def _stray(self, kind: int, number: int) -> None:
        """A frame for a stream that is not open. Raises ConnectionFailed if it never was."""
        if number == 0 or number > self._last:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, f"a frame of type {kind} on stream {number}, which is idle")
        self.guard.idle_frame()
        if kind in (f.DATA, f.HEADERS) and number not in self._ours:
            if number not in self.streams and kind == f.HEADERS:
                raise f.ConnectionFailed(f.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
            self._refuse(number, f.STREAM_CLOSED)

    def _refuse(self, number: int, code: int) -> None:
        """RST_STREAM for a stream that is not, or no longer, open here."""
        stream = self.streams.get(number)
        if stream is not None:
            self._reset(stream, code)
            return
        self.out.append(f.rst_stream(number, code))
        self._ours[number] = None
        if len(self._ours) > REMEMBERED:
            self._ours.popitem(last=False)

    def _reset(self, stream: Stream, code: int) -> None:
        """The peer broke a rule of one stream."""
        self.out.append(f.rst_stream(stream.number, code))
        self.guard.reset()
        stream.gone()

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Every frame but DATA in its place."""
        if self._block is not None and (kind != f.CONTINUATION or number != self._block[0]):
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, f"a frame of type {kind} inside of a header block")
        if not self.greeted and (kind != f.SETTINGS or flags & f.ACK):
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, f"the first frame is of type {kind}, and not SETTINGS")
        if kind == f.HEADERS:
            self._headers(flags, number, payload)
            return
        self.guard.idle_frame()
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, flags, number, payload)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & (f.PADDED | f.PRIORITY_FLAG):
            payload = f.unpadded(payload, flags)
            if flags & f.PRIORITY_FLAG:
                if len(payload) < 5:
                    raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "HEADERS without the priority that they announce")
                payload = payload[5:]
        if flags & f.END_HEADERS:
            self._block_done(number, flags, payload)
        else:
            self._block = (number, flags, [payload], len(payload))
            self._steady = False

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        first, first_flags, parts, size = self._block
        parts.append(payload)
        size += len(payload)
        if size > MAX_BLOCK:
            raise f.ConnectionFailed(f.ENHANCE_YOUR_CALM, f"a header block of more than {MAX_BLOCK} bytes")
        if not flags & f.END_HEADERS:
            self._block = (first, first_flags, parts, size)
            return
        self._block = None
        self._steady = True
        self._block_done(first, first_flags, b"".join(parts))

    def _block_done(self, number: int, flags: int, block: bytes) -> None:
        """A whole header block: a call begins, or its trailers end it."""
        try:
            head = self._decoder.decode(block)
        except Malformed as error:
            log.debug("a malformed request: %s", error)
            if number > self._last:
                self._new(number)
            self._refuse(number, f.PROTOCOL_ERROR)
            return
        if number > self._last:
            self._open(number, flags, head)
            return
        stream = self.streams.get(number)
        if stream is None or stream.remote_closed:
            self._stray(f.HEADERS, number)
        elif not head.trailers or not flags & f.END_STREAM or stream.expected:
            self._reset(stream, f.PROTOCOL_ERROR)
        else:
            stream.half_closed()

    def _new(self, number: int) -> None:
        if number % 2 == 0:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, f"a client opened stream {number}, an even one")
        self._last = number

    def _open(self, number: int, flags: int, head: Head) -> None:
        self._new(number)
        if number > self._limit:
            self._ours[number] = None  # GOAWAY has said it
            return
        if len(self.streams) >= self.options.streams:
            self._refuse(number, f.REFUSED_STREAM)
            return
        method = self._methods.get(head.path)
        if method is None or not head.grpc:
            self._refuse_call(number, flags, head)
            return
        deframer = Deframer(self.options.max_receive, head.encoding)
        stream = self.streams[number] = Stream(self, number, method.open(head.metadata), deframer)
        stream.stays = method.stays
        if head.length is not None:
            stream.expected, stream.plain = head.length, False
        if head.timeout is not None:
            stream.expire_after(head.timeout)
        if flags & f.END_STREAM:
            if stream.expected:
                self._reset(stream, f.PROTOCOL_ERROR)
            else:
                stream.half_closed()

    def _refuse_call(self, number: int, flags: int, head: Head) -> None:
        """What is no call of ours gets an answer of headers alone."""
        if head.trailers:
            self._refuse(number, f.PROTOCOL_ERROR)
            return
        if head.method != "POST":
            block = refused(405, Code.INTERNAL, f"the method is {head.method}, and gRPC is POST")
        elif not is_grpc(head.content_type):
            block = refused(415, Code.INTERNAL, f"the content-type {head.content_type!r} is not application/grpc")
        else:
            block = refused(200, Code.UNIMPLEMENTED, f"unknown method {head.path}")
        self.send_headers(number, block, f.END_STREAM)
        self.guard.idle_frame()
        if not flags & f.END_STREAM:
            self._refuse(number, f.NO_ERROR)

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            self._refuse_known(number, f.FRAME_SIZE_ERROR, "PRIORITY of another size than 5")

    def _refuse_known(self, number: int, code: int, text: str) -> None:
        """A stream error; on an idle stream, which has no state to end, an error of the connection."""
        if number > self._last:
            raise f.ConnectionFailed(code, text)
        self._refuse(number, code)

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "RST_STREAM of another size than 4")
        if number == 0 or number > self._last:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, f"RST_STREAM on stream {number}, which is idle")
        stream = self.streams.get(number)
        if stream is not None:
            stream.remote_closed = True
            if not stream.answered:
                self.guard.reset()
            stream.gone()

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & f.ACK:
            if payload:
                raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            return
        self.greeted = self._steady = True
        for key, value in f.read_settings(payload):
            if key == f.INITIAL_WINDOW_SIZE:
                self._initial_window(value)
            elif key == f.MAX_FRAME_SIZE_SETTING:
                self.frame_size = value
            elif key == f.HEADER_TABLE_SIZE and value < 4096:
                self._table_update = NO_TABLE
        self.out.append(f.SETTINGS_ACK)
        # Behind the acknowledgement, from which on the peer counts with the new windows.
        for stream in list(self.streams.values()):
            stream.resume()

    def _initial_window(self, size: int) -> None:
        """Every stream's window changes by the difference, and may become negative."""
        change = size - self.initial_window
        self.initial_window = size
        for stream in list(self.streams.values()):
            stream.window += change
            if stream.window > f.MAX_WINDOW:
                raise f.ConnectionFailed(f.FLOW_CONTROL_ERROR, "SETTINGS make a window larger than 2^31-1")

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise f.ConnectionFailed(f.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "PING of another size than 8")
        if not flags & f.ACK:
            self.out.append(f.frame(f.PING, f.ACK, 0, payload))

    def _goaway(self, flags: int, number: int, payload: bytes) -> None:
        """The peer opens no more streams, and closes the connection when its last one has ended."""
        if number:
            raise f.ConnectionFailed(f.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise f.ConnectionFailed(f.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size than 4")
        increment = int.from_bytes(payload) & f.MAX_WINDOW
        if number == 0:
            if increment == 0 or self.window + increment > f.MAX_WINDOW:
                code = f.FLOW_CONTROL_ERROR if increment else f.PROTOCOL_ERROR
                raise f.ConnectionFailed(code, f"WINDOW_UPDATE by {increment} of a window of {self.window}")
            self.window += increment
            self.resume()
            return
        stream = self.streams.get(number)
        if stream is None:
            self._stray(f.WINDOW_UPDATE, number)
        elif increment == 0:
            self._reset(stream, f.PROTOCOL_ERROR)
        elif stream.window + increment > f.MAX_WINDOW:
            self._reset(stream, f.FLOW_CONTROL_ERROR)
        else:
            stream.window += increment
            stream.resume()


_Handler = Callable[[Connection, int, int, bytes], None]
_HANDLERS: Final[dict[int, _Handler]] = {
    f.PRIORITY: Connection._priority,
    f.RST_STREAM: Connection._rst_stream,
    f.SETTINGS: Connection._settings,
    f.PUSH_PROMISE: Connection._push_promise,
    f.PING: Connection._ping,
    f.GOAWAY: Connection._goaway,
    f.WINDOW_UPDATE: Connection._window_update,
    f.CONTINUATION: Connection._continuation,
}
