# SPDX-License-Identifier: GPL-3.0-or-later
"""The ext_proc protocol of one stream, without any I/O: a message goes in, messages come out.

The one thing that the machine cannot do itself is to choose an endpoint. It then returns :class:`NeedDecision` in place
of messages, and expects :meth:`StreamMachine.routed` or :meth:`StreamMachine.rejected` before anything else. When this
happens depends on the body mode, which Envoy announces in its first message:

=====================  =============================================  ==================================================
mode of the request    the decision is asked for                      what the decision can know
=====================  =============================================  ==================================================
FULL_DUPLEX_STREAMED   at the end of the body, or at the trailers     the body
BUFFERED               at the one body message                        the body
BUFFERED_PARTIAL       at the one body message                        the beginning of the body
STREAMED, NONE         at the headers: Envoy sends them on at once    the headers
none (no body)         at the headers                                 the headers
=====================  =============================================  ==================================================

Without an announcement the mode is FULL_DUPLEX_STREAMED, the only one that the protocol requires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from epp.extproc import messages as m
from epp.extproc import replies as r
from epp.extproc.incoming import (
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    Incoming,
)
from epp.extproc.messages import BodyMode
from epp.extproc.response import ResponsePhase
from epp.model import Immediate, Rejection
from epp.requests import AnswerReader, UsageTail, replace_model

Messages = Iterable[bytes]
"""Serialised ProcessingResponses, in order; large ones are made when they are asked for."""


_FULL_DUPLEX: Final = BodyMode.FULL_DUPLEX_STREAMED
_UNSEEN: Final = (BodyMode.STREAMED, BodyMode.NONE)
"""Modes in which a request is routed before its body is seen."""


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow at this point; the stream cannot go on."""


@dataclass(slots=True)
class NeedDecision:
    """A request that waits for an endpoint."""

    headers: Mapping[str, str]
    body: bytes
    """Empty when there is none, or when it is not seen before the decision."""
    subset: frozenset[str] | None
    """Endpoints that the gateway allows; None for all."""
    truncated: bool = False
    """The body may go on beyond what is here."""
    announced: bool = False
    """A body was announced. It may still have turned out empty."""
    hints: tuple[str, ...] = ()
    """What the gateway says of the pool: see :class:`epp.extproc.incoming.Context`."""


@dataclass(slots=True)
class Route:
    """The answer to :class:`NeedDecision`."""

    destination: str
    """``ip:port``, several with commas; empty to leave the choice to others."""
    headers: dict[str, str] = field(default_factory=dict)
    """More headers to set on the request."""
    removed: tuple[str, ...] = ()
    """Headers to take from the request."""
    scores: Mapping[str, float] = field(default_factory=dict)
    body: bytes | None = None
    """What goes on in place of the body; None for the body as it came."""
    model: str = ""
    """The model that the client asked for."""
    target_model: str = ""
    """The model that the endpoint is asked for. Where it differs, names change in the body, and back in the answer."""
    follow: Callable[[], AnswerReader | None] = UsageTail
    """Makes what reads the token counts of the answer; None for the usual one."""


def nothing_more(served: str) -> Mapping[str, str]:
    """What :attr:`StreamMachine.on_response` says where nobody asks for more."""
    return {}


class StreamMachine:
    """One ext_proc stream."""

    def __init__(
        self, hints: tuple[str, ...] = (), assumed: BodyMode = BodyMode.FULL_DUPLEX_STREAMED, marks: bool = True
    ) -> None:
        """``hints`` is what the gateway said of the pool when it opened the stream; ``assumed`` is the mode of both
        bodies where Envoy announces none; ``marks``: a header on answers says that they passed here."""
        self.done = False
        """No message is expected any more: the stream can be closed."""
        self.response: ResponsePhase | None = None
        """The answer, once it has begun."""
        self.on_response: Callable[[str], Mapping[str, str]] = nothing_more
        """Asked for more headers of the answer, once it begins; is told which endpoint served it, if that is known."""
        self._request_mode = self._response_mode = assumed
        self._marks = marks
        self._headers: dict[str, str] | None = None
        self._subset: frozenset[str] | None = None
        self._held: list[bytes] = []
        self._body = b""
        self._continue: Callable[[Route], Messages] | None = None
        self._route: Route | None = None
        self._renaming = False
        self._ended = False
        self._first = True
        self._hints = hints

    def feed(self, message: Incoming) -> Messages | NeedDecision:
        """Take the next message. Raises ProtocolError."""
        if self._first:
            self._first = False
            self._announced(message)
        kind = message.kind
        if kind == RESPONSE_BODY:
            return (self.response or self._answer()).body(message.body, message.end_of_stream)
        if kind == REQUEST_BODY:
            return self._request_body(message.body, message.end_of_stream)
        if kind == REQUEST_HEADERS:
            return self._request_headers(message)
        if kind == RESPONSE_HEADERS:
            more = self.on_response(message.context().served)
            return self._answer().headers(message.headers(), message.end_of_stream, more)
        if kind == REQUEST_TRAILERS:
            return self._request_trailers()
        if kind == RESPONSE_TRAILERS:
            return self._answer().trailers()
        raise ProtocolError("a message without a request; is the peer an Envoy?")

    def routed(self, route: Route) -> Messages:
        """The decision that was asked for."""
        proceed, self._continue = self._continue, None
        assert proceed is not None, "no decision was asked for"
        self._route = route
        self._renaming = route.model != route.target_model
        return proceed(route)

    def rejected(self, rejection: Immediate) -> Messages:
        """The request goes nowhere: the client is answered, and the stream ends."""
        self._continue = None
        self._body = b""
        self._held.clear()
        self.done = True
        return (r.immediate(rejection),)

    def _announced(self, message: Incoming) -> None:
        modes = message.context().modes
        if modes is None:
            return
        try:
            self._request_mode, self._response_mode = m.body_mode(modes[0]), m.body_mode(modes[1])
        except ValueError as error:
            raise ProtocolError(str(error)) from None

    def _need(self, proceed: Callable[[Route], Messages], body: bytes = b"", truncated: bool = False) -> NeedDecision:
        self._continue = proceed
        self._body = body
        announced = proceed != self._on_headers
        return NeedDecision(self._headers or {}, body, self._subset, truncated, announced, self._hints)

    def _request_headers(self, message: Incoming) -> Messages | NeedDecision:
        if self._headers is not None or self.response:
            raise ProtocolError("request headers for the second time, or after the response")
        self._headers = message.headers()
        context = message.context()
        self._subset = context.subset
        self._hints += context.hints
        if message.end_of_stream:
            self._ended = True
            return self._need(self._on_headers)
        if self._request_mode is _FULL_DUPLEX:
            return ()
        if self._request_mode in _UNSEEN:
            return self._need(self._on_headers)
        return (r.request_headers(),)  # Envoy sends the body after this, and holds the headers until it is answered

    def _request_body(self, body: bytes, end: bool) -> Messages | NeedDecision:
        if self._headers is None or self._ended:
            raise ProtocolError(
                "a request body behind its end"
                if self._ended
                else "a request body without headers; set request_header_mode to SEND"
            )
        self._ended = end
        if self._request_mode is _FULL_DUPLEX:
            if body:
                self._held.append(body)
            return self._need_whole(self._full_duplex) if end else ()
        if self._request_mode in _UNSEEN:
            # Both were routed on their headers. Who announces no body and sends one all the same has it pass.
            return self._streamed_chunk(body, end)
        self._ended = True  # buffered bodies come in one message, whatever follows
        partial = self._request_mode == BodyMode.BUFFERED_PARTIAL and not end
        return self._need(self._on_body, body, truncated=partial)

    def _request_trailers(self) -> Messages | NeedDecision:
        if self._headers is None:
            raise ProtocolError("request trailers without headers; set request_header_mode to SEND")
        if self._route is None and self._request_mode == BodyMode.FULL_DUPLEX_STREAMED:
            self._ended = True
            return self._need_whole(self._full_duplex_with_trailers)
        if self._held:
            return self.rejected(Rejection(400, "BadRequest", "model not found in request body"))
        return (r.REQUEST_TRAILERS,)

    def _need_whole(self, proceed: Callable[[Route], Messages]) -> NeedDecision:
        body = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        return self._need(proceed, body)

    def _on_headers(self, route: Route) -> tuple[bytes, ...]:
        common = r.routing(route.destination, route.headers, removed=route.removed)
        return (r.request_headers(common, _metadata(route)),)

    def _on_body(self, route: Route) -> Messages:
        self._body = b""
        headers = route.headers
        if (
            route.body is not None
            and self._request_mode == BodyMode.BUFFERED
            and "content-length" in (self._headers or {})
        ):
            # The one mode in which Envoy lets us change the length, and insists that it fits the new body.
            headers = {**headers, "content-length": str(len(route.body))}
        common = r.routing(route.destination, headers, route.body, route.removed)
        return (r.request_body(common, _metadata(route)),)

    def _full_duplex(self, route: Route) -> Messages:
        return self._in_pieces(route, end=True)

    def _full_duplex_with_trailers(self, route: Route) -> Messages:
        return chain(self._in_pieces(route, end=False), (r.REQUEST_TRAILERS,))

    def _in_pieces(self, route: Route, end: bool) -> Messages:
        body = self._body if route.body is None else route.body
        self._body, route.body = b"", None
        head, pieces = self._on_headers(route), r.streamed(body, end, True)
        return head + pieces if isinstance(pieces, tuple) else chain(head, pieces)

    def _streamed_chunk(self, chunk: bytes, end: bool) -> Messages:
        """Chunks pass as they are, unless the model's name changes: then they wait until it has been found."""
        if self._route is None or not self._renaming:
            return (r.request_body(),)
        self._held.append(chunk)
        so_far = b"".join(self._held)
        kind = (self._headers or {}).get("content-type", "")
        replaced = replace_model(so_far, self._route.target_model, kind)
        if replaced is None and not end:
            self._held = [so_far]
            return (r.request_body(r.replacement(b"")),)
        if replaced is None:
            return self.rejected(Rejection(400, "BadRequest", "model not found in request body"))
        self._held.clear()
        self._renaming = False
        self._route.model = replaced.model
        return (r.request_body(r.replacement(replaced.body)),)

    def _answer(self) -> ResponsePhase:
        """The response phase. A stream may begin with it: then there is no request to know anything of."""
        if self.response is None:
            if self._continue is not None:
                raise ProtocolError("a response before the request was routed")
            rename = None
            if self._route and self._route.model and self._route.model != self._route.target_model:
                rename = (self._route.target_model, self._route.model)
            tail = self._route.follow() if self._route else None
            self.response = ResponsePhase(self._response_mode, rename, self._marks, tail)
        return self.response


def _metadata(route: Route) -> bytes:
    return r.lb_metadata(route.destination, route.scores) if route.destination else b""
