# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow control in an event loop, with real endpoints and detectors: who goes when, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp.datalayer import Datastore
from epp.flowcontrol import FlowController, Saturation
from epp.flowcontrol.api import Options
from epp.flowcontrol.controller import AT_A_TIME, COLLECT
from epp.model import Charge, Endpoint, EndpointMetrics, InferenceRequest, Rejection
from epp.observe import FlowRecorder, Recorder

from .conftest import band, evicting, options, policy, request

TIMEOUT = 20.0


@dataclass(eq=False)
class Routable:
    """A request that goes to the least loaded endpoint."""

    world: World
    request: InferenceRequest
    broken: BaseException | None = None
    codes: list[str] = field(default_factory=list)
    evicted: list[Rejection] = field(default_factory=list)

    def grant(self) -> str:
        if self.broken is not None:
            raise self.broken
        endpoint = min(self.world.store.endpoints(), key=lambda each: each.inflight)
        self.hold = self.world.store.hold([Charge(endpoint)])
        self.world.controller.dispatched(self)
        self.world.order.append(self.request.request_id)
        return self.request.request_id

    def refused(self, code: str) -> None:
        self.codes.append(code)

    def evict(self, rejection: Rejection) -> None:
        self.evicted.append(rejection)
        self.end()

    def end(self) -> None:
        """The answer has ended."""
        self.hold.release()
        self.world.controller.ended(self)


class World:
    """A pool of two endpoints that take ``room`` requests each."""

    def __init__(self, settings: Options | None = None, room: int = 1, endpoints: int = 2) -> None:
        self.store = Datastore("pool")
        self.endpoints = [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(endpoints)]
        self.store.replace(self.endpoints)
        self.recorder = Recorder()
        self.offset = 0.0
        self.order: list[str] = []
        self.detector = policy("concurrency-detector", max_concurrency=room)
        flows = FlowRecorder(self.recorder, "pool")
        saturation = Saturation(self.detector)
        self.controller: FlowController[str] = FlowController(
            settings or options(), self.store, saturation, flows, clock=lambda: 1000.0 + self.offset
        )
        self.store.on_observed(lambda endpoint, asked_at: self.controller.wake())
        self.store.on_added(lambda endpoint: self.controller.wake())

    def ask(self, flow: str = "default-flow", priority: int = 0, broken: BaseException | None = None) -> Any:
        """Submit a request: the routable, and what came of it at once."""
        routable = Routable(self, request(flow, priority), broken)
        return routable, self.controller.submit(routable)

    def page(self) -> str:
        """The metrics."""
        return self.recorder.render().decode()

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        total = 0.0
        for line in self.page().splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total


@pytest.fixture
def world() -> World:
    return World()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.002)


async def refused(future: Any) -> Rejection:
    """The rejection that comes of it."""
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(Rejection) as error:
            await future
    return error.value


async def test_at_once_while_there_is_room(world: World) -> None:
    """No future, no turn of the loop: the answer is there."""
    first, result = world.ask()
    assert result == first.request.request_id
    assert world.endpoints[0].inflight == 1


async def test_the_next_look_sees_what_was_sent(world: World) -> None:
    for _ in range(2):
        assert isinstance(world.ask()[1], str)
    _, waiting = world.ask()
    assert isinstance(waiting, asyncio.Future)
    assert [endpoint.inflight for endpoint in world.endpoints] == [1, 1]


async def test_an_answer_that_ends_lets_the_next_one_go(world: World) -> None:
    running = [world.ask()[0] for _ in range(2)]
    waiting = [world.ask() for _ in range(3)]
    running[0].end()
    assert await waiting[0][1] == waiting[0][0].request.request_id
    assert not waiting[1][1].done()
    running[1].end()
    waiting[0][0].end()
    async with asyncio.timeout(TIMEOUT):
        assert [await each[1] for each in waiting[1:]] == [each[0].request.request_id for each in waiting[1:]]


async def test_a_client_that_leaves_is_out_at_once(world: World) -> None:
    for _ in range(2):
        world.ask()
    (first, leaving), (second, staying) = world.ask(), world.ask()
    leaving.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert world.controller.core.requests == 1
    assert first.codes == ["ServiceUnavailable"]
    assert world.value("llm_d_epp_flow_control_requests_total", outcome="EvictedContextCancelled") == 1
    assert (second.codes, staying.done()) == ([], False)


async def test_a_client_that_leaves_at_the_moment_of_its_turn(world: World) -> None:
    """Cancelled, but not yet taken out when a place is free: it gets none."""
    running = [world.ask()[0] for _ in range(2)]
    (gone, leaving), (_, staying) = world.ask(), world.ask()
    leaving.cancel()
    running[0].end()
    world.controller._turn()
    assert gone.codes == ["ServiceUnavailable"]
    assert not hasattr(gone, "hold")
    async with asyncio.timeout(TIMEOUT):
        await staying
    assert world.value("llm_d_epp_flow_control_requests_total", outcome="EvictedContextCancelled") == 1
    assert sum(endpoint.inflight for endpoint in world.endpoints) == 2


async def test_new_metrics_let_requests_go() -> None:
    """Not only the clock: a reading that shows room is looked at in the next turn."""
    world = World()
    world.detector = policy("utilization-detector", staleness_policy="saturated")
    world.controller._saturation = Saturation(world.detector)
    _, waiting = world.ask()
    world.controller._disarm()
    for endpoint in world.endpoints:
        fresh = EndpointMetrics(updated_at=asyncio.get_running_loop().time(), interval=60.0)
        world.store.observed(endpoint, fresh, 0.0)
    async with asyncio.timeout(TIMEOUT):
        await waiting


async def test_the_clock_alone_lets_requests_go(world: World) -> None:
    for _ in range(2):
        world.ask()
    _, waiting = world.ask()
    for endpoint in world.endpoints:
        endpoint.inflight = 0  # nobody says that anything has changed
    async with asyncio.timeout(TIMEOUT):
        await waiting


class TestRefusals:
    async def test_capacity(self) -> None:
        world = World(options(band(max_requests=1)), room=1, endpoints=1)
        world.ask()
        world.ask()
        routable = Routable(world, request())
        with pytest.raises(Rejection) as error:
            world.controller.submit(routable)
        assert (error.value.status, error.value.reason) == (429, "rejected-saturated")
        assert routable.codes == ["ResourceExhausted"]
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="RejectedCapacity") == 1

    async def test_capacity_without_endpoints(self) -> None:
        world = World(options(band(max_requests=1)), endpoints=0)
        world.ask()
        with pytest.raises(Rejection) as error:
            world.ask()
        assert (error.value.status, error.value.reason) == (503, "rejected-no-endpoints")
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="RejectedNoEndpoints") == 1

    async def test_time_to_live(self, world: World) -> None:
        for _ in range(2):
            world.ask()
        routable, waiting = world.ask()
        world.offset += 60
        rejection = await refused(waiting)
        assert (rejection.status, rejection.code) == (429, "ResourceExhausted")
        assert rejection.reason == "rejected-ttl-expired"
        assert routable.codes == ["ResourceExhausted"]
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="EvictedTTL") == 1
        assert world.value("llm_d_epp_flow_control_request_queue_duration_seconds_sum", outcome="EvictedTTL") == 60

    async def test_time_to_live_without_endpoints(self) -> None:
        world = World(options(no_endpoint_ttl=5), endpoints=0)
        _, waiting = world.ask()
        world.offset += 5
        rejection = await refused(waiting)
        assert (rejection.status, rejection.reason) == (503, "rejected-no-endpoints")
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="EvictedNoEndpoints") == 1

    async def test_shutting_down(self, world: World) -> None:
        for _ in range(2):
            world.ask()
        _, waiting = world.ask()
        assert world.controller.close() == 1
        rejection = await refused(waiting)
        assert (rejection.status, rejection.reason) == (503, "rejected-shutting-down")
        with pytest.raises(Rejection) as error:
            world.ask()
        assert (error.value.status, error.value.reason) == (503, "rejected-shutting-down")
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="EvictedOther") == 1
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="RejectedOther") == 1


class Hanging(BaseException):
    """As the watchdog raises it."""


class TestGrants:
    @pytest.mark.parametrize("error", [Rejection(400, "BadRequest", "no"), RuntimeError("a bug"), Hanging()])
    async def test_a_grant_that_fails_at_once(self, world: World, error: BaseException) -> None:
        with pytest.raises(type(error)):
            world.ask(broken=error)
        assert world.controller.core.requests == 0

    @pytest.mark.parametrize("error", [Rejection(400, "BadRequest", "no"), RuntimeError("a bug"), Hanging()])
    async def test_a_grant_that_fails_later(self, world: World, error: BaseException) -> None:
        """It concerns nobody else: the next one goes."""
        running = [world.ask()[0] for _ in range(2)]
        _, failing = world.ask(broken=error)
        _, waiting = world.ask()
        running[0].end()
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(type(error)):
                await failing
            await waiting

    async def test_somebody_elses_turn(self, world: World) -> None:
        """A request that comes when others may go waits behind them, and is not harmed by their failures."""
        running = [world.ask()[0] for _ in range(2)]
        _, failing = world.ask(broken=RuntimeError("a bug"))
        running[0].hold.release()
        _, mine = world.ask()
        assert isinstance(mine, str)
        with pytest.raises(RuntimeError):
            await failing

    async def test_the_loop_has_its_turn(self) -> None:
        """However many may go at once, others are not kept waiting."""
        world = World(endpoints=0, room=1000)
        waiting = [world.ask()[1] for _ in range(AT_A_TIME * 3)]
        world.store.replace([Endpoint("e", "", "p", "10.0.0.1", 8000)])
        most, seen = 0, 0
        while not all(each.done() for each in waiting):
            await asyncio.sleep(0)
            done = len(world.order)
            most, seen = max(most, done - seen), done
        assert most <= AT_A_TIME


class TestPool:
    async def test_endpoints_that_come(self) -> None:
        """Scaled to zero: requests wait for the first endpoint."""
        world = World(endpoints=0)
        _, waiting = world.ask()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        world.store.replace([Endpoint("e", "", "p", "10.0.0.1", 8000)])
        async with asyncio.timeout(TIMEOUT):
            await waiting

    async def test_endpoints_whose_process_is_gone(self, world: World) -> None:
        for endpoint in world.endpoints:
            endpoint.metrics.updated_at, endpoint.refused = 1.0, True
        _, waiting = world.ask()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        world.endpoints[0].refused = False
        async with asyncio.timeout(TIMEOUT):
            await waiting
        assert world.endpoints[0].inflight == 1

    async def test_endpoints_that_refuse_and_were_never_read(self, world: World) -> None:
        """Where there is no other they may serve all the same: the scheduler routes to them, so nobody waits."""
        read, unread = world.endpoints
        read.metrics.updated_at, read.refused, unread.refused = 1.0, True, True
        _, granted = world.ask()
        assert isinstance(granted, str)

    async def test_the_fullest_stage_counts(self) -> None:
        world = World(room=10)
        world.endpoints[0].labels = {"llm-d.ai/role": "prefill"}
        world.endpoints[1].labels = {"llm-d.ai/role": "decode"}
        world.endpoints[1].inflight = 10
        saturation = Saturation(world.detector)
        endpoints = world.store.endpoints()
        assert saturation.effective(endpoints) == 1.0
        assert saturation.by_stage(endpoints) == {"prefill": 0.0, "decode": 1.0, "effective": 1.0}
        assert saturation.by_stage(()) == {"effective": 1.0}
        assert (saturation.detector, saturation.stale(endpoints)) == ("concurrency-detector", 0)


class TestEviction:
    async def test_a_sheddable_request_makes_room(self) -> None:
        world = World(options(eviction=evicting()))
        batch = [world.ask("batch", -1)[0] for _ in range(2)]
        urgent, result = world.ask("chat", 5)
        assert result == urgent.request.request_id, "at once: the detector sees at once what has ended"
        assert [len(each.evicted) for each in batch] == [0, 1]
        rejection = batch[1].evicted[0]
        assert (rejection.status, rejection.reason) == (429, "evicted")
        assert rejection.body() == "inference error: ResourceExhausted - request evicted by flow control"
        assert world.value("llm_d_epp_flow_control_revocations_issued_total", priority="-1") == 1

    async def test_nobody_does_for_an_equal(self) -> None:
        world = World(options(eviction=evicting()))
        batch = [world.ask("batch", -1)[0] for _ in range(2)]
        _, waiting = world.ask("batch", -1)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        batch[0].end()
        async with asyncio.timeout(TIMEOUT):
            await waiting
        assert not any(each.evicted for each in batch)

    async def test_a_detector_that_reads_metrics_is_given_time(self) -> None:
        world = World(options(eviction=evicting()), room=4)
        world.detector.LAG = 0.5
        world.controller._in_flight._lag = 0.5  # type: ignore[union-attr]
        batch = [world.ask("batch", -1)[0] for _ in range(8)]
        waiting = [world.ask("chat", 5)[1] for _ in range(8)]
        async with asyncio.timeout(TIMEOUT):
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.05)
        assert sum(len(each.evicted) for each in batch) == 2
        world.offset += 0.5
        await until(lambda: sum(len(each.evicted) for each in batch) == 4)

    async def test_off_unless_it_is_configured(self, world: World) -> None:
        batch = [world.ask("batch", -1)[0] for _ in range(2)]
        _, waiting = world.ask("chat", 5)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert not any(each.evicted for each in batch)


class TestMetrics:
    async def test_gauges_return_to_zero(self, world: World) -> None:
        running = [world.ask("a")[0] for _ in range(2)]
        waiting = [world.ask("a") for _ in range(3)]
        labels = {"fairness_id": "a", "priority": "0", "inference_pool": "pool", "model_name": "m"}
        for prefix in ("llm_d_epp_", "inference_extension_"):
            assert world.value(f"{prefix}flow_control_queue_size", **labels) == 3
            assert world.value(f"{prefix}flow_control_queue_bytes", **labels) == 300
        waiting[0][1].cancel()
        for each in running:
            each.end()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(each[1] for each in waiting[1:]))
        assert world.value("llm_d_epp_flow_control_queue_size", **labels) == 0
        assert world.value("llm_d_epp_flow_control_queue_bytes", **labels) == 0
        assert world.value("llm_d_epp_flow_control_requests_total", outcome="Dispatched", priority="0") == 4
        assert world.value("llm_d_epp_flow_control_request_enqueue_duration_seconds_count", fairness_id="a") == 5
        name = "llm_d_epp_flow_control_request_queue_duration_seconds_count"
        assert world.value(name, outcome="Dispatched", **labels) == 4

    async def test_forgotten_flows_have_no_gauges(self, world: World) -> None:
        await self.pass_through(world, "idle")
        assert world.value("llm_d_epp_flow_control_queue_size", fairness_id="idle") == 0
        assert 'flow_control_queue_size{fairness_id="idle"' in world.page()
        world.offset += 300 + COLLECT
        world.controller._turn()
        assert 'flow_control_queue_size{fairness_id="idle"' not in world.page()
        await self.pass_through(world, "idle")
        assert 'flow_control_queue_size{fairness_id="idle"' in world.page()

    async def pass_through(self, world: World, flow: str) -> None:
        routable, _ = world.ask(flow)
        routable.end()
