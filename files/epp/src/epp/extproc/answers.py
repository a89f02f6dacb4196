# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that the picker answers itself, before any of them is routed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from epp.extproc.director import Ticket
from epp.extproc.exchange import Router
from epp.extproc.machine import NeedDecision
from epp.model import Endpoint, Immediate, Reply

log: Final = logging.getLogger(__name__)


class Responder(Protocol):
    """Answers some requests; see ``epp.scheduling.api``."""

    def respond(self, method: str, path: str, endpoints: Sequence[Endpoint]) -> Reply | None:
        """The answer; None to leave the request to an endpoint."""


class AnsweringRouter:
    """Asks responders about requests without a body; what they leave goes on."""

    def __init__(
        self,
        router: Router,
        responders: Sequence[Responder],
        candidates: Callable[[frozenset[str] | None], Sequence[Endpoint]],
    ) -> None:
        """``candidates`` are the endpoints that a gateway's subset allows."""
        self._router, self._responders, self._candidates = router, tuple(responders), candidates

    def decide(self, need: NeedDecision) -> Ticket | Awaitable[Ticket]:
        """Route one request. Raises Immediate for an answer of our own."""
        if not need.announced and (endpoints := self._candidates(need.subset)):
            method, path = need.headers.get(":method", ""), need.headers.get(":path", "")
            for responder in self._responders:
                reply = self._ask(responder, method, path, endpoints)
                if reply is not None:
                    raise reply
        return self._router.decide(need)

    def _ask(self, responder: Responder, method: str, path: str, endpoints: Sequence[Endpoint]) -> Reply | None:
        try:
            return responder.respond(method, path, endpoints)
        except Immediate:
            raise
        except Exception:
            log.exception("%s failed; the request goes on without it", type(responder).__name__)
            return None

    def response_received(self, served: str) -> dict[str, str]:
        """An answer has begun whose request was not seen."""
        return self._router.response_received(served)
