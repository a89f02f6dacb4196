# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions that services are asked for first: what waits, what is bounded, and what is left when a client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, ClassVar

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp import config, plugins
from epp.datalayer import Datastore
from epp.extproc import Director, StreamService, Watchdog
from epp.model import Decision, Endpoint, InferenceRequest
from epp.observe import PoolRecorder, Recorder
from epp.queueing import flow_controller
from epp.scheduling import AsyncProducer, Producer, RequestHook, Scheduler, scheduler

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: before}, {type: asker}, {type: after}, {type: random-picker}]
"""
FLOW = CONFIG.replace("plugins:", "featureGates: [flowControl]\nplugins:").replace(
    "{type: random-picker}", "{type: random-picker}, {type: concurrency-detector, parameters: {maxConcurrency: 1}}"
)
BODY = b'{"model": "llama", "prompt": "hello"}'


class Noted(Producer):
    """Writes down that it has produced."""

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        Asker.order.append(self.TYPE)


class Before(Noted):
    TYPE = "before"


class After(Noted):
    TYPE = "after"


class Asker(AsyncProducer, RequestHook):
    """Asks until it is answered."""

    TYPE = "asker"
    order: ClassVar[list[str]] = []
    pieces: ClassVar[list[str]] = []
    bodies: ClassVar[list[bytes]] = []
    answer: ClassVar[asyncio.Event]
    broken: ClassVar[bool] = False

    async def prepare(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        Asker.order.append("asks")
        Asker.bodies.append(request.body)
        await Asker.answer.wait()
        if Asker.broken:
            raise RuntimeError("on purpose")
        Asker.order.append("answered")

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        Asker.order.append("asker")

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        Asker.pieces.append(request.model)
        if Asker.broken:
            raise RuntimeError("on purpose")


class Rewriting:
    """Another model for one."""

    resource, target = "rule", "qwen"

    def priority(self, objective: str, model: str) -> int:
        return 0

    def rewrite(self, model: str) -> Any:
        return self if model == "llama" else None


class World:
    """A pool of one endpoint, and streams that ask."""

    def __init__(self, wire: Any, text: str) -> None:
        cfg = config.load(text, "x")
        self.wire = wire
        self.store = Datastore("pool")
        self.endpoint = Endpoint("e", "", "p", "10.0.0.1", 8000)
        self.store.replace([self.endpoint])
        self.recorder = Recorder()
        watchdog = Watchdog()
        reports = PoolRecorder(self.recorder, "pool")
        self.scheduler = Scheduler.from_config(cfg, plugins.registry(), self.store, reports, 1)
        queue = flow_controller(cfg, self.scheduler, self.store, self.recorder, watchdog)
        self.director = Director(self.scheduler, self.store, self.recorder, None, Rewriting(), queue, watchdog)
        self.service = StreamService(self.director, self.recorder, None if queue else 5.0, watchdog)

    def open(self, body: bytes = BODY) -> tuple[Any, asyncio.Future[Any]]:
        exchange = self.service.open()
        headers = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
        exchange.receive(self.wire.headers(headers).SerializeToString())
        answers = exchange.receive(self.wire.body(body).SerializeToString())
        assert isinstance(answers, Coroutine)
        return exchange, asyncio.ensure_future(answers)

    def figure(self, name: str, *parts: str) -> float:
        lines = self.recorder.render().decode().splitlines()
        found = [line for line in lines if line.startswith(f"llm_d_epp_{name}{{") and all(p in line for p in parts)]
        return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = {**plugins.registry(), "asker": Asker, "before": Before, "after": After}
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    monkeypatch.setattr("epp.config.loader.registry", lambda: registry)
    Asker.order, Asker.pieces, Asker.bodies, Asker.broken = [], [], [], False


def run(work: Any) -> None:
    async def whole() -> None:
        Asker.answer = asyncio.Event()
        async with asyncio.timeout(20):
            await work()

    asyncio.run(whole())


def destination(wire: Any, answers: Iterable[bytes]) -> str | None:
    first = ProcessingResponse.FromString(next(iter(answers)))
    return wire.set_headers(first).get("x-gateway-destination-endpoint") if first.HasField("request_headers") else None


def test_the_answer_is_waited_for(wire: Any) -> None:
    async def work() -> None:
        world = World(wire, CONFIG)
        exchange, reply = world.open()
        await asyncio.sleep(0.01)
        assert not reply.done()
        assert Asker.order == ["before", "asks"]
        assert Asker.bodies == [b'{"model": "qwen", "prompt": "hello"}']
        Asker.answer.set()
        assert destination(wire, await reply) == "10.0.0.1:8000"
        assert Asker.order == ["before", "asks", "answered", "asker", "after"]
        assert world.endpoint.inflight == 1
        for message in (wire.answer(), wire.answer_body(b"{", end=False), wire.answer_body(b"}")):
            exchange.receive(message.SerializeToString())
        exchange.close("OK")
        assert Asker.pieces == ["llama", "llama"]
        assert world.endpoint.inflight == 0
        assert world.figure("request_running") == 0

    run(work)


def test_a_broken_follower_costs_nothing(wire: Any) -> None:
    async def work() -> None:
        world = World(wire, CONFIG)
        Asker.broken = True
        Asker.answer.set()
        exchange, reply = world.open()
        assert destination(wire, await reply) == "10.0.0.1:8000"
        assert Asker.order == ["before", "asks", "asker", "after"]
        for message in (wire.answer(), wire.answer_body(b"{}")):
            exchange.receive(message.SerializeToString())
        assert Asker.pieces == ["llama"]
        exchange.close("OK")
        assert world.endpoint.inflight == 0

    run(work)


def test_nobody_waits_longer_than_the_bound(
    wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "PREPARE_SECONDS", 0.02)

    async def work() -> None:
        world = World(wire, CONFIG)
        exchange, reply = world.open()
        assert destination(wire, await reply) == "10.0.0.1:8000"
        assert "answered" not in Asker.order
        (said,) = [record for record in caplog.records if "took more than 0.02 s" in record.message]
        assert said.exc_info is None
        exchange.close("OK")
        assert world.figure("plugin_duration_seconds_count", 'extension_point="Prepare"') == 1

    run(work)


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_a_client_that_leaves_meanwhile(wire: Any, turns: int) -> None:
    async def work() -> None:
        world = World(wire, CONFIG)
        exchange, reply = world.open()
        for _ in range(turns):
            await asyncio.sleep(0)
        exchange.close("CANCELLED")
        await asyncio.wait([reply])
        assert world.endpoint.inflight == 0
        assert world.figure("request_running") == 0
        assert world.figure("request_error_total", 'error_code="ClientDisconnected"') == 1

    run(work)


def test_what_cannot_be_rewritten_is_refused_before_anybody_is_asked(wire: Any) -> None:
    async def work() -> None:
        world = World(wire, CONFIG)
        world.director.decided = lambda request, outcome: Asker.order.append(type(outcome).__name__)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("epp.extproc.director.replace_model", lambda *arguments: None)
            _, reply = world.open()
            refused = ProcessingResponse.FromString(next(iter(await reply)))
        assert refused.immediate_response.status.code == 400
        assert Asker.order == ["Rejection"]
        assert world.figure("request_running") == 0

    run(work)


def test_no_endpoint_nobody_is_asked(wire: Any) -> None:
    async def work() -> None:
        world = World(wire, CONFIG)
        world.store.replace([])
        _, reply = world.open()
        refused = ProcessingResponse.FromString(next(iter(await reply)))
        assert refused.immediate_response.status.code == 503
        assert Asker.order == []

    run(work)


class TestWithFlowControl:
    """Services are asked before a request waits, and producers look again when it goes."""

    def test_granted_at_once(self, wire: Any) -> None:
        async def work() -> None:
            world = World(wire, FLOW)
            Asker.answer.set()
            exchange, reply = world.open()
            assert destination(wire, await reply) == "10.0.0.1:8000"
            assert Asker.order == ["before", "asks", "answered", "asker", "before", "asker", "after"]
            exchange.close("OK")

        run(work)

    def test_granted_later(self, wire: Any) -> None:
        async def work() -> None:
            world = World(wire, FLOW)
            Asker.answer.set()
            first, reply = world.open()
            await reply
            second, waiting = world.open()
            await asyncio.sleep(0.03)
            assert not waiting.done()
            first.close("OK")
            assert destination(wire, await waiting) == "10.0.0.1:8000"
            second.close("OK")
            assert world.endpoint.inflight == 0
            assert world.figure("request_running") == 0

        run(work)

    @pytest.mark.parametrize("granted", [False, True])
    def test_a_client_that_leaves_the_queue(self, wire: Any, granted: bool) -> None:
        async def work() -> None:
            world = World(wire, FLOW)
            Asker.answer.set()
            first, reply = world.open()
            await reply
            second, waiting = world.open()
            await asyncio.sleep(0.03)
            if granted:  # in the very turn in which it gets its endpoint
                first.close("OK")
                while not world.endpoint.inflight:
                    await asyncio.sleep(0)
            second.close("CANCELLED")
            await asyncio.wait([waiting])
            first.close("OK") if not granted else None
            await asyncio.sleep(0.03)
            assert world.endpoint.inflight == 0
            assert world.figure("request_running") == 0

        run(work)
