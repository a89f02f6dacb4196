# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow control: who waits, and who goes when there is room: priorities, fairness among flows, order within a flow."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.queue import TTFT, Queue, Request, config, queueing
from conformance.kit.talk import completion, route
from conformance.kit.wait import eventually
from conformance.kit.world import World

NO_SECTION = "v1.3 has the gate, but neither the section flowControl in its configuration nor the concurrency-detector"

pytestmark = pytest.mark.differs(go=NO_SECTION)


def flow(fairness: str = "", ordering: str = "", **more: Any) -> dict[str, Any]:
    """A section whose bands have these policies."""
    band = {"fairnessPolicyRef": fairness} if fairness else {}
    band |= {"orderingPolicyRef": ordering} if ordering else {}
    return {"defaultPriorityBand": band, **more}


@pytest.fixture(scope="module")
def plain(around: World) -> Iterator[Queue]:
    """Every default, and an engine that takes one request at a time."""
    with queueing(around, "flow-plain", config()) as found:
        yield found


@pytest.fixture
def queue(plain: Queue) -> Iterator[Queue]:
    """The same, with nobody in it, before and after."""
    yield plain
    plain.clear()


class TestWaiting:
    def test_until_an_answer_ends(self, queue: Queue) -> None:
        """A request waits while the pool is full, and goes when an answer has ended."""
        first = queue.take()
        second = queue.put()
        assert second.waits
        first.finish()
        assert second.routed().destination == queue.pool.hostports[0]

    def test_until_a_client_leaves(self, queue: Queue) -> None:
        """A client that leaves amid its answer makes room, too."""
        first = queue.take()
        second = queue.put()
        first.talk.stream.send(wire.response_headers(content_type=wire.EVENTS))
        first.talk.stream.receive()
        assert second.waits
        first.leave()
        second.routed()

    def test_a_streamed_answer_takes_its_place_to_the_end(self, queue: Queue) -> None:
        """Not the first piece of an answer makes room, but the last."""
        first = queue.take()
        second = queue.put()
        first.talk.stream.send(wire.response_headers(content_type=wire.EVENTS))
        first.talk.stream.send(wire.response_body(b"data: {}\n\n", end=False))
        first.talk.stream.receive()
        first.talk.stream.receive()
        assert second.waits
        first.talk.stream.send(wire.response_body(b"data: [DONE]\n\n"))
        second.routed()

    def test_a_client_that_leaves_while_it_waits(self, queue: Queue) -> None:
        """It is out of the queue at once, and takes no place when its turn would have come."""
        before = queue.outcomes("EvictedContextCancelled")
        first = queue.take()
        leaving, staying = queue.put(), queue.put()
        leaving.leave()
        eventually(queue.size, lambda size: size == 1)
        first.finish()
        staying.routed()
        assert queue.outcomes("EvictedContextCancelled") == before + 1

    def test_many_who_leave(self, queue: Queue) -> None:
        """Whoever stays among many who leave has a turn, and then there is room again."""
        first = queue.take()
        waiting = [queue.put(f"f{number % 3}") for number in range(12)]
        for request in waiting[::2]:
            request.leave()
        eventually(queue.size, lambda size: size == 6)
        queue.order(first, waiting[1::2])
        queue.take()

    def test_without_a_body(self, queue: Queue) -> None:
        """A request without a body waits as well."""
        first = queue.take()
        second = queue.put(empty=True, method="GET", path="/v1/models")
        assert second.waits
        first.finish()
        second.routed()

    def test_the_body_goes_on_as_it_came(self, queue: Queue) -> None:
        """Waiting changes no byte of a body of several pieces."""
        body = completion("x" * 200_000)
        first = queue.take()
        second = queue.put(body=body)
        first.finish()
        assert second.routed().body == body

    def test_a_rewrite(self, queue: Queue) -> None:
        """A model that is to be replaced is replaced after the wait."""
        first = queue.take()
        second = queue.put(headers={"x-llm-d-model-name-rewrite": "other"})
        first.finish()
        assert second.routed().document["model"] == "other"

    def test_the_subset(self, queue: Queue) -> None:
        """The gateway's subset is looked at when the turn comes."""
        first = queue.take()
        allowed, nowhere = queue.put(hint=queue.pool.hostports), queue.put(hint=["10.9.9.9:8000"])
        first.finish()
        allowed.routed()
        allowed.finish()
        assert nowhere.refused().status == 503

    def test_a_bad_request_does_not_wait(self, queue: Queue) -> None:
        """What cannot be understood is refused at once."""
        queue.take()
        assert queue.ask(body=b"nonsense").refused().status == 400

    def test_sheddable_requests_wait_like_others(self, queue: Queue) -> None:
        """With flow control a full pool sheds nobody at the door."""
        first = queue.take()
        second = queue.put(objective="batch")
        assert second.waits
        first.finish()
        second.routed()

    def test_two_places(self, around: World) -> None:
        """Two engines take two requests, and not three."""
        with queueing(around, "flow-two", config(), engines=2) as two:
            running = [two.take(), two.take()]
            third = two.put()
            assert third.waits
            running[1].finish()
            third.routed()


class TestPriority:
    def test_the_most_urgent_goes_first(self, queue: Queue) -> None:
        """However long others have waited."""
        first = queue.take()
        batch, plain = queue.put(objective="batch"), queue.put()
        high, urgent = queue.put(objective="high"), queue.put(objective="urgent")
        queue.order(first, [urgent, high, plain, batch])

    @pytest.mark.parametrize("seed", range(3))
    def test_under_load(self, queue: Queue, seed: int) -> None:
        """In any mixture: by priority, and within a priority as they came."""
        rng = random.Random(seed)
        ranks = {"urgent": 0, "high": 1, "": 2, "low": 3, "batch": 4}
        first = queue.take()
        asked = [(rng.choice(list(ranks)), rng.choice("abc")) for _ in range(15)]
        waiting = [queue.put(name, objective) for objective, name in asked]
        expected = sorted(range(15), key=lambda number: (ranks[asked[number][0]], number))
        queue.order(first, [waiting[number] for number in expected])

    def test_an_objective_that_is_not_known(self, queue: Queue) -> None:
        """It has priority 0."""
        first = queue.take()
        low, unknown = queue.put(objective="low"), queue.put(objective="nobody")
        queue.order(first, [unknown, low])

    def test_a_newcomer_overtakes(self, queue: Queue) -> None:
        """One that comes while others wait goes before them if it is more urgent."""
        first = queue.take()
        waiting = [queue.put() for _ in range(3)]
        first.finish()
        waiting[0].routed()
        urgent = queue.put(objective="urgent")
        queue.order(waiting[0], [urgent, *waiting[1:]])


@pytest.fixture(scope="module")
def holding(around: World) -> Iterator[Queue]:
    """Two engines of two places each; ceilings of 1.0, 0.75, 0.5, 0.25 and 0.1 by priority."""
    ceilings = {10: 1.0, 5: 0.75, 0: 0.5, -1: 0.25, -10: 0.1}
    hold = {"type": "priority-holdback-policy", "parameters": {"domain": "explicit", "ceilings": ceilings}}
    detector = {"type": "concurrency-detector", "parameters": {"maxConcurrency": 2}}
    section = {"usageLimitPolicyPluginRef": "priority-holdback-policy"}
    with queueing(around, "flow-holding", config(section, [hold], detector), engines=2) as found:
        yield found


class TestCeilings:
    @pytest.fixture
    def queue(self, holding: Queue) -> Iterator[Queue]:
        yield holding
        holding.clear()

    def test_places_are_held_back(self, queue: Queue) -> None:
        """The fuller the pool, the fewer priorities may use it."""
        queue.take(objective="batch")
        assert queue.put(objective="batch").waits
        low = queue.put(objective="low")
        assert low.waits
        queue.take()
        plain = queue.put()
        queue.take(objective="high")
        high = queue.put(objective="high")
        queue.take(objective="urgent")
        assert queue.put(objective="urgent").waits
        assert plain.waits
        assert high.waits

    def test_a_band_that_waits_holds_up_all_below(self, queue: Queue) -> None:
        """When there is room again, it is the more urgent one's, as soon as its ceiling allows."""
        running = [queue.take(objective="urgent") for _ in range(3)]
        high, batch = queue.put(objective="high"), queue.put(objective="batch")
        running[0].finish()
        high.routed()
        assert batch.waits
        running[1].finish()
        running[2].finish()
        assert batch.waits, "a quarter is in use, and a tenth is its ceiling"
        high.finish()
        batch.routed()

    @pytest.mark.parametrize(("domain", "places"), [("rank", 4), ("value", 6)])
    def test_linear(self, around: World, domain: str, places: int) -> None:
        """Between the highest and the lowest priority ceilings fall evenly: by rank to 0.4 here, by value to 0.56."""
        hold = {"type": "priority-holdback-policy", "parameters": {"domain": domain, "minCeiling": 0.2}}
        detector = {"type": "concurrency-detector", "parameters": {"maxConcurrency": 10}}
        section = {"usageLimitPolicyPluginRef": "priority-holdback-policy"}
        with queueing(around, f"flow-{domain}", config(section, [hold], detector)) as found:
            for _ in range(places):
                found.take(objective="low")
            assert found.put(objective="low").waits


@pytest.fixture(scope="module")
def turns(around: World) -> Iterator[Queue]:
    text = config(flow("fair"), [{"type": "round-robin-fairness-policy", "name": "fair"}])
    with queueing(around, "flow-turns", text) as found:
        yield found


@pytest.fixture(scope="module")
def programs(around: World) -> Iterator[Queue]:
    with queueing(
        around, "flow-programs", config(flow("las"), [{"type": "program-aware-fairness", "name": "las"}])
    ) as found:
        yield found


class TestFairness:
    """Requests of one priority and several flows."""

    @pytest.mark.parametrize("seed", range(2))
    def test_global_strict(self, queue: Queue, seed: int) -> None:
        """The default: no fairness, all flows are one queue."""
        rng = random.Random(seed)
        first = queue.take()
        queue.order(first, [queue.put(rng.choice("abcd")) for _ in range(10)])

    @pytest.mark.parametrize("seed", range(3))
    def test_round_robin(self, turns: Queue, seed: int) -> None:
        """Flows take turns: of those that wait all along, none gets two more than another, however much it sends."""
        rng = random.Random(seed)
        first = turns.take("other")
        names = ["a"] * 7 + ["b"] * 4 + ["c"] * 4
        rng.shuffle(names)
        waiting = [turns.put(name) for name in names]
        served: Counter[str] = Counter()
        running = first
        for _ in range(11):
            running.finish()
            running = _next(waiting)
            served[running.flow] += 1
            assert max(served.values()) - min(served[name] for name in "abc") <= 1
        turns.clear()

    def test_round_robin_keeps_a_flow_in_order(self, turns: Queue) -> None:
        """Within a flow it is first come, first served."""
        first = turns.take("other")
        a, b = [turns.put("a") for _ in range(3)], [turns.put("b") for _ in range(2)]
        turns.order(first, [a[0], b[0], a[1], b[1], a[2]])
        turns.clear()

    def test_a_single_request_does_not_wait_behind_a_crowd(self, turns: Queue) -> None:
        """A flow that comes late has its turn after one of each that wait."""
        first = turns.take("crowd")
        crowd = [turns.put("crowd") for _ in range(6)]
        single = turns.put("single")
        first.finish()
        crowd[0].routed()
        crowd[0].finish()
        single.routed()
        turns.clear()

    def test_least_attained_service(self, programs: Queue) -> None:
        """The program that has had the most tokens goes last, whoever came first."""
        for name, tokens in (("greedy", (50, 4000)), ("middle", (1000, 500)), ("modest", (10, 10))):
            request = programs.take(name)
            request.finish(tokens)
        first = programs.take("other")
        greedy, middle, modest = (programs.put(name) for name in ("greedy", "middle", "modest"))
        programs.order(first, [modest, middle, greedy], tokens=(0, 0))
        programs.clear()

    def test_attained_service_is_told(self, programs: Queue) -> None:
        """Tokens of answers count twice."""
        request = programs.take("counted")
        request.finish((100, 50))
        name = "llm_d_epp_program_aware_attained_service_tokens"
        assert eventually(lambda: programs.picker.metrics().value(name, program_id="counted")) == 200


def _next(waiting: list[Request]) -> Request:
    """The one that has got its endpoint, taken out of the list."""

    def found() -> Request | None:
        return next((request for request in waiting if request.talk.stream.peek(0.02)), None)

    request = eventually(found)
    assert request is not None
    request.routed()
    waiting.remove(request)
    return request


@pytest.fixture(scope="module")
def targets(around: World) -> Iterator[Queue]:
    text = config(flow(ordering="slo"), [{"type": "slo-deadline-ordering-policy", "name": "slo"}])
    with queueing(around, "flow-targets", text) as found:
        yield found


class TestOrder:
    """Requests of one flow."""

    @pytest.mark.parametrize("seed", range(2))
    def test_first_come_first_served(self, queue: Queue, seed: int) -> None:
        """The default."""
        count = 5 + random.Random(seed).randrange(5)
        first = queue.take("f")
        queue.order(first, [queue.put("f") for _ in range(count)])

    def test_earliest_deadline_first(self, around: World) -> None:
        """All have the same time to live, so that deadlines are in the order of arrival."""
        text = config(flow(ordering="edf"), [{"type": "edf-ordering-policy", "name": "edf"}])
        with queueing(around, "flow-edf", text) as found:
            first = found.take()
            found.order(first, [found.put() for _ in range(5)])

    @pytest.mark.parametrize("seed", range(3))
    def test_latency_targets(self, targets: Queue, seed: int) -> None:
        """Who must have the first token earlier goes first; who names no target goes last."""
        rng = random.Random(seed)
        milliseconds = [rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 0]) * 100_000 for _ in range(8)]
        first = targets.take()
        waiting = [targets.put(headers={TTFT: str(each)} if each else {}) for each in milliseconds]
        expected = sorted(range(8), key=lambda number: (milliseconds[number] or 10**9, number))
        targets.order(first, [waiting[number] for number in expected])
        targets.clear()

    @pytest.mark.parametrize("value", ["soon", "-5", "0", ""])
    def test_what_is_no_target(self, targets: Queue, value: str) -> None:
        """It counts as none."""
        first = targets.take()
        odd, late = targets.put(headers={TTFT: value}), targets.put(headers={TTFT: "900000"})
        targets.order(first, [late, odd])
        targets.clear()

    def test_the_older_header(self, targets: Queue) -> None:
        """x-slo-ttft-ms is the same by its old name."""
        first = targets.take()
        late, early = targets.put(headers={TTFT: "900000"}), targets.put(headers={"x-slo-ttft-ms": "100"})
        targets.order(first, [early, late])
        targets.clear()


class TestGate:
    def test_off(self, around: World) -> None:
        """Without the gate nobody waits, whatever the section says."""
        with (
            around.pool("flow-off", engines=1) as pool,
            around.picker("flow-off", config=config({"maxRequests": 1}, gate=False)) as found,
        ):
            for _ in range(5):
                assert route(found).destination == pool.hostports[0]

    def test_the_environment(self, around: World) -> None:
        """v1.3's variable switches it on."""
        variables = {"ENABLE_EXPERIMENTAL_FLOW_CONTROL_LAYER": "true"}
        text = config(gate=False)
        with (
            around.pool("flow-variable", engines=1) as pool,
            around.picker("flow-variable", config=text, environment=variables) as found,
        ):
            queue = Queue(found, pool)
            queue.take()
            assert queue.put().waits
