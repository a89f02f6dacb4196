# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue: order of bands, limits, times to live, what is forgotten, and policies that fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from epp.flowcontrol.api import FairnessPolicy, OrderingPolicy, Selector, UsageLimitPolicy
from epp.flowcontrol.core import Blocked
from epp.flowcontrol.outcomes import Outcome
from epp.flowcontrol.queue import SLACK, Flow, FlowKey, Item

from .conftest import World, band, options, policy


class TestBands:
    def test_strict_priority(self, world: World) -> None:
        """However long others have waited, the most urgent goes first."""
        for priority in (0, -5, 7, 3, 7):
            world.put(f"p{priority}", priority)
            world.now += 1
        assert world.flows() == ["p7", "p7", "p3", "p0", "p-5"]

    def test_a_full_pool_stops_all(self, world: World) -> None:
        world.put("a", 5)
        world.put("b", -1)
        assert world.flows(saturation=1.0) == []
        assert world.core.blocked == Blocked(5, 1)
        assert world.flows(saturation=0.999) == ["a", "b"]
        assert world.core.blocked is None

    def test_head_of_line(self) -> None:
        """A band whose ceiling is reached stops itself and all below, whether anybody waits in it or not."""
        world = World(options(usage_limit=policy("priority-holdback-policy", min_ceiling=0.2, max_ceiling=0.8)))
        for priority in (10, 5, 0):
            world.put(f"p{priority}", priority)
        assert world.flows(saturation=0.6) == ["p10"]
        assert world.core.blocked == Blocked(5, 1)
        assert world.flows(saturation=0.3) == ["p5"]
        assert world.flows(saturation=0.1) == ["p0"]

    def test_an_empty_band_passes_the_turn_on(self, world: World) -> None:
        world.core.cancel(world.put("gone", 9), Outcome.EVICTED_OTHER, world.now)
        world.put("a", 1)
        assert world.flows() == ["a"]

    def test_bands_of_their_own(self) -> None:
        """A configured band has its options, negative ones theirs, and all others the default's."""
        world = World(
            options(
                band(max_requests=3), negative_band=band(max_requests=1), bands={7: band(max_requests=2), -7: band()}
            )
        )
        for priority, room in ((0, 3), (5, 3), (-5, 1), (7, 2), (-7, 5000)):
            outcomes = [world.put(priority=priority).outcome for _ in range(min(room, 10) + 1)]
            assert outcomes.count(None) == min(room, 11), priority

    def test_the_negative_band_is_optional(self) -> None:
        world = World(options(band(max_requests=1)))
        assert [world.put(priority=-1).outcome for _ in range(2)] == [None, Outcome.REJECTED_CAPACITY]


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "fit"),
        [
            ({"default": band(max_requests=3)}, 3),
            ({"default": band(max_bytes=250)}, 2),
            ({"default": band(max_bytes=300)}, 3),
            ({"max_requests": 3}, 3),
            ({"max_bytes": 399}, 3),
            ({"default": band(max_requests=0, max_bytes=0)}, 20),
            ({}, 20),
        ],
    )
    def test_requests_and_bytes(self, limits: dict[str, Any], fit: int) -> None:
        world = World(options(**limits))
        outcomes = [world.put().outcome for _ in range(20)]
        assert outcomes == [None] * fit + [Outcome.REJECTED_CAPACITY] * (20 - fit)
        assert world.take() is not None
        if fit < 20:
            assert world.put().outcome is None, "there is room again"

    def test_one_band_does_not_fill_another(self) -> None:
        world = World(options(band(max_requests=1)))
        assert world.put(priority=1).outcome is None
        assert world.put(priority=2).outcome is None

    def test_all_bands_together(self) -> None:
        world = World(options(max_requests=2))
        assert [world.put(priority=each).outcome for each in (1, 2, 3)] == [None, None, Outcome.REJECTED_CAPACITY]

    def test_a_request_larger_than_the_limit(self) -> None:
        world = World(options(band(max_bytes=99)))
        assert world.put(size=100).outcome == Outcome.REJECTED_CAPACITY

    def test_without_endpoints(self) -> None:
        """A queue that is full because nobody serves is another matter than one that is full of work."""
        world = World(options(max_requests=1))
        world.core.pool(True, world.now)
        assert [world.put().outcome for _ in range(2)] == [None, Outcome.REJECTED_NO_ENDPOINTS]


class TestTimeToLive:
    def test_it_ends(self, world: World) -> None:
        world.put()
        assert world.expire(59.9) == []
        assert world.expire(0.1) == [Outcome.EVICTED_TTL]
        world.check_empty()

    def test_each_has_its_own(self, world: World) -> None:
        world.put("a")
        world.now += 30
        later = world.put("b")
        assert world.expire(31) == [Outcome.EVICTED_TTL]
        assert world.take() is later

    def test_zero_is_for_ever(self) -> None:
        world = World(options(request_ttl=0, no_endpoint_ttl=0))
        assert world.put().deadline == math.inf
        assert world.expire(1e6) == []
        world.core.pool(True, world.now)
        assert world.expire(1e6) == []

    def test_without_endpoints(self) -> None:
        world = World(options(request_ttl=5, no_endpoint_ttl=300))
        world.core.pool(True, world.now)
        world.put()
        assert world.expire(299) == []
        assert world.expire(1) == [Outcome.EVICTED_NO_ENDPOINTS]

    def test_endpoints_come(self) -> None:
        """Who has waited for the first endpoint has the whole time to live from when it is there."""
        world = World(options(request_ttl=5, no_endpoint_ttl=300))
        world.core.pool(True, world.now)
        world.put()
        assert world.expire(200) == []
        world.core.pool(False, world.now)
        assert world.expire(4.9) == []
        assert world.expire(0.1) == [Outcome.EVICTED_TTL]

    def test_endpoints_go(self) -> None:
        world = World(options(request_ttl=60, no_endpoint_ttl=10))
        world.put()
        assert world.expire(20) == []
        world.core.pool(True, world.now)
        assert world.expire(0) == [Outcome.EVICTED_NO_ENDPOINTS]


class TestOnce:
    def test_cancelled_requests_are_out_at_once(self, world: World) -> None:
        items = [world.put(f"f{number % 3}") for number in range(9)]
        for item in items[::2]:
            assert world.core.cancel(item, Outcome.EVICTED_CONTEXT_CANCELLED, world.now)
            assert not world.core.cancel(item, Outcome.EVICTED_OTHER, world.now)
        assert world.core.requests == 4
        assert world.all() == items[1::2]
        world.check_empty()

    def test_what_was_dispatched_cannot_be_cancelled(self, world: World) -> None:
        item = world.put()
        assert world.take() is item
        assert not world.core.cancel(item, Outcome.EVICTED_CONTEXT_CANCELLED, world.now)
        assert item.outcome == Outcome.DISPATCHED

    def test_closing(self, world: World) -> None:
        items = [world.put(priority=each) for each in (1, -1)]
        assert world.core.close(world.now) == items
        assert [item.outcome for item in items] == [Outcome.EVICTED_OTHER] * 2
        assert world.put().outcome == Outcome.REJECTED_OTHER
        assert world.core.close(world.now) == []
        world.check_empty()

    def test_dead_entries_do_not_pile_up(self, world: World) -> None:
        """Many who come and leave behind one who waits cost no memory."""
        world.put("f")
        for _ in range(1000):
            world.core.cancel(world.put("f"), Outcome.EVICTED_CONTEXT_CANCELLED, world.now)
        flow = world.core.bands[0].flows["f"]
        assert len(flow._heap) <= 2 + SLACK
        assert len(world.core._arrivals) == 1


class TestForgotten:
    def test_idle_flows(self, world: World) -> None:
        for flow in ("idle", "busy"):
            world.put(flow)
        assert world.take() is not None
        world.now += 299
        world.core.collect(world.now)
        assert world.gone == []
        world.now += 1
        world.core.collect(world.now)
        assert world.gone == [FlowKey("idle", 0)]
        assert list(world.core.bands[0].flows) == ["busy"]

    def test_idle_bands(self) -> None:
        world = World(options(bands={5: band()}))
        world.put(priority=9)
        world.take()
        for _ in range(20):
            world.now += 60
            world.core.collect(world.now)
        assert [each.priority for each in world.core.bands] == [5, 0], "configured ones and 0 stay"
        world.put("back", 9)
        assert world.flows() == ["back"]

    def test_bands_wait_longer_than_flows(self) -> None:
        world = World()
        world.put(priority=9)
        world.take()
        world.now += 300
        world.core.collect(world.now)
        world.now += 599
        world.core.collect(world.now)
        assert [each.priority for each in world.core.bands] == [9, 0]
        world.now += 1
        world.core.collect(world.now)
        assert [each.priority for each in world.core.bands] == [0]


class Broken(FairnessPolicy, OrderingPolicy, UsageLimitPolicy, Selector):
    """Fails, or answers nonsense, wherever it can."""

    TYPE = "broken"

    def __init__(self, answer: Any = None) -> None:
        self.name = "broken"
        self.answer = answer

    def selector(self) -> Selector:
        return self

    def changed(self, flow: Flow) -> None:
        pass

    def pick(self, now: float) -> Flow | None:
        return self._answer()

    def rank(self, item: Item) -> float:
        return self._answer()

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        return self._answer()

    def dispatched(self, item: Item, now: float) -> None:
        raise RuntimeError("dispatched")

    def _answer(self) -> Any:
        if self.answer is RuntimeError:
            raise RuntimeError("broken")
        return self.answer


@pytest.mark.parametrize("answer", [RuntimeError, None, math.nan, Flow(FlowKey("x", 0), 0.0), [], "text"])
class TestBrokenPolicies:
    def test_fairness(self, answer: Any) -> None:
        """Whoever has waited longest goes next."""
        world = World(options(band(fairness=Broken(answer))))
        flows = ["b", "a", "b", "c"]
        for flow in flows:
            world.put(flow)
        assert world.flows() == flows
        world.check_empty()

    def test_ordering(self, answer: Any) -> None:
        world = World(options(band(ordering=Broken(answer))))
        items = [world.put() for _ in range(5)]
        assert world.all() == items

    def test_ceilings(self, answer: Any) -> None:
        world = World(options(usage_limit=Broken(answer)))
        world.put("a")
        assert world.flows(saturation=1.0) == []
        assert world.flows(saturation=0.9) == ["a"]
