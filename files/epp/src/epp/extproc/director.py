# SPDX-License-Identifier: GPL-3.0-or-later
"""From the bytes of a request to its endpoint, and from the end of its answer back to those who keep count.

The order is fixed: parse, objective and model rewrite, candidates (the pool's endpoints that the gateway allows),
schedule, pre-request hooks. A request that gets an endpoint gives it back exactly once, through its :class:`Ticket`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

from epp.extproc import messages as m
from epp.extproc.machine import NeedDecision, Route
from epp.extproc.tracing import Tracing
from epp.model import Charge, Decision, Endpoint, Flow, InferenceRequest, Rejection, Usage
from epp.requests import BodyError, ParsedBody, Parsers, replace_model

clock: Final = time.perf_counter
log: Final = logging.getLogger(__name__)

Report = Mapping[str, Mapping[str, float]]
"""Dynamic metadata by namespace and key."""

IF_AVAILABLE: Final = "if-available"
"""Preference of a client that wants its answer only from an endpoint which need not compute the whole prompt."""


class Scheduler(Protocol):
    """Chooses endpoints; see ``epp.scheduling``."""

    asks: bool
    """Whether services have to be asked before; then :meth:`prepare` comes first."""
    follows: bool
    """Whether anybody wants to hear of the pieces of answers."""

    async def prepare(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> None:
        """Ask services about the request; whatever fails is missing."""

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        """Bytes of an answer's body have come."""

    def request_headers(self, request: InferenceRequest) -> None:
        """Let plugins complete the request by its headers."""

    def schedule(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> Decision:
        """Choose among the candidates; raises Rejection."""

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """The request goes out now."""

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> dict[str, str]:
        """The answer's headers are here, of a request that may be unknown; headers to set on it."""

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        """The answer has ended."""

    def report(self, request: InferenceRequest, usage: Usage | None) -> Report:
        """What the gateway shall know of an answer that has ended."""


class Hold(Protocol):
    """A request in the in-flight counts; see ``epp.datalayer``."""

    def begun(self) -> None:
        """The answer has begun."""

    def computed(self) -> None:
        """The first token is here."""

    def moved(self, hostport: str) -> None:
        """It is served at another place than was meant."""

    def release(self) -> None:
        """The request is over."""


class Endpoints(Protocol):
    """The pool; see ``epp.datalayer``."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that may serve now."""

    def hold(self, charges: Sequence[Charge], flow: Flow) -> Hold:
        """A request of this flow goes to these endpoints."""


class Rewrite(Protocol):
    """One model in place of another; see ``epp.datalayer``."""

    @property
    def resource(self) -> str:
        """The name of the object that says so."""

    @property
    def target(self) -> str:
        """The model to ask for."""


class Objectives(Protocol):
    """What the cluster says of the requests of one pool; see ``epp.datalayer``."""

    def priority(self, objective: str, model: str) -> int:
        """The priority of a request for this model that names this objective (empty for none)."""

    def rewrite(self, model: str) -> Rewrite | None:
        """The model to ask for in place of this one; None for itself."""


class NoObjectives:
    """The cluster says nothing."""

    def priority(self, objective: str, model: str) -> int:
        """All are equal."""
        return 0

    def rewrite(self, model: str) -> Rewrite | None:
        """All are asked for as they are."""
        return None


class RequestRecord(Protocol):
    """The metrics of one request; see ``epp.observe``."""

    def piece(self, streaming: bool) -> None:
        """Bytes of the answer's body have come."""

    def finished(self, response_bytes: int, usage: Usage | None) -> None:
        """The answer has ended."""

    def failed(self, code: str) -> None:
        """The request ended in an error."""


class StreamRecorder(Protocol):
    """Metrics of streams."""

    def processing(self, phase: str, seconds: float) -> None:
        """Own work on one request."""

    def stream_opened(self) -> None:
        """A stream began."""

    def stream_closed(self, seconds: float, code: str) -> None:
        """A stream ended."""


class Recorder(StreamRecorder, Protocol):
    """Metrics; see ``epp.observe``."""

    def request(self, model: str, target_model: str, size: int, priority: int, fairness_id: str) -> RequestRecord:
        """A request has been parsed."""

    def rejected(self, code: str) -> None:
        """A request was refused before that."""

    def rewritten(self, resource: str, model: str, target_model: str) -> None:
        """A rule of the cluster has put a model in place of another."""


class FlowControl(Protocol):
    """Lets requests wait; see ``epp.flowcontrol``."""

    def submit(self, routable: Routing) -> Ticket | Awaitable[Ticket]:
        """Have a request routed, now or when its turn comes. Raises Rejection."""

    def dispatched(self, evictable: Ticket) -> None:
        """A request has got its endpoint."""

    def ended(self, evictable: Ticket) -> None:
        """It is over."""


class Ticket:
    """One request on its way: holds its endpoint until :meth:`finish` or :meth:`fail`, whichever comes first."""

    def __init__(
        self,
        request: InferenceRequest,
        decision: Decision,
        route: Route,
        record: RequestRecord,
        hold: Hold,
        owner: Director,
    ) -> None:
        self.request = request
        self.decision = decision
        self.route = route
        self.record = record
        self.hold = hold
        self._owner = owner
        self.followed = owner.follows
        """Somebody wants to hear of the pieces of the answer; see :meth:`piece`."""
        self.open = True
        """Neither has been called yet."""
        self.evicted: Rejection | None = None
        """What the client is told if the request had to make room for another one."""
        self.on_evict: Callable[[Rejection], None] | None = None
        """Tells the client so."""

    def finish(self, response_bytes: int, usage: Usage | None) -> Report:
        """The answer has ended, well or cut off after its beginning. Returns what the gateway shall know of it."""
        if not self.open:
            return {}
        self.open = False
        self.record.finished(response_bytes, usage)
        self._owner.give_back(self, usage)
        return self._owner.report(self.request, usage)

    def fail(self, code: str) -> None:
        """There will be no answer worth the name; ``code`` says why."""
        if self.open:
            self.open = False
            self.record.failed(code)
            self._owner.give_back(self, None)

    def evict(self, rejection: Rejection) -> None:
        """Give the request up, wherever it is, and tell its client why."""
        if self.open:
            self.evicted = rejection
            self.fail(rejection.code)
            if self.on_evict is not None:
                self.on_evict(rejection)

    def first_piece(self) -> None:
        """The first bytes of a streamed answer's body have come."""
        self.hold.computed()

    def piece(self) -> None:
        """Bytes of the answer's body have come."""
        self._owner.response_piece(self.request, self.decision)

    def response_received(self, served: str) -> dict[str, str]:
        """The answer's headers are here; headers to set on it."""
        self.hold.begun()
        return self._owner.response_received(served, self.request, self.decision)

    def served(self, hostport: str) -> None:
        """The gateway says who answers: it may be one of the fallbacks."""
        # A proxy in front of the endpoints says nothing of who is behind it.
        if self.open and not self.decision.destination:
            self.hold.moved(hostport)


@dataclass(slots=True, eq=False)
class Routing:
    """A request that has been understood, and wants an endpoint."""

    director: Director
    need: NeedDecision
    request: InferenceRequest
    record: RequestRecord
    spent: float
    """Seconds of our own work on it so far."""

    def grant(self) -> Ticket:
        """Send it to an endpoint now. Raises whatever keeps it from going; then nothing is held."""
        return self.director.route(self.need, self.request, self.record, clock() - self.spent)

    def refused(self, code: str) -> None:
        """It will never be granted."""
        self.record.failed(code)


@dataclass(frozen=True)
class DirectorOptions:
    """What flags say about routing."""

    subset_filter: bool = True
    """Honour the gateway's subset of endpoints."""
    emit_scores: bool = False
    """Tell the gateway the score of each endpoint."""
    tracing: Tracing | None = None
    """Gives requests a trace context; None leaves that to others."""
    parsers: Parsers = field(default_factory=Parsers)
    """What understands bodies."""


class Director:
    """Routes requests. Synchronous; one event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        pool: Endpoints,
        recorder: Recorder,
        options: DirectorOptions | None = None,
        objectives: Objectives | None = None,
        flow_control: FlowControl | None = None,
        watchdog: AbstractContextManager[None] | None = None,
    ) -> None:
        """Without ``flow_control`` no request waits. ``watchdog`` is entered for decisions in a turn of their own."""
        self._scheduler = scheduler
        self._pool = pool
        self._recorder = recorder
        self._options = options or DirectorOptions()
        self._objectives = objectives or NoObjectives()
        self._flow = flow_control
        self._watchdog = watchdog or nullcontext()
        self.follows = scheduler.follows
        self.decided: Callable[[InferenceRequest, Decision | Rejection], None] = lambda request, outcome: None
        """Takes note of every outcome."""

    def decide(self, need: NeedDecision) -> Ticket | Awaitable[Ticket]:
        """Route one request, now or when its turn comes. Raises Rejection; then nothing is held."""
        started = clock()
        try:
            parsed = self._parse(need)
        except BodyError as error:
            self._recorder.rejected("BadRequest")
            raise Rejection(400, "BadRequest", str(error)) from None
        request = self._request(need, parsed)
        try:
            self._scheduler.request_headers(request)
        except Rejection as rejection:
            self._record(request).failed(rejection.code)
            self.decided(request, rejection)
            raise
        record = self._record(request)
        if self._scheduler.asks:
            # Begun at once: a task that is cancelled before its first turn could not close the record.
            work = self._ask_first(need, request, record, clock() - started)
            return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if self._flow is None:
            return self.route(need, request, record, started)
        return self._flow.submit(Routing(self, need, request, record, clock() - started))

    async def _ask_first(
        self, need: NeedDecision, request: InferenceRequest, record: RequestRecord, spent: float
    ) -> Ticket:
        """Route a request once services have been asked about it; ``spent`` seconds were ours before."""
        try:
            request.body = self._route(need, request).body or need.body
            await self._scheduler.prepare(request, self.candidates(need.subset))
        except Rejection as rejection:
            record.failed(rejection.code)
            self.decided(request, rejection)
            raise
        except asyncio.CancelledError:
            record.failed("ClientDisconnected")
            raise
        finally:
            request.body = b""
        with self._watchdog:
            started = clock() - spent
            if self._flow is None:
                return self.route(need, request, record, started)
            found = self._flow.submit(Routing(self, need, request, record, spent))
        if isinstance(found, Ticket):
            return found
        waiting = asyncio.ensure_future(found)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().fail("ClientDisconnected")
            raise

    def _record(self, request: InferenceRequest) -> RequestRecord:
        return self._recorder.request(
            request.model, request.target_model, request.size, request.priority, request.fairness_id
        )

    def route(self, need: NeedDecision, request: InferenceRequest, record: RequestRecord, started: float) -> Ticket:
        """The second half of :meth:`decide`, for routings too; ``started`` is when our work on it began."""
        try:
            route = self._route(need, request)
            decision, hold = self._choose(need, request)
        except Rejection as rejection:
            record.failed(rejection.code)
            self.decided(request, rejection)
            raise
        except BaseException:  # also what ends a plugin that hangs
            record.failed("Internal")
            raise
        self.decided(request, decision)
        chosen = decision.endpoints
        route.destination = decision.destination or (
            chosen[0].hostport if len(chosen) == 1 else ",".join([each.hostport for each in chosen])
        )
        for key, value in decision.headers.items():
            if value:
                route.headers[key] = value
            elif key in need.headers:
                route.removed += (key,)
        if self._options.emit_scores:
            route.scores = decision.scores
        if log.isEnabledFor(logging.DEBUG):
            names = (request.request_id, request.model, request.target_model, len(need.body), route.destination)
            log.debug("request %s for %s (%s), %d bytes: to %s", *names)
        request.prompt = b""  # as large as the body, and an answer may take minutes
        self._recorder.processing("request", clock() - started)
        ticket = Ticket(request, decision, route, record, hold, self)
        if self._flow is not None:
            self._flow.dispatched(ticket)
        return ticket

    def _parse(self, need: NeedDecision) -> ParsedBody:
        headers, body = need.headers, need.body
        if need.announced and not body and headers.get(":method", "POST") == "POST":
            raise BodyError("failed to parse request body: it is empty")
        path, kind = headers.get(":path", ""), headers.get("content-type", "")
        return self._options.parsers.parse(path, kind, body, truncated=need.truncated, headers=headers)

    def _request(self, need: NeedDecision, parsed: ParsedBody) -> InferenceRequest:
        headers = need.headers
        model = parsed.model or headers.get(m.MODEL_NAME, "")
        objective = headers.get(m.OBJECTIVE[0]) or headers.get(m.OBJECTIVE[1]) or ""
        return InferenceRequest(
            request_id=headers.get(m.REQUEST_ID) or str(uuid.UUID(int=random.getrandbits(128), version=4)),
            headers=headers,
            model=model,
            target_model=self._target_model(model, headers),
            prompt=parsed.prompt,
            stream=parsed.stream,
            size=len(need.body),
            max_tokens=parsed.max_tokens,
            prompt_tokens=parsed.tokens,
            lead=parsed.lead,
            parts=parsed.parts,
            cache_salt=parsed.cache_salt,
            objective=objective,
            fairness_id=headers.get(m.FAIRNESS_ID[0]) or headers.get(m.FAIRNESS_ID[1]) or "default-flow",
            priority=self._objectives.priority(objective, model),
        )

    def _target_model(self, model: str, headers: Mapping[str, str]) -> str:
        """The model to ask for: a rule of the cluster goes before the client's header."""
        rewrite = self._objectives.rewrite(model)
        if rewrite is None:
            return headers.get(m.MODEL_REWRITE[0]) or headers.get(m.MODEL_REWRITE[1]) or model
        if rewrite.resource:
            self._recorder.rewritten(rewrite.resource, model, rewrite.target)
        return rewrite.target

    def _route(self, need: NeedDecision, request: InferenceRequest) -> Route:
        route = Route("", model=request.model, target_model=request.target_model)
        if m.REQUEST_ID not in need.headers:
            route.headers[m.REQUEST_ID] = request.request_id
        if self._options.tracing is not None:
            route.headers.update(self._options.tracing.headers(need.headers))
        reader = self._options.parsers.reader(need.headers.get(":path", ""))
        if reader is not None:
            route.follow = reader.answer
            if not reader.NAMES_MODEL:
                route.model = route.target_model  # there is nothing to rename
        if need.body and route.target_model != route.model:
            replaced = replace_model(need.body, request.target_model, need.headers.get("content-type", ""))
            if replaced is None:
                raise Rejection(400, "BadRequest", "model not found in request body")
            route.body = replaced.body
        return route

    def _choose(self, need: NeedDecision, request: InferenceRequest) -> tuple[Decision, Hold]:
        decision = self._scheduler.schedule(request, self.candidates(need.subset))
        if not decision.cached and m.PREFER in need.headers and m.prefers(need.headers, IF_AVAILABLE):
            raise Rejection(412, "PreconditionFailed", "no endpoint holds the beginning of the prompt in its cache")
        hold = self._pool.hold(decision.charges, (request.fairness_id, request.priority))
        try:
            self._scheduler.pre_request(request, decision)
        except BaseException:
            hold.release()
            raise
        return decision, hold

    def candidates(self, subset: frozenset[str] | None) -> Sequence[Endpoint]:
        """The endpoints that a gateway's subset allows."""
        endpoints = self._pool.endpoints()
        if subset is None or not self._options.subset_filter:
            return endpoints
        return [endpoint for endpoint in endpoints if endpoint.hostport in subset or endpoint.address in subset]

    def response_received(
        self, served: str, request: InferenceRequest | None = None, decision: Decision | None = None
    ) -> dict[str, str]:
        """An answer has begun, from ``served`` (``ip:port``, if known), also one whose request was never seen."""
        return self._scheduler.response_received(served, request, decision)

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        """For tickets: bytes of the answer's body have come."""
        self._scheduler.response_piece(request, decision)

    def report(self, request: InferenceRequest, usage: Usage | None) -> Report:
        """For tickets: what the gateway shall know of an answer that has ended."""
        return self._scheduler.report(request, usage)

    def give_back(self, ticket: Ticket, usage: Usage | None) -> None:
        """For tickets: the request is over."""
        ticket.hold.release()
        self._scheduler.response_complete(ticket.request, ticket.decision, usage)
        if self._flow is not None:
            self._flow.ended(ticket)
