# SPDX-License-Identifier: GPL-3.0-or-later
"""One stream at work: drives the state machine, has requests routed, sees to it that every endpoint is given back.

A transport opens one :class:`Exchange` per stream, hands it each message, and closes it when the stream ends, for
whatever reason. The transport itself knows nothing of routing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, Protocol

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from epp.extproc.director import Recorder, Ticket
from epp.extproc.machine import NeedDecision, StreamMachine
from epp.model import Rejection

log = logging.getLogger(__name__)

Messages = Iterable[ProcessingResponse]

DECISION_TIMEOUT = 5.0
"""Seconds that a request may wait for its endpoint. Envoy itself sets no limit in FULL_DUPLEX_STREAMED."""


class Router(Protocol):
    """What chooses: at once, or later (when requests queue)."""

    def decide(self, need: NeedDecision) -> Ticket | Awaitable[Ticket]:
        """Route one request; raises Rejection."""


class StreamService:
    """Opens exchanges; what a transport is given."""

    def __init__(self, router: Router, recorder: Recorder, decision_timeout: float = DECISION_TIMEOUT) -> None:
        self._router = router
        self._recorder = recorder
        self._timeout = decision_timeout
        self.streams = 0
        """Streams that are open now."""

    def open(self) -> Exchange:
        """A stream begins."""
        self.streams += 1
        self._recorder.stream_opened()
        return Exchange(self, self._router, self._recorder, self._timeout)

    def closed(self, seconds: float, code: str) -> None:
        """A stream has ended; for exchanges."""
        self.streams -= 1
        self._recorder.stream_closed(seconds, code)


class Exchange:
    """One ext_proc stream."""

    def __init__(self, service: StreamService, router: Router, recorder: Recorder, timeout: float) -> None:
        self._service = service
        self._router = router
        self._recorder = recorder
        self._timeout = timeout
        self._machine = StreamMachine()
        self._ticket: Ticket | None = None
        self._opened = time.monotonic()
        self._first_token = False

    @property
    def done(self) -> bool:
        """The last message has been answered: close the stream."""
        return self._machine.done

    def receive(self, message: ProcessingRequest) -> Messages | Coroutine[Any, Any, Messages]:
        """The answers to one message, later if the decision takes its time. Raises ProtocolError."""
        out = self._machine.feed(message)
        if isinstance(out, NeedDecision):
            return self._decide(out)
        if self._machine.response is not None:
            self._follow_response()
        return out

    def close(self, code: str) -> None:
        """The stream has ended with this gRPC status. Gives back what is still held."""
        response = self._machine.response
        if self._ticket is not None and self._ticket.open:
            if response is not None and response.status < 400:
                self._ticket.finish(response.size, response.tail.usage())
            else:
                self._ticket.fail("ClientDisconnected" if response is None else "ModelServerError")
        self._service.closed(time.monotonic() - self._opened, code)

    def _decide(self, need: NeedDecision) -> Messages | Coroutine[Any, Any, Messages]:
        try:
            ticket = self._router.decide(need)
        except Exception as error:
            return self._machine.rejected(_rejection(error))
        return self._accept(ticket) if isinstance(ticket, Ticket) else self._decide_later(ticket)

    async def _decide_later(self, pending: Awaitable[Ticket]) -> Messages:
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                ticket = await pending
        except TimeoutError as error:
            if not deadline.expired():
                return self._machine.rejected(_rejection(error))
            message = f"no endpoint was chosen within {self._timeout:g} s"
            return self._machine.rejected(Rejection(503, "ServiceUnavailable", message, "rejected-ttl-expired"))
        except Exception as error:
            return self._machine.rejected(_rejection(error))
        return self._accept(ticket)

    def _accept(self, ticket: Ticket) -> Messages:
        self._ticket = ticket
        return self._machine.routed(ticket.route)

    def _follow_response(self) -> None:
        """Take note of how far the answer is. Its endpoint is given back with its last byte."""
        response, ticket = self._machine.response, self._ticket
        if response is None or ticket is None or not ticket.open:
            return
        if response.size and not self._first_token and response.status < 400:
            self._first_token = True
            ticket.record.first_token(response.streaming)
        if not response.ended:
            return
        if response.status >= 400:
            ticket.fail("ModelServerError")
        else:
            ticket.finish(response.size, response.tail.usage())


def _rejection(error: Exception) -> Rejection:
    """What the client is told of an error; one that nobody foresaw is logged."""
    if isinstance(error, Rejection):
        log.debug("rejected with %d: %s", error.status, error.message)
        return error
    log.error("a decision failed; this is a bug, or a plugin's", exc_info=error)
    return Rejection(500, "Internal", f"scheduling failed: {type(error).__name__}")
