# SPDX-License-Identifier: GPL-3.0-or-later
"""program-aware-fairness: the flow (program, tenant) that has got the least service lately goes first.

Parameters: strategy (las), lasWeightService (0.8), lasWeightHeadWait (0.2), lasHalfLifeSeconds (60), lasDecayFactor
(0.99997 per second, in force when the half-life is 0), evictionTtlSeconds (3600), evictionSweepSeconds (300).
Formula (least attained service): service = sum over the program's answers of prompt tokens + 2 * completion tokens,
halved every lasHalfLifeSeconds. The flow with the largest lasWeightService * (1 - s) + lasWeightHeadWait * w goes next,
where s and w are its service and the wait of its head, scaled so that they are 0 for the smallest and 1 for the largest
among the flows that wait (0 for all when they are equal).
A program is forgotten evictionTtlSeconds after its last answer, looked for every evictionSweepSeconds.
Source: llm-d-router policy of the same type. It looks at every flow that waits, which is meant for hundreds of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from epp.flowcontrol.api import ScanningPolicy
from epp.flowcontrol.queue import Flow, Item
from epp.model import Decision, InferenceRequest, Usage
from epp.scheduling.api import Context, RequestHook, param

OUTPUT_WEIGHT = 2
"""A token of an answer costs about as much as two of a prompt."""


@dataclass(frozen=True)
class ProgramAwareFairnessParameters:
    """Parameters of program-aware-fairness."""

    strategy: str = param("las", choices=("las",), doc="how programs are compared: least attained service")
    las_weight_service: float = param(0.8, minimum=0, doc="weight of the service that a program has had")
    las_weight_head_wait: float = param(0.2, minimum=0, doc="weight of the time that its first request has waited")
    las_half_life_seconds: float = param(60.0, minimum=0, doc="in which time past service counts half")
    las_decay_factor: float = param(0.99997, above=0, maximum=1, doc="what is left of it per second, if that is 0")
    eviction_ttl_seconds: float = param(3600.0, above=0, doc="after which time without an answer it is forgotten")
    eviction_sweep_seconds: float = param(300.0, above=0, doc="how often that is looked for")


@dataclass(slots=True)
class _Program:
    """What is known of one program."""

    service: float = 0.0
    as_of: float = 0.0
    """When ``service`` was right."""
    in_flight: int = 0
    last_answer: float = 0.0
    dispatched: int = 0
    mean_wait: float = 0.0
    """Seconds that its requests have waited, on average."""


@dataclass(slots=True)
class _Waits:
    """The programs' mean waits, as sums: nobody wants to look at all programs at each dispatch."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def replace(self, old: float | None, new: float | None) -> None:
        """One of them changes; None where there is none."""
        for value, sign in ((old, -1), (new, 1)):
            if value is not None:
                self.count += sign
                self.total += sign * value
                self.squares += sign * value * value

    def evenness(self) -> float:
        """Jain's index: 1 when all wait alike, 1/n when one of n waits alone."""
        if not self.count or self.squares <= 0.0:
            return 1.0
        return min(1.0, self.total * self.total / (self.count * self.squares))


class ProgramAwareFairness(ScanningPolicy, RequestHook):
    """Least attained service first."""

    TYPE = "program-aware-fairness"
    PARAMETERS = ProgramAwareFairnessParameters

    def __init__(self, name: str, parameters: ProgramAwareFairnessParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._recorder = context.recorder
        self._programs: dict[str, _Program] = {}
        self._waits = _Waits()
        self.clock = time.monotonic
        """Seconds; flow control's own clock unless a test says otherwise."""
        self._swept = self.clock()

    def choose(self, flows: Sequence[Flow], now: float) -> Flow:
        """See the module."""
        services = [self._service(flow.key.fairness_id, now) for flow in flows]
        waits = [now - flow.head.enqueued if flow.head is not None else 0.0 for flow in flows]
        rules = self._parameters
        scores = [
            rules.las_weight_service * (1.0 - service) + rules.las_weight_head_wait * wait
            for service, wait in zip(_scaled(services), _scaled(waits), strict=True)
        ]
        return flows[scores.index(max(scores))]

    def dispatched(self, item: Item, now: float) -> None:
        """Take note of its wait."""
        program = self._program(item.request.fairness_id)
        program.dispatched += 1
        mean = program.mean_wait + (now - item.enqueued - program.mean_wait) / program.dispatched
        self._waits.replace(program.mean_wait if program.dispatched > 1 else None, mean)
        program.mean_wait = mean
        self._recorder.program_waited(item.request.fairness_id, mean * 1000.0, self._waits.evenness())

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """It works for the program now."""
        self._program(request.fairness_id).in_flight += 1

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        """Charge the program with what its answer cost."""
        now = self.clock()
        program = self._program(request.fairness_id)
        program.in_flight -= 1
        program.last_answer = now
        if usage is not None:
            service = self._service(request.fairness_id, now)
            program.service = service + usage.prompt_tokens + OUTPUT_WEIGHT * usage.completion_tokens
            program.as_of = now
            self._recorder.program_served(request.fairness_id, program.service)
        if now - self._swept >= self._parameters.eviction_sweep_seconds:
            self._sweep(now)

    def _program(self, name: str) -> _Program:
        program = self._programs.get(name)
        if program is None:
            now = self.clock()
            program = self._programs[name] = _Program(as_of=now, last_answer=now)
        return program

    def _service(self, name: str, now: float) -> float:
        program = self._programs.get(name)
        if program is None or not program.service:
            return 0.0
        elapsed = max(0.0, now - program.as_of)
        if half_life := self._parameters.las_half_life_seconds:
            return float(program.service * 0.5 ** (elapsed / half_life))
        return float(program.service * self._parameters.las_decay_factor**elapsed)

    def _sweep(self, now: float) -> None:
        self._swept = now
        for name, program in list(self._programs.items()):
            if not program.in_flight and now - program.last_answer >= self._parameters.eviction_ttl_seconds:
                del self._programs[name]
                if program.dispatched:
                    self._waits.replace(program.mean_wait, None)
                self._recorder.program_gone(name)


def _scaled(values: Sequence[float]) -> list[float]:
    """0 for the smallest, 1 for the largest, linear between; 0 for all when all are equal."""
    least, most = min(values), max(values)
    if most == least:
        return [0.0] * len(values)
    return [(value - least) / (most - least) for value in values]
