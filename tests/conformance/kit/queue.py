# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that wait: streams that have asked and not been answered, and a picker for one request at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import yaml

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Refused, Routed, Talk, fresh, refuse
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

FAIRNESS = "x-llm-d-inference-fairness-id"
OBJECTIVE = "x-llm-d-inference-objective"
TTFT = "x-llm-d-slo-ttft-ms"
OUTCOMES = "llm_d_epp_flow_control_requests_total"
SIZE = "llm_d_epp_flow_control_queue_size"
PRIORITIES = {"urgent": 10, "high": 5, "low": -1, "batch": -10}
"""Objectives that every pool of this kind has, and their priorities."""


def config(
    flow: Mapping[str, Any] | None = None,
    plugins: list[dict[str, Any]] | None = None,
    detector: Mapping[str, Any] | None = None,
    gate: bool = True,
) -> str:
    """A configuration in which an engine takes one request at a time, unless ``detector`` says otherwise."""
    one = {"type": "concurrency-detector", "parameters": {"maxConcurrency": 1}}
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": ["flowControl"] if gate else [],
        "plugins": [{"type": "random-picker"}, dict(detector or one), *(plugins or [])],
        # However slowly a case goes: nobody's time is over unless the case is about that.
        "flowControl": {"defaultRequestTTL": "30m", **(flow or {})},
    }
    return yaml.safe_dump(document)


class Request:
    """A request that has been sent, and need not have been answered yet."""

    def __init__(self, found: Picker, flow: str = "", objective: str = "", **more: Any) -> None:
        """``more`` goes into the model server's request: ``headers``, ``hint``, ``body``, ``empty`` (headers only)."""
        self.picker, self.flow = found, flow
        self.talk = Talk(found.stream())
        headers = dict(more.pop("headers", {}))
        headers |= {FAIRNESS: flow} if flow else {}
        headers |= {OBJECTIVE: objective} if objective else {}
        self._empty = more.pop("empty", False)
        body = more.pop("body", None) or fresh()
        metadata = wire.subset(more.pop("hint")) if "hint" in more else None
        self.talk.stream.send(wire.request_headers(headers, end=self._empty, metadata=metadata, **more))
        if not self._empty:
            self.talk.stream.send(wire.request_body(body, metadata=metadata))

    @property
    def waits(self) -> bool:
        """Whether there is no reply for a moment."""
        return not self.talk.stream.peek()

    def outcome(self) -> Routed | Refused:
        """What becomes of it, once that is known."""
        return self.talk._outcome(with_body=not self._empty)

    def routed(self) -> Routed:
        """The same, for a request that must get an endpoint."""
        outcome = self.outcome()
        assert isinstance(outcome, Routed), f"refused: {outcome}"
        return outcome

    def refused(self) -> Refused:
        """The same, for a request that must not."""
        outcome = self.outcome()
        assert isinstance(outcome, Refused), f"routed to {outcome.headers[wire.DESTINATION]}"
        return outcome

    def finish(self, tokens: tuple[int, int] = (7, 10)) -> None:
        """The engine answers it to the end; ``tokens`` are those of the prompt and of the answer."""
        prompt, completion = tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        self.talk.answer(json.dumps({"usage": usage}).encode())
        self.talk.finish()

    def leave(self) -> None:
        """The client goes away."""
        self.talk.stream.close()


class Queue:
    """A picker whose engines are taken, and requests that wait one behind the other."""

    def __init__(self, found: Picker, pool: Pool) -> None:
        self.picker, self.pool = found, pool
        self._open: list[Request] = []

    def ask(self, flow: str = "", objective: str = "", **more: Any) -> Request:
        """Send a request and leave it. ``objective`` is one of ``PRIORITIES``, or any other name."""
        objective = f"{self.pool.name}-{objective}" if objective in PRIORITIES else objective
        request = Request(self.picker, flow, objective, **more)
        self._open.append(request)
        return request

    def take(self, flow: str = "", objective: str = "", **more: Any) -> Request:
        """Send a request that is routed at once, and so takes a place."""
        request = self.ask(flow, objective, **more)
        request.routed()
        return request

    def put(self, flow: str = "", objective: str = "", **more: Any) -> Request:
        """Send a request that has to wait, so that what is sent after it is behind it."""
        request = self.ask(flow, objective, **more)
        self.fence()
        return request

    def fence(self) -> None:
        """Wait until what was sent is where it belongs: a request behind it has been refused."""
        refuse(self.picker, b"nonsense")

    def size(self) -> float:
        """How many wait."""
        _, text = self.picker.get("/metrics")
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(SIZE + "{"))

    def outcomes(self, outcome: str, **labels: str) -> float:
        """How many have had this outcome."""
        return self.picker.metrics().value(OUTCOMES, outcome=outcome, **labels)

    def order(self, running: Request, waiting: list[Request], tokens: tuple[int, int] = (7, 10)) -> None:
        """Answers end one after the other; the waiting ones must get their places in just this order."""
        for request in waiting:
            running.finish(tokens)
            request.routed()
            running = request
        running.finish(tokens)

    def clear(self) -> None:
        """All clients leave."""
        for request in self._open:
            request.leave()
        self._open.clear()
        eventually(self.size, lambda size: size == 0)


@contextlib.contextmanager
def queueing(around: World, name: str, text: str, *flags: str, engines: int = 1) -> Iterator[Queue]:
    """A pool of its own, a picker for it, and the objectives of ``PRIORITIES``, which it knows."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(around.pool(name, engines=engines))
        for objective, priority in PRIORITIES.items():
            stack.enter_context(around.objective(name, f"{name}-{objective}", priority))
        found = stack.enter_context(around.picker(name, *flags, config=text))
        queue = Queue(found, pool)
        if engines:
            for objective in PRIORITIES:
                eventually(partial(_known, queue, objective))
        yield queue


def _known(queue: Queue, objective: str) -> bool:
    request = queue.take(objective=objective)
    request.finish()
    return queue.outcomes("Dispatched", priority=str(PRIORITIES[objective])) > 0
