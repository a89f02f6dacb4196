# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds whatever comes in whatever order."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from epp.flowcontrol.api import Victim
from epp.flowcontrol.core import Blocked
from epp.flowcontrol.eviction import InFlight
from epp.flowcontrol.outcomes import Outcome
from epp.flowcontrol.queue import Item
from epp.model import Usage

from .conftest import World, band, evicting, options, policy

FAIRNESS = ("global-strict-fairness-policy", "round-robin-fairness-policy", "program-aware-fairness")
ORDERING = ("fcfs-ordering-policy", "edf-ordering-policy", "slo-deadline-ordering-policy")
FLOWS = st.sampled_from(["a", "b", "c", "d"])
PRIORITIES = st.sampled_from([-2, -1, 0, 1, 9])


class Queueing(RuleBasedStateMachine):
    """Requests come, go, leave, expire and are given up; a plain model counts along."""

    items = Bundle("items")

    @initialize(
        fairness=st.sampled_from(FAIRNESS),
        ordering=st.sampled_from(ORDERING),
        limit=st.sampled_from([0, 3, 10]),
        size=st.sampled_from([0, 500]),
        soft=st.booleans(),
    )
    def begin(self, fairness: str, ordering: str, limit: int, size: int, soft: bool) -> None:
        usage = policy("soft-reflective-ceiling-policy") if soft else policy("static-usage-limit-policy")
        template = band(fairness, ordering, max_requests=limit, max_bytes=size)
        self.world = World(options(template, request_ttl=60.0, no_endpoint_ttl=20.0, usage_limit=usage))
        self.waiting: dict[int, Item] = {}
        self.ended: Counter[str] = Counter()
        self.in_flight: InFlight[Victim] = InFlight(evicting(), 0.0)
        self.victims: set[Victim] = set()
        self.sent = self.refused = 0

    @rule(target=items, flow=FLOWS, priority=PRIORITIES, size=st.integers(0, 300), ttft=st.sampled_from(["", "5"]))
    def put(self, flow: str, priority: int, size: int, ttft: str) -> Item:
        item = self.world.put(flow, priority, size, x_slo_ttft_ms=ttft)
        self.sent += 1
        if item.outcome is None:
            self.waiting[id(item)] = item
        else:
            assert item.outcome in (Outcome.REJECTED_CAPACITY, Outcome.REJECTED_NO_ENDPOINTS)
            self.refused += 1
        return item

    @rule(saturation=st.sampled_from([0.0, 0.5, 0.8, 1.0]))
    def take(self, saturation: float) -> None:
        item = self.world.take(saturation)
        if item is None:
            assert saturation > 0.0 or not self.waiting, "at rest somebody always may go"
            return
        self.leaves(item)
        if saturation == 0.0:
            urgent = [each for each in self.waiting.values() if each.request.priority > item.request.priority]
            assert not urgent, "more urgent ones wait"
        victim = Victim(item.request, self.world.now)
        self.in_flight.add(victim)
        self.victims.add(victim)

    @rule(item=consumes(items))
    def cancel(self, item: Item) -> None:
        waited = id(item) in self.waiting
        assert self.world.core.cancel(item, Outcome.EVICTED_CONTEXT_CANCELLED, self.world.now) is waited
        if waited:
            self.leaves(item)

    @rule(seconds=st.sampled_from([0.1, 5.0, 19.0, 61.0]), empty=st.booleans())
    def time_passes(self, seconds: float, empty: bool) -> None:
        self.world.now += seconds
        self.world.core.pool(empty, self.world.now)
        for item in self.world.core.expire(self.world.now):
            assert self.world.now - item.enqueued >= 20.0
            assert item.outcome == (Outcome.EVICTED_NO_ENDPOINTS if empty else Outcome.EVICTED_TTL)
            self.leaves(item)
        self.world.core.collect(self.world.now)

    @rule(priority=PRIORITIES)
    def make_room(self, priority: int) -> None:
        for victim in self.in_flight.make_room(Blocked(priority, 1), self.world.now):
            assert victim.request.priority < min(priority, 0)
            self.victims.remove(victim)

    @rule()
    def answer(self) -> None:
        if self.victims:
            self.in_flight.remove(self.victims.pop())

    @rule()
    def close_and_begin_again(self) -> None:
        for item in self.world.core.close(self.world.now):
            assert item.outcome == Outcome.EVICTED_OTHER
            self.leaves(item)
        assert not self.waiting
        self.world.core.closed = False

    def leaves(self, item: Item) -> None:
        """It must have waited, and not have left before."""
        del self.waiting[id(item)]
        assert item.outcome is not None
        self.ended[item.outcome] += 1

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "world"):
            return
        core = self.world.core
        assert self.sent == self.refused + sum(self.ended.values()) + len(self.waiting), "one is lost"
        assert core.requests == len(self.waiting) == sum(each.requests for each in core.bands)
        assert core.bytes == sum(item.size for item in self.waiting.values())
        for each in core.bands:
            assert each.requests == sum(flow.requests for flow in each.flows.values())
            assert each.bytes == sum(flow.bytes for flow in each.flows.values())
        assert len(self.in_flight) == sum(victim.request.priority < 0 for victim in self.victims)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.core.pool(False, self.world.now)
            for item in self.world.all():
                self.leaves(item)
            assert not self.waiting
            self.world.check_empty()


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(flows=st.lists(FLOWS, min_size=1, max_size=60), fairness=st.sampled_from(FAIRNESS))
@settings(max_examples=100, deadline=None)
def test_everybody_has_a_turn(flows: list[str], fairness: str) -> None:
    """Without new ones, all go, each once, and a flow's in their order."""
    world = World(options(band(fairness)))
    items = [world.put(flow) for flow in flows]
    gone = world.all()
    assert sorted(map(id, gone)) == sorted(map(id, items))
    for flow in set(flows):
        mine = [item for item in items if item.request.fairness_id == flow]
        assert [item for item in gone if item.request.fairness_id == flow] == mine


@pytest.mark.parametrize("fairness", FAIRNESS)
@pytest.mark.parametrize("seed", range(5))
def test_no_flow_starves(fairness: str, seed: int) -> None:
    """While others pour in, a request goes after at most as many dispatches as its policy promises: all that came
    before it (first come, first served), one per flow, or, for attained service, when it has had the least."""
    rng = random.Random(seed)
    world = World(options(band(fairness)))
    for _ in range(20):
        world.put(rng.choice("abc"))
    world.now += 1
    mine = world.put("mine")
    ahead = {"round-robin-fairness-policy": 3}.get(fairness, 20)
    for turn in range(1000):
        world.now += 0.01
        world.put(rng.choice("abc"))
        if world.take() is mine:
            assert turn <= ahead
            return
    raise AssertionError("it starves")


@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=6),
    rounds=st.integers(5, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_round_robin_is_fair(weights: list[int], rounds: int, seed: int) -> None:
    """Flows that always wait get the same number of dispatches, give or take one, however unequal their load is."""
    rng = random.Random(seed)
    world = World(options(band("round-robin-fairness-policy")))
    names = [f"f{index}" for index in range(len(weights))]
    for name in names:
        for _ in range(rounds):
            world.put(name)
    served: Counter[Any] = Counter()
    for _ in range(rounds * len(names) // 2):
        world.put(rng.choices(names, weights)[0])
        item = world.take()
        assert item is not None
        served[item.request.fairness_id] += 1
    counts = [served[name] for name in names]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_attained_service_evens_out(seed: int) -> None:
    """Programs whose answers cost 1, 4 and 16 times as much get about the same service in the end."""
    rng = random.Random(seed)
    made = policy("program-aware-fairness", las_half_life_seconds=1e9, las_weight_head_wait=0.0)
    world = World(options(band(made)))
    made.clock = lambda: world.now
    cost = {"small": 10, "middle": 40, "large": 160}
    attained: Counter[str] = Counter()
    for _ in range(1500):
        world.now += 0.01
        for name in cost:
            if world.core.bands[0].flows.get(name) is None or not world.core.bands[0].flows[name].requests:
                world.put(name)
        item = world.take()
        assert item is not None
        name = item.request.fairness_id
        tokens = round(cost[name] * rng.uniform(0.5, 1.5))
        attained[name] += tokens
        made.pre_request(item.request, None)
        made.response_complete(item.request, None, Usage(prompt_tokens=tokens))
    assert max(attained.values()) / min(attained.values()) < 1.05, attained
