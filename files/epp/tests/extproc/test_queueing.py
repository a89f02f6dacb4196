# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams whose requests wait, leave, are given up, and come to their turn: exchange, director and flow control."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp import config, plugins
from epp.datalayer import Datastore
from epp.extproc import Director, StreamService, Watchdog
from epp.extproc.watchdog import Hung
from epp.model import Endpoint
from epp.observe import PoolRecorder, Recorder
from epp.queueing import flow_controller
from epp.scheduling import Scheduler

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
- {type: random-picker}
flowControl: {enableEviction: true, priorityBands: [{priority: 3, maxRequests: 2}]}
"""
PRIORITIES = {"urgent": 3, "batch": -1}
BODY = b'{"model": "llama", "prompt": "hello"}'
TIMEOUT = 20.0


class Priorities:
    """Two objectives."""

    def priority(self, objective: str, model: str) -> int:
        return PRIORITIES.get(objective, 0)

    def rewrite(self, model: str) -> None:
        """All are asked for as they are."""


class Waiting:
    """A pool of one endpoint that takes one request."""

    def __init__(self, wire: Any, text: str = CONFIG, endpoints: int = 1) -> None:
        cfg = config.load(text, "x")
        self.wire = wire
        self.store = Datastore("pool")
        self.endpoints = [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(endpoints)]
        self.store.replace(self.endpoints)
        self.recorder = Recorder()
        self.watchdog = Watchdog()
        self.scheduler = Scheduler.from_config(
            cfg, plugins.registry(), self.store, PoolRecorder(self.recorder, "pool"), 1
        )
        queue = flow_controller(cfg, self.scheduler, self.store, self.recorder, self.watchdog)
        assert queue is not None
        self.queue = queue
        self.director = Director(self.scheduler, self.store, self.recorder, None, Priorities(), self.queue)
        self.service = StreamService(self.director, self.recorder, None, self.watchdog, interruptible=True)

    @property
    def inflight(self) -> int:
        return sum(endpoint.inflight for endpoint in self.endpoints)

    def stream(self, objective: str = "") -> Stream:
        return Stream(self, objective)

    def errors(self, code: str) -> float:
        """Requests that ended so."""
        name, total = "llm_d_epp_request_error_total", 0.0
        for line in self.recorder.render().decode().splitlines():
            if line.startswith(name) and f'error_code="{code}"' in line:
                total += float(line.rpartition(" ")[2])
        return total


class Stream:
    """A stream that has asked."""

    def __init__(self, world: Waiting, objective: str) -> None:
        self.world, self.pushed = world, []
        self.exchange = world.service.open()
        self.exchange.push = self._push
        headers = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
        if objective:
            headers["x-llm-d-inference-objective"] = objective
        self.exchange.receive(world.wire.headers(headers).SerializeToString())
        answers = self.exchange.receive(world.wire.body(BODY).SerializeToString())
        self.task = asyncio.ensure_future(answers) if isinstance(answers, Coroutine) else None
        self.answers = () if isinstance(answers, Coroutine) else answers

    pushed: list[ProcessingResponse]

    def _push(self, answers: Iterable[bytes]) -> None:
        self.pushed += map(ProcessingResponse.FromString, answers)

    async def read(self) -> list[ProcessingResponse]:
        """What came of it."""
        if self.task is not None:
            async with asyncio.timeout(TIMEOUT):
                self.answers = await self.task
        return [ProcessingResponse.FromString(answer) for answer in self.answers]

    async def destination(self) -> str:
        return str(self.world.wire.set_headers((await self.read())[0])["x-gateway-destination-endpoint"])

    def leave(self, code: str = "CANCELLED") -> None:
        """The stream is gone; as transports do it, in this order."""
        if self.task is not None:
            self.task.cancel()
        self.exchange.close(code)


@pytest.fixture
def world(wire: Any) -> Waiting:
    return Waiting(wire)


async def test_at_once_while_there_is_room(world: Waiting) -> None:
    stream = world.stream()
    assert stream.task is None
    assert await stream.destination() == "10.0.0.1:8000"


async def test_requests_wait_for_their_turn(world: Waiting) -> None:
    first, second, third = (world.stream() for _ in range(3))
    assert second.task is not None
    first.leave("OK")
    assert await second.destination() == "10.0.0.1:8000"
    assert third.task is not None
    assert not third.task.done()
    assert world.inflight == 1
    second.leave()
    third.leave()
    await asyncio.sleep(0)
    assert (world.inflight, world.queue.core.requests) == (0, 0)
    assert world.errors("ClientDisconnected") == 2
    assert world.errors("ServiceUnavailable") == 1


async def test_priorities(world: Waiting) -> None:
    first, second, urgent = world.stream(), world.stream(), world.stream("urgent")
    first.leave()
    await urgent.destination()
    assert second.task is not None
    assert not second.task.done()


async def test_a_client_that_leaves_while_it_waits(world: Waiting) -> None:
    first, second, third = (world.stream() for _ in range(3))
    await asyncio.sleep(0)
    second.leave()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert world.queue.core.requests == 1
    first.leave()
    await third.destination()
    assert world.inflight == 1


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_client_that_leaves_when_its_turn_comes(world: Waiting, turns: int) -> None:
    """Whether the decision has been made, or is on its way: the endpoint is given back."""
    first, second = world.stream(), world.stream()
    await asyncio.sleep(0)
    first.leave()
    for _ in range(turns):
        await asyncio.sleep(0)
    second.leave()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (world.inflight, world.queue.core.requests) == (0, 0)
    third = world.stream()
    assert third.task is None


async def test_a_transport_that_forgets_the_coroutine(world: Waiting) -> None:
    """Closing the exchange is enough to take the request out."""
    first, second = world.stream(), world.stream()
    second.exchange.close("CANCELLED")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert world.queue.core.requests == 0
    first.leave()
    assert world.inflight == 0


async def test_a_transport_that_closes_first(world: Waiting) -> None:
    """The decision has been made, the stream is closed, and only then what waited for the decision goes on."""
    first, second = world.stream(), world.stream()
    await asyncio.sleep(0)
    first.leave()
    world.queue._turn()
    assert world.inflight == 1
    second.exchange.close("CANCELLED")
    assert await second.read() == []
    assert world.inflight == 0


async def test_full(world: Waiting) -> None:
    streams = [world.stream("urgent") for _ in range(4)]
    (refused,) = await streams[3].read()
    immediate = refused.immediate_response
    assert immediate.status.code == 429
    assert world.wire.set_headers_of(immediate) == {"x-llm-d-request-dropped-reason": "rejected-saturated"}
    assert immediate.body == b"inference error: ResourceExhausted - the queue is at capacity"
    assert world.errors("ResourceExhausted") == 1


class TestEviction:
    async def test_before_the_answer(self, world: Waiting) -> None:
        batch = world.stream("batch")
        urgent = world.stream("urgent")
        assert await urgent.destination() == "10.0.0.1:8000"
        (pushed,) = batch.pushed
        assert pushed.immediate_response.status.code == 429
        assert pushed.immediate_response.body == (
            b"inference error: ResourceExhausted - request evicted by flow control"
        )
        reason = world.wire.set_headers_of(pushed.immediate_response)
        assert reason == {"x-llm-d-request-dropped-reason": "evicted"}
        assert batch.exchange.done
        batch.exchange.close("OK")
        assert world.inflight == 1
        assert world.errors("ResourceExhausted") == 1

    async def test_amid_the_answer(self, world: Waiting) -> None:
        batch = world.stream("batch")
        batch.exchange.receive(world.wire.answer("text/event-stream").SerializeToString())
        batch.exchange.receive(world.wire.answer_body(b"data: {}\n\n", end=False).SerializeToString())
        await world.stream("urgent").destination()
        assert len(batch.pushed) == 1

    async def test_after_the_answer(self, world: Waiting) -> None:
        batch = world.stream("batch")
        batch.exchange.receive(world.wire.answer().SerializeToString())
        batch.exchange.receive(world.wire.answer_body(b"{}").SerializeToString())
        await world.stream("urgent").destination()
        assert batch.pushed == []

    async def test_while_the_decision_is_on_its_way(self, world: Waiting) -> None:
        """Granted in one turn and evicted in the same: the client learns of the eviction only."""
        first, batch = world.stream(), world.stream("batch")
        await asyncio.sleep(0)
        first.leave()
        world.queue._turn()
        urgent = world.stream("urgent")
        assert await urgent.destination() == "10.0.0.1:8000"
        (answer,) = await batch.read()
        assert answer.immediate_response.status.code == 429
        assert world.inflight == 1

    async def test_a_transport_that_cannot_push(self, world: Waiting) -> None:
        batch = world.stream("batch")
        batch.exchange.push = None
        await world.stream("urgent").destination()
        assert world.inflight == 1


async def test_a_plugin_that_hangs_when_the_turn_comes(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs its own request, and nobody else's."""
    world = Waiting(wire)
    first, second, third = (world.stream() for _ in range(3))
    handler: Any = world.scheduler.plugin("single-profile-handler")
    pick = handler.pick
    calls = 0

    def hang_once(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Hung("the decision took more than 2 s")
        return pick(*given)

    monkeypatch.setattr(handler, "pick", hang_once)
    first.leave()
    (answer,) = await second.read()
    assert answer.immediate_response.status.code == 503
    assert await third.destination() == "10.0.0.1:8000"


async def test_sheddable_requests_wait_like_others(world: Waiting) -> None:
    """With flow control, saturation sheds nobody at the door."""
    first, batch = world.stream(), world.stream("batch")
    assert batch.task is not None
    first.leave()
    assert await batch.destination() == "10.0.0.1:8000"


async def test_an_empty_pool_makes_wait(wire: Any) -> None:
    world = Waiting(wire, endpoints=0)
    stream = world.stream()
    await asyncio.sleep(0.03)
    world.store.replace([Endpoint("new", "", "p", "10.0.0.9", 8000)])
    assert await stream.destination() == "10.0.0.9:8000"


async def test_the_prompt_is_let_go(world: Waiting) -> None:
    first, second = world.stream(), world.stream()
    (item,) = world.queue.core._arrivals.values()
    assert item.request.prompt
    second.leave()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert item.request.prompt == b""
    first.leave()
