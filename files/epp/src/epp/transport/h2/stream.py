# SPDX-License-Identifier: GPL-3.0-or-later
"""One call: messages in, an exchange that answers them, messages out as far as the peer's windows allow.

Messages are handed over one after the other. While an answer is being waited for, or waits itself for a window, the
messages behind it wait, too, and the peer is not given new room for them: so a slow reader holds back itself only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import struct
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from epp.extproc import ProtocolError
from epp.transport.h2 import frames as f
from epp.transport.h2.framing import PREFIX_SIZE, RESPONSE, CallError, Code, Deframer, trailers

if TYPE_CHECKING:
    from epp.transport.api import Exchange
    from epp.transport.h2.connection import Connection

log: Final = logging.getLogger(__name__)

_DATA_HEAD: Final = struct.Struct(">BHBBLBL").pack
"""The header of a DATA frame, and a message's prefix behind it."""

QUANTUM: Final = 64 * 1024
"""Bytes that one stream sends before another one that waits has its turn."""

STUCK_SECONDS: Final = 60
"""How long an answer may wait for a window that does not open at all."""


class Stream:
    """One open call. Calls of methods named like events come from the connection."""

    __slots__ = (
        "_answers",
        "_held",
        "_pending",
        "_prefix",
        "_queue",
        "_task",
        "_timer",
        "answered",
        "connection",
        "deframer",
        "ended",
        "exchange",
        "expected",
        "number",
        "plain",
        "remote_closed",
        "room",
        "stays",
        "stuck",
        "window",
    )

    def __init__(self, connection: Connection, number: int, exchange: Exchange, deframer: Deframer) -> None:
        self.connection = connection
        self.number = number
        self.exchange = exchange
        self.deframer = deframer
        self.window = connection.initial_window
        """Bytes that may be sent."""
        self.room = connection.options.stream_window
        """Bytes that the peer may send."""
        self.remote_closed = False
        """The peer will send no more."""
        self.ended = False
        """Over: the exchange is closed, and nothing is sent any more."""
        self.stays = False
        """The end of the peer's messages does not end the call (a watch)."""
        self.plain = True
        """The next byte begins a message, nothing counts the bytes, and the peer may send more."""
        self.expected: int | None = None
        """Bytes of body still to come, where content-length has announced them."""
        self.stuck = 0
        """Seconds for which an answer has been waiting for a window; counted by the connection."""
        self._queue: deque[bytes] = deque()
        self._held = 0
        """Bytes of the queue, for which the peer gets no new room."""
        self._answers: Iterator[bytes] | None = None
        self._pending: memoryview | None = None
        """What is left of a message that did not fit a window."""
        self._prefix = b""
        """What is left of its prefix, which goes before it."""
        self.answered = False
        """The headers of the answer have been sent."""
        self._task: asyncio.Task[Iterable[bytes]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if exchange.interruptible:
            exchange.push = self.push

    def push(self, answers: Iterable[bytes]) -> None:
        """Send the exchange's last answers, which no message has asked for."""
        if self.ended:
            return
        self._answers = iter(answers) if self._answers is None else itertools.chain(self._answers, answers)
        self._go_on()
        self.connection.flush()

    def expire_after(self, seconds: float) -> None:
        """The call ends with DEADLINE_EXCEEDED unless it ends before."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def message(self, data: bytes) -> None:
        """A message is here."""
        if self._answers is None and self._task is None:
            self._start(data)
            self.resume()
        else:
            self._queue.append(data)
            self._held += len(data)

    def part(self, data: bytes, start: int, stop: int) -> None:
        """Bytes ``start`` to ``stop`` of ``data``, which are not just one message."""
        try:
            messages = self.deframer.feed(data, start, stop)
        except CallError as error:
            self.finish(error.code, str(error))
            return
        self.plain = self.deframer.between and self.expected is None
        for each in messages:
            if self.ended:
                return
            self.message(each)

    def half_closed(self) -> None:
        """The peer has sent everything."""
        self.remote_closed = True
        self.plain = False
        if self.deframer.between:
            self._go_on()
        else:
            self.finish(Code.INTERNAL, "the last message is cut short")

    def replenish(self) -> None:
        """Give the peer room again for what was taken."""
        full = self.connection.options.stream_window
        grant = full - self.room - self._held
        if grant * 2 >= full and not self.remote_closed:
            self.room += grant
            self.connection.out.append(f.window_update(self.number, grant))

    def resume(self) -> None:
        """A window may have opened: send on, at most about :data:`QUANTUM` bytes."""
        if self._answers is not None:
            self._go_on()

    def second(self) -> None:
        """A second has passed: a peer that takes nothing does not hold an answer for ever."""
        if self._answers is not None:
            self.stuck += 1
            if self.stuck > STUCK_SECONDS:
                self.finish(Code.CANCELLED, f"nothing was read for {STUCK_SECONDS} s")

    def gone(self) -> None:
        """The peer has reset the stream, or the connection is lost."""
        self._end("CANCELLED")

    def finish(self, code: Code, text: str = "") -> None:
        """End the call with a status. What was still to be sent is dropped."""
        if self.ended:
            return
        connection = self.connection
        block = trailers(code, text) if self.answered else RESPONSE + trailers(code, text)
        connection.send_headers(self.number, block, f.END_STREAM)
        if not self.remote_closed:
            # The answer is complete, so the rest of the request is not wanted (RFC 9113, 8.1).
            connection.out.append(f.rst_stream(self.number, f.NO_ERROR))
        if code == Code.OK:
            connection.guard.ended_well()
        self._end(code.name)

    def _start(self, data: bytes) -> None:
        """Have a message answered."""
        try:
            answers = self.exchange.receive(data)
        except Exception as error:
            self._failed(error)
            return
        if type(answers) is tuple:  # most are
            if answers and (sent := self._send_now(answers)) < len(answers):
                self._answers = iter(answers[sent:])
            elif self.exchange.done:
                self.finish(Code.OK)
        elif isinstance(answers, Coroutine):
            self._task = asyncio.get_running_loop().create_task(answers)
            self._task.add_done_callback(self._decided)
        else:
            self._answers = iter(answers)

    def _send_now(self, answers: tuple[bytes, ...]) -> int:
        """Send answers as long as each fits one frame and the windows; returns how many went."""
        connection = self.connection
        if connection.paused:
            return 0
        out, most, number = connection.out, connection.frame_size, self.number
        window = room = self.window if self.window < connection.window else connection.window
        sent = 0
        for answer in answers:
            length = len(answer)
            size = length + PREFIX_SIZE
            if size > most or size > room:
                break
            if not self.answered:
                self.answered = True
                connection.send_headers(number, RESPONSE, 0)
            out += (_DATA_HEAD(size >> 16, size & 0xFFFF, 0, 0, number, 0, length), answer)
            room -= size
            sent += 1
        self.window -= window - room
        connection.window -= window - room
        return sent

    def _decided(self, task: asyncio.Task[Iterable[bytes]]) -> None:
        """The answers that came later are here."""
        self._task = None
        if self.ended:
            return
        if task.cancelled():
            self.finish(Code.CANCELLED, "the decision was cancelled")
        elif (error := task.exception()) is not None:
            self._failed(error)
        else:
            self._answers = iter(task.result())
            self._go_on()
        self.connection.flush()

    def _go_on(self) -> None:
        """Send answers until a window is full, then take the next message that waits, and so on."""
        while not self.ended:
            if self._answers is not None:
                try:
                    sent = self._send(self._answers)
                except Exception as error:
                    self._failed(error)
                    return
                if not sent:
                    if self.window > 0:
                        self.connection.waiting[self] = None
                    return
                self._answers = None
                if self.exchange.done:
                    self.finish(Code.OK)
                    return
            if self._task is not None:
                return
            if not self._queue:
                if self.remote_closed and not self.stays:
                    self.finish(Code.OK)
                return
            data = self._queue.popleft()
            self._held -= len(data)
            self.replenish()
            self._start(data)

    def _send(self, answers: Iterator[bytes]) -> bool:
        """Whether everything has left. Answers are built one by one, each when there is room for it."""
        connection = self.connection
        turn = QUANTUM
        if self._pending is not None:
            sent, whole = self._push(turn)
            if not whole:
                return False
            turn -= sent
        for answer in answers:
            if not self.answered:
                self.answered = True
                connection.send_headers(self.number, RESPONSE, 0)
            length = len(answer)
            size = length + PREFIX_SIZE
            fits = size <= self.window and size <= connection.window and size <= connection.frame_size
            if fits and not connection.paused:
                self.window -= size
                connection.window -= size
                connection.out.append(_DATA_HEAD(size >> 16, size & 0xFFFF, f.DATA, 0, self.number, 0, length))
                connection.out.append(answer)
                continue
            self._begin(answer)
            sent, whole = self._push(turn)
            if not whole:
                return False
            turn -= sent
        return True

    def _begin(self, answer: bytes) -> None:
        """An answer that does not fit one frame, or not now. Raises CallError for one that must not be sent."""
        limit = self.connection.options.max_send
        if len(answer) > limit:
            raise CallError(Code.RESOURCE_EXHAUSTED, f"an answer is larger than max ({len(answer)} vs. {limit})")
        self._pending, self._prefix = memoryview(answer), b"\0" + len(answer).to_bytes(4)

    def _push(self, most: int) -> tuple[int, bool]:
        """Send of the pending message what the windows allow, about ``most`` bytes; returns how many went, and whether
        none is left."""
        connection, pending, prefix = self.connection, self._pending, self._prefix
        assert pending is not None
        at, size, sent = 0, len(pending), 0
        while (at < size or prefix) and sent < most and not connection.paused:
            length = min(size - at + len(prefix), self.window, connection.window, connection.frame_size)
            if length <= 0:
                break
            self.window -= length
            connection.window -= length
            sent += length
            head = f.data_head(length, self.number)
            if prefix:
                head += prefix[:length]
                prefix, length = prefix[length:], max(0, length - len(prefix))
            connection.out.append(head)
            if length:
                connection.out.append(pending[at : at + length])
                at += length
        if sent:
            self.stuck = 0
        self._prefix = prefix
        whole = at == size and not prefix
        self._pending = None if whole else pending[at:]
        return sent, whole

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, CallError):
            self.finish(error.code, str(error))
        elif isinstance(error, ProtocolError):
            self.finish(Code.INVALID_ARGUMENT, str(error))
        else:
            log.error("a stream failed; this is a bug", exc_info=error)
            self.finish(Code.UNKNOWN, f"unexpected {type(error).__name__}")

    def _expired(self) -> None:
        self._timer = None
        self.finish(Code.DEADLINE_EXCEEDED, "the call's deadline has passed")
        self.connection.flush()

    def _end(self, code: str) -> None:
        if self.ended:
            return
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._answers = self._pending = None
        self._queue.clear()
        self.connection.closed(self)
        self.exchange.close("INTERNAL" if code == "UNKNOWN" else code)
