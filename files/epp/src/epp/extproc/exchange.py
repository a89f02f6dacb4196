# SPDX-License-Identifier: GPL-3.0-or-later
"""One stream at work: drives the state machine, has requests routed, sees to it that every endpoint is given back.

A transport opens one :class:`Exchange` per stream, hands it each message, and closes it when the stream ends, for
whatever reason. The transport itself knows nothing of routing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from epp.extproc import messages as m
from epp.extproc import replies as r
from epp.extproc.director import Report, StreamRecorder, Ticket
from epp.extproc.incoming import read
from epp.extproc.machine import NeedDecision, ProtocolError, StreamMachine, nothing_more
from epp.extproc.watchdog import Hung
from epp.model import Immediate, Rejection, Reply

clock: Final = time.perf_counter
log: Final = logging.getLogger(__name__)

Messages = Iterable[bytes]
"""Serialised ProcessingResponses; large ones are made when they are asked for."""

DECISION_TIMEOUT: Final = 5.0
"""Seconds that a request may wait for its endpoint. Envoy itself sets no limit in FULL_DUPLEX_STREAMED."""

TOO_LATE: Final = "rejected-ttl-expired"
"""Reason of a decision that did not come in time."""


class Router(Protocol):
    """What chooses: at once, or later (when requests queue)."""

    def decide(self, need: NeedDecision) -> Ticket | Awaitable[Ticket]:
        """Route one request; raises Rejection."""

    def response_received(self, served: str) -> dict[str, str]:
        """An answer has begun whose request was not seen; headers to set on it."""


class StreamService:
    """Opens exchanges; what a transport is given."""

    def __init__(
        self,
        router: Router,
        recorder: StreamRecorder,
        decision_timeout: float | None = DECISION_TIMEOUT,
        watchdog: AbstractContextManager[None] | None = None,
        interruptible: bool = False,
        machine: Callable[[tuple[str, ...]], StreamMachine] = StreamMachine,
    ) -> None:
        """``decision_timeout`` is None where the router keeps time itself. ``watchdog`` is entered for each decision;
        it ends one that hangs with :class:`Hung`. ``interruptible`` says that tickets may be evicted. ``machine`` makes
        the state machine of a stream from the gateway's hints."""
        self._make_machine = machine
        self._router = router
        self._recorder = recorder
        self._timeout = decision_timeout
        self.watchdog = watchdog or nullcontext()
        self.interruptible = interruptible
        self.streams = 0
        """Streams that are open now."""
        self._metadata: Sequence[tuple[str, str | bytes]] = ()
        self._hints: tuple[str, ...] = ()
        """What the gateway said of the pool with the last call, and in these metadata."""

    def open(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> Exchange:
        """A stream begins; ``metadata`` is what the gateway sent along with the call."""
        self.streams += 1
        self._recorder.stream_opened()
        if metadata is not self._metadata:  # a transport that remembers header blocks hands over the same object
            self._metadata = metadata
            self._hints = tuple(value for key, value in metadata if key == m.POOL and isinstance(value, str))
        return Exchange(self, self._router, self._timeout, self._make_machine(self._hints))

    def processed(self, seconds: float) -> None:
        """An answer has passed, and took this much of our own time; for exchanges."""
        self._recorder.processing("response", seconds)

    def closed(self, seconds: float, code: str) -> None:
        """A stream has ended; for exchanges."""
        self.streams -= 1
        self._recorder.stream_closed(seconds, code)


class Exchange:
    """One ext_proc stream."""

    def __init__(self, service: StreamService, router: Router, timeout: float | None, machine: StreamMachine) -> None:
        self.interruptible = service.interruptible
        """It may have something to say that was not asked for."""
        self.push: Callable[[Messages], None] | None = None
        """For the transport of an interruptible exchange to set: sends its last answers out of turn."""
        self._service = service
        self._router = router
        self._timeout = timeout
        self._machine = machine
        self._machine.on_response = self._begun
        self._ticket: Ticket | None = None
        self._pending: asyncio.Future[Ticket] | None = None
        """The decision, while it is waited for."""
        self._closed = False
        self._opened = time.monotonic()
        self._size = 0
        self._spent = 0.0
        """Seconds of our own work on the answer."""

    @property
    def done(self) -> bool:
        """The last message has been answered: close the stream."""
        return self._machine.done

    def receive(self, data: bytes) -> Messages | Coroutine[Any, Any, Messages]:
        """The answers to one ProcessingRequest, later if the decision takes its time. Raises ProtocolError."""
        started = clock() if self._ticket is not None else 0.0
        try:
            out = self._machine.feed(read(data))
        except DecodeError as error:
            raise ProtocolError(f"not a ProcessingRequest: {error}") from None
        if isinstance(out, NeedDecision):
            return self._decide(out)
        if self._ticket is not None and self._machine.response is not None:
            self._spent += clock() - started
            report = self._follow_response()
            if report:
                return r.reported(out, report)
        return out

    def close(self, code: str) -> None:
        """The stream has ended with this gRPC status. Gives back what is still held."""
        self._closed = True
        self.push = None
        self._machine.on_response = nothing_more  # bound to this: a circle, which only the collector could free
        if self._pending is not None:
            self._pending.cancel()
        response = self._machine.response
        if self._ticket is not None and self._ticket.open:
            self._ticket.on_evict = None
            if response is not None and response.status < 400:
                self._ticket.finish(response.size, response.tail.usage())
            else:
                self._ticket.fail("ClientDisconnected" if response is None else "ModelServerError")
        self._service.closed(time.monotonic() - self._opened, code)

    def _decide(self, need: NeedDecision) -> Messages | Coroutine[Any, Any, Messages]:
        try:
            with self._service.watchdog:
                ticket = self._router.decide(need)
        except (Exception, Hung) as error:
            return self._refuse(error)
        if isinstance(ticket, Ticket):
            return self._accept(ticket)
        self._pending = asyncio.ensure_future(ticket)
        return self._decide_later(self._pending)

    async def _decide_later(self, pending: asyncio.Future[Ticket]) -> Messages:
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                ticket = await pending
        except asyncio.CancelledError:
            _let_go(pending)
            raise
        except TimeoutError as error:
            if not deadline.expired():
                return self._refuse(error)
            _let_go(pending)
            message = f"no endpoint was chosen within {self._timeout:g} s"
            return self._refuse(Rejection(503, "ServiceUnavailable", message, TOO_LATE))
        except (Exception, Hung) as error:
            return self._refuse(error)
        finally:
            self._pending = None
        return self._accept(ticket)

    def _refuse(self, error: Exception | Hung) -> Messages:
        return self._machine.rejected(_rejection(error))

    def _accept(self, ticket: Ticket) -> Messages:
        if self._closed:
            ticket.fail("ClientDisconnected")
            return ()
        if ticket.evicted is not None:  # while the decision was on its way to here
            return self._refuse(ticket.evicted)
        self._ticket = ticket
        if self.interruptible:
            ticket.on_evict = self._evicted
        return self._machine.routed(ticket.route)

    def _evicted(self, rejection: Rejection) -> None:
        if self.push is not None:
            self.push(self._machine.rejected(rejection))

    def _begun(self, served: str) -> dict[str, str]:
        """The answer's headers are here: count the request where it is served, and let plugins add headers."""
        if self._ticket is None:
            return self._router.response_received(served)
        if served:
            self._ticket.served(served)
        return self._ticket.response_received(served)

    def _follow_response(self) -> Report:
        """Take note of how far the answer is. Its endpoint is given back with its last byte; then the gateway may be
        told something of it."""
        response, ticket = self._machine.response, self._ticket
        if response is None or ticket is None or not ticket.open:
            return {}
        if response.size != self._size and response.status < 400:
            streaming = response.streaming or ticket.request.stream
            if streaming and not self._size:
                ticket.first_piece()
            self._size = response.size
            ticket.record.piece(streaming)
            if ticket.followed:
                ticket.piece()
        if not response.ended:
            return {}
        self._service.processed(self._spent)
        if response.status >= 400:
            ticket.fail("ModelServerError")
            return {}
        return ticket.finish(response.size, response.tail.usage())


def _let_go(pending: asyncio.Future[Ticket]) -> None:
    """Nobody wants the decision any more; if it has been made after all, its endpoint is given back."""
    if pending.done() and not pending.cancelled() and pending.exception() is None:
        pending.result().fail("ClientDisconnected")


def _rejection(error: Exception | Hung) -> Immediate:
    """What the client is told of an error; one that nobody foresaw is logged."""
    if isinstance(error, Reply):
        return error
    if isinstance(error, Hung):
        log.error("a decision was ended; the trace says where it hung", exc_info=error)
        return Rejection(503, "ServiceUnavailable", str(error), TOO_LATE)
    if isinstance(error, Rejection):
        log.debug("rejected with %d: %s", error.status, error.message)
        return error
    log.error("a decision failed; this is a bug, or a plugin's", exc_info=error)
    return Rejection(500, "Internal", f"scheduling failed: {type(error).__name__}")
