# SPDX-License-Identifier: GPL-3.0-or-later
"""Each policy's rule at its edges."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from epp.config.document import Decoder, parse
from epp.config.errors import ConfigError
from epp.flowcontrol.api import Victim
from epp.flowcontrol.outcomes import Outcome
from epp.flowcontrol.queue import FlowKey
from epp.model import Decision, Endpoint, Usage
from epp.plugins.priority_holdback_policy import PriorityHoldbackPolicyParameters

from .conftest import Context, World, band, options, policy, request


def filled(fairness: Any, flows: str, ordering: str = "fcfs-ordering-policy") -> World:
    """A band in which requests of these flows (one letter each) have come a second apart."""
    world = World(options(band(fairness, ordering)))
    for flow in flows:
        world.put(flow)
        world.now += 1
    return world


class TestOrdering:
    def test_fcfs(self) -> None:
        assert filled("global-strict-fairness-policy", "abacb").flows() == list("abacb")

    def test_edf(self) -> None:
        world = World(options(band(ordering="edf-ordering-policy")))
        late, early = world.put("late"), world.put("early")
        late.deadline, early.deadline = 10.0, 5.0
        ranks = [policy("edf-ordering-policy").rank(item) for item in (late, early)]
        assert ranks == [10.0, 5.0]
        assert filled("global-strict-fairness-policy", "abc", "edf-ordering-policy").flows() == list("abc")

    @pytest.mark.parametrize("header", ["x_llm_d_slo_ttft_ms", "x_slo_ttft_ms"])
    def test_slo_deadline(self, header: str) -> None:
        world = World(options(band(ordering="slo-deadline-ordering-policy")))
        for flow, target in (("none", ""), ("5s", "5000"), ("1s", "1000"), ("soon", "soon"), ("2s", "2000.0")):
            world.put(flow, **{header: target})
        world.now += 1.5
        world.put("new", **{header: "100"})
        assert world.flows() == ["1s", "new", "2s", "5s", "none", "soon"]

    def test_the_new_slo_header_goes_before_the_old_one(self) -> None:
        world = World(options(band(ordering="slo-deadline-ordering-policy")))
        item = world.put(x_llm_d_slo_ttft_ms="1000", x_slo_ttft_ms="5")
        assert item.rank == world.now + 1


class TestGlobalStrict:
    def test_it_is_one_queue(self) -> None:
        flows = "aaabaacbba"
        assert filled("global-strict-fairness-policy", flows).flows() == list(flows)

    def test_a_head_that_leaves(self) -> None:
        world = World()
        first = world.put("a")
        for flow in "bab":
            world.put(flow)
        world.core.cancel(first, Outcome.EVICTED_CONTEXT_CANCELLED, world.now)
        assert world.flows() == list("bab")

    def test_a_head_that_is_overtaken(self) -> None:
        world = World(options(band(ordering="slo-deadline-ordering-policy")))
        world.put("a", x_slo_ttft_ms="900")
        world.put("b", x_slo_ttft_ms="500")
        urgent = world.put("a", x_slo_ttft_ms="100")
        assert world.take() is urgent
        assert world.flows() == ["b", "a"]

    def test_many_heads_that_leave_cost_no_memory(self) -> None:
        world = World()
        world.put("stays")
        for number in range(1000):
            world.core.cancel(world.put(f"f{number}"), Outcome.EVICTED_CONTEXT_CANCELLED, world.now)
        selector: Any = world.core.bands[0].selector
        assert len(selector._heap) < 50
        assert world.flows() == ["stays"]

    def test_nobody(self) -> None:
        assert policy("global-strict-fairness-policy").selector().pick(0.0) is None


class TestRoundRobin:
    def test_turns(self) -> None:
        assert filled("round-robin-fairness-policy", "aaaabbc").flows() == list("abcabaa")

    def test_who_comes_back_stands_at_the_end(self) -> None:
        world = filled("round-robin-fairness-policy", "abb")
        assert [item.request.fairness_id for item in (world.take(), world.take()) if item] == ["a", "b"]
        world.put("a")
        world.put("c")
        assert world.flows() == ["b", "a", "c"]

    def test_who_sends_much_gets_no_more(self) -> None:
        world = filled("round-robin-fairness-policy", "a" * 90 + "b" * 10)
        served = Counter(item.request.fairness_id for item in (world.take() for _ in range(20)) if item)
        assert served == {"a": 10, "b": 10}

    def test_within_a_flow_the_ordering_counts(self) -> None:
        world = World(options(band("round-robin-fairness-policy", "slo-deadline-ordering-policy")))
        slow, fast, other = (world.put(flow, x_slo_ttft_ms=ms) for flow, ms in (("a", "9"), ("a", "1"), ("b", "5")))
        assert world.all() == [fast, other, slow]

    def test_nobody(self) -> None:
        assert policy("round-robin-fairness-policy").selector().pick(0.0) is None


class Program:
    """A band whose fairness policy has a clock that the test turns."""

    def __init__(self, **parameters: Any) -> None:
        self.policy = policy("program-aware-fairness", **parameters)
        self.world = World(options(band(self.policy)))
        self.policy.clock = lambda: self.world.now
        self.policy._swept = self.world.now

    def served(self, flow: str, prompt: int, completion: int) -> None:
        """A request of this program has been answered."""
        asked = request(flow)
        decision = Decision((Endpoint("e", "", "p", "10.0.0.1", 8000),))
        self.policy.pre_request(asked, decision)
        self.policy.response_complete(asked, decision, Usage(prompt, completion) if prompt or completion else None)


class TestProgramAware:
    def test_least_service_first(self) -> None:
        made = Program()
        made.served("greedy", 0, 1000)
        for flow in ("greedy", "modest", "greedy"):
            made.world.put(flow)
        assert made.world.flows() == ["modest", "greedy", "greedy"]

    def test_output_counts_twice(self) -> None:
        made = Program(las_weight_head_wait=0.0)
        made.served("input", 199, 0)
        made.served("output", 0, 100)
        for flow in ("output", "input"):
            made.world.put(flow)
        assert made.world.flows() == ["input", "output"]

    def test_equal_service_goes_by_the_wait(self) -> None:
        made = Program()
        for flow in ("a", "b"):
            made.world.put(flow)
            made.world.now += 1
        assert made.world.flows() == ["a", "b"]

    def test_a_long_wait_outweighs_little_service(self) -> None:
        made = Program(las_weight_service=0.2, las_weight_head_wait=0.8)
        made.served("old", 100, 0)
        made.world.put("old")
        made.world.now += 10
        made.world.put("new")
        assert made.world.flows() == ["old", "new"]

    @pytest.mark.parametrize(
        ("parameters", "left"), [({}, 25.0), ({"las_half_life_seconds": 0.0, "las_decay_factor": 0.99}, 29.9371)]
    )
    def test_service_is_forgotten(self, parameters: dict[str, float], left: float) -> None:
        made = Program(**parameters)
        made.served("a", 100, 0)
        made.world.now += 120
        made.served("a", 0, 0)
        assert made.policy._service("a", made.world.now) == pytest.approx(left, rel=1e-4)
        made.served("a", 10, 0)
        recorder = made.policy._recorder
        page = recorder.render().decode()
        assert f'llm_d_epp_program_aware_attained_service_tokens{{program_id="a"}} {left + 10:.3f}'[:-3] in page

    def test_programs_are_forgotten(self) -> None:
        made = Program(eviction_ttl_seconds=100.0, eviction_sweep_seconds=10.0)
        made.world.put("idle")
        made.world.take()
        made.served("idle", 5, 0)
        made.policy.pre_request(request("working"), Decision((Endpoint("e", "", "p", "10.0.0.1", 8000),)))
        made.world.now += 101
        made.served("busy", 5, 0)
        assert sorted(made.policy._programs) == ["busy", "working"]
        assert 'program_id="idle"' not in made.policy._recorder.render().decode()

    def test_waits_and_their_evenness(self) -> None:
        """Jain's index of mean waits 3 and 1: (3 + 1)^2 / (2 * (9 + 1))."""
        made = Program()
        page = made.policy._recorder.render
        made.world.put("a")
        made.world.now += 2
        made.world.put("b")
        made.world.now += 1
        assert len(made.world.all()) == 2
        text = page().decode()
        assert 'llm_d_epp_program_aware_avg_wait_time_milliseconds{program_id="a"} 3000.0' in text
        assert 'llm_d_epp_program_aware_avg_wait_time_milliseconds{program_id="b"} 1000.0' in text
        assert "llm_d_epp_program_aware_jains_fairness_index 0.8" in text
        made.world.put("b")
        made.world.now += 5
        made.world.take()  # waits of 1 and 5: on average 3
        assert "llm_d_epp_program_aware_jains_fairness_index 1.0" in page().decode()

    def test_nobody(self) -> None:
        assert policy("program-aware-fairness").selector().pick(0.0) is None


class TestCeilings:
    def test_static(self) -> None:
        assert policy("static-usage-limit-policy").ceilings(0.5, (3, 2, 1)) == [1.0, 1.0, 1.0]
        assert policy("static-usage-limit-policy", threshold=0.7).ceilings(0.5, (0,)) == [0.7]

    @pytest.mark.parametrize(
        ("parameters", "priorities", "ceilings"),
        [
            ({"min_ceiling": 0.4, "max_ceiling": 0.9}, (100, 50, 1), [0.9, 0.65, 0.4]),
            ({"min_ceiling": 0.4}, (5,), [1.0]),
            ({"min_ceiling": 0.4}, (), []),
            ({"min_ceiling": 0.5, "domain": "value"}, (100, 20, 0), [1.0, 0.6, 0.5]),
            ({"min_ceiling": 0.5, "domain": "value"}, (3,), [1.0]),
            ({"min_ceiling": 0.0, "domain": "value"}, (1, -1), [1.0, 0.0]),
            ({"domain": "explicit", "ceilings": {"10": 0.9, "0": 0.3}}, (10, 5, 0), [0.9, 0.0, 0.3]),
        ],
    )
    def test_holdback(self, parameters: dict[str, Any], priorities: tuple[int, ...], ceilings: list[float]) -> None:
        found = policy("priority-holdback-policy", **parameters).ceilings(0.5, priorities)
        assert found == pytest.approx(ceilings)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{}", "minCeiling is missing"),
            ("{minCeiling: 0.9, maxCeiling: 0.8}", "minCeiling 0.9 must be below maxCeiling 0.8"),
            ("{minCeiling: 1.0}", "minCeiling 1 must be below maxCeiling 1"),
            ("{minCeiling: 1.5}", "must be 1 or less"),
            ("{minCeiling: 0.5, shape: cubic}", "'cubic' is not possible"),
            ("{minCeiling: 0.5, domain: size}", "'size' is not possible"),
            ("{minCeiling: 0.5, ceilings: {1: 0.5}}", "ceilings are for domain explicit only"),
            ("{domain: explicit}", "ceilings are missing"),
            ("{domain: explicit, minCeiling: 0.5, ceilings: {1: 0.5}}", "have no meaning with domain explicit"),
            ("{domain: explicit, ceilings: {high: 0.5}}", "'high' is not a priority"),
            ("{domain: explicit, ceilings: {1: 1.5}}", "1.5 for priority 1 must lie between 0 and 1"),
            ("{domain: explicit, ceilings: {1: 0.5, 0: 0.6}}", "priority 0 has a higher ceiling than 1"),
        ],
    )
    def test_holdback_parameters(self, text: str, told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            Decoder("x").decode(PriorityHoldbackPolicyParameters, parse(text, "x"), "parameters")

    @pytest.mark.parametrize(
        ("saturation", "opened"),
        [
            (0.0, [12, 12, 12]),
            (0.49, [12, 12, 12]),  # below 1 - 1 * 0.49 / 2 and 1 - 2 * 0.49 / 2
            (0.62, [12, 12, 6]),  # above 0.38 only; once in round(0.62 / 0.38) = 2 questions
            (0.75, [12, 4, 4]),  # above 0.625 and 0.25; once in 3
            (0.8, [12, 3, 3]),  # once in 4
            (1.0, [12, 0, 0]),
            (1.7, [12, 0, 0]),
        ],
    )
    def test_soft_reflective(self, saturation: float, opened: list[int]) -> None:
        soft = policy("soft-reflective-ceiling-policy")
        answers = [soft.ceilings(saturation, (2, 1, 0)) for _ in range(12)]
        assert [sum(each) for each in zip(*answers, strict=True)] == opened

    def test_soft_reflective_bands_come_and_go(self) -> None:
        soft = policy("soft-reflective-ceiling-policy")
        assert soft.ceilings(0.9, (1,)) == [1.0]
        assert len(soft.ceilings(0.9, (3, 2, 1))) == 3
        assert len(soft.ceilings(0.9, (3, 2))) == 2


class TestEviction:
    @pytest.mark.parametrize(("priority", "may"), [(-1, True), (0, False), (1, False), (-100, True)])
    def test_sheddable(self, priority: int, may: bool) -> None:
        assert policy("sheddable-eviction-filter").evictable(request(priority=priority)) is may

    def test_order(self) -> None:
        order = policy("priority-then-time-eviction-order-policy")
        victims = [Victim(request(priority=priority), at) for priority, at in ((-1, 5.0), (-2, 1.0), (-1, 9.0))]
        assert sorted(victims, key=order.rank) == [victims[1], victims[2], victims[0]]


def test_keys() -> None:
    assert World().put("a", 3).key == FlowKey("a", 3)
    assert isinstance(Context().recorder.render(), bytes)
