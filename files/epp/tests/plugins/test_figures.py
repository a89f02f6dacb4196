# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that look at utilization, at custom figures, and at places."""

from __future__ import annotations

from typing import Any

import pytest

from epp.config import ConfigError


def condition(metric: str, most: float) -> str:
    return f"{{metric: {metric}, maxValue: {most}}}"


class TestUtilizationFilter:
    @pytest.mark.parametrize(
        ("metric", "most", "kept"),
        [
            ("active-requests", 1, [0, 1]),
            ("active-requests", 0, [0]),
            ("running-requests", 4, [0]),
            ("running-requests", 5, [0, 1]),
            ("waiting-queue", 0, [0, 1]),
            ("waiting-queue", 7, [0, 1, 2]),
            ("kv-cache-utilization", 0.5, [0, 1]),
            ("kv-cache-utilization", 0.49, [0]),
        ],
    )
    def test_the_formula(self, kit: Any, metric: str, most: float, kept: list[int]) -> None:
        parameters = kit.parameters("utilization-filter", f"{{conditions: [{condition(metric, most)}]}}")
        pods = [
            kit.endpoint(0, metrics=kit.read()),
            kit.endpoint(1, metrics=kit.read(running=5, kv_cache_usage=0.5)),
            kit.endpoint(2, metrics=kit.read(running=9, waiting=7, kv_cache_usage=0.9)),
        ]
        for pod, count in zip(pods, (0, 1, 2), strict=True):
            pod.inflight = count
        found = kit.make("utilization-filter", **vars(parameters)).filter(kit.ask(), pods)
        assert found == [pods[number] for number in kept]

    @pytest.mark.parametrize(("fallback", "left"), [(True, 1), (False, 0)])
    def test_nobody_is_left(self, kit: Any, fallback: bool, left: int) -> None:
        conditions = f"{condition('waiting-queue', 0)}, {condition('kv-cache-utilization', 0)}"
        parameters = kit.parameters(
            "utilization-filter", f"{{conditions: [{conditions}], fallbackOnEmpty: {str(fallback).lower()}}}"
        )
        pods = [kit.endpoint(metrics=kit.read(kv_cache_usage=0.1))]
        assert len(kit.make("utilization-filter", **vars(parameters)).filter(kit.ask(), pods)) == left

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{conditions: []}", "conditions is empty"),
            ("{}", "conditions: is missing"),
            ("{conditions: [{metric: waiting-queue}]}", "needs metric and maxValue"),
            ("{conditions: [{metric: waiting, maxValue: 1}]}", "did you mean 'waiting-queue'"),
        ],
    )
    def test_mistakes(self, kit: Any, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            kit.parameters("utilization-filter", text)


def figures(kit: Any, *values: float | None) -> list[Any]:
    return [
        kit.endpoint(number, metrics=kit.read(custom={} if value is None else {"x": value}))
        for number, value in enumerate(values)
    ]


class TestEndpointAttributeScorer:
    @pytest.mark.parametrize(
        ("normalization", "values", "scores"),
        [
            ("{adaptiveRange: {}}", [0.0, 5.0, 10.0], [0.0, 0.5, 1.0]),
            ("{}", [3.0, 3.0], [1.0, 1.0]),
            ("{}", [1.0, None, 2.0], [0.0, 0.0, 1.0]),
            ("{}", [None, None], [0.0, 0.0]),
            ("{fixedRange: {min: 0, max: 4}}", [-1.0, 0.0, 1.0, 4.0, 9.0], [0.0, 0.0, 0.25, 1.0, 1.0]),
            ("{fixedRange: {min: 0, max: 4}}", [None, 4.0], [0.0, 1.0]),
        ],
    )
    @pytest.mark.parametrize("lower", [False, True])
    def test_the_formula(
        self, kit: Any, normalization: str, values: list[float | None], scores: list[float], lower: bool
    ) -> None:
        kind = "linear_lower_is_better" if lower else "linear_higher_is_better"
        parameters = kit.parameters(
            "endpoint-attribute-scorer",
            f"{{attributeKey: x, algorithm: {{type: {kind}, normalization: {normalization}}}}}",
        )
        found = kit.make("endpoint-attribute-scorer", **vars(parameters)).score(kit.ask(), figures(kit, *values))
        known = {value for value in values if value is not None}
        if (lower and len(known) > 1) or ("fixed" in normalization and lower):
            scores = [0.0 if value is None else 1.0 - score for value, score in zip(values, scores, strict=True)]
        assert found == scores

    @pytest.mark.parametrize(
        ("algorithm", "message"),
        [
            ("{}", "type is missing"),
            ("{type: linear}", "known are linear_higher"),
            ("{type: linear_lower_is_better, normalization: {fixedRange: {min: 1, max: 1}}}", "min must be less"),
            (
                "{type: linear_lower_is_better, normalization: {adaptiveRange: {}, fixedRange: {min: 0, max: 1}}}",
                "exclude each other",
            ),
        ],
    )
    def test_mistakes(self, kit: Any, algorithm: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            kit.parameters("endpoint-attribute-scorer", f"{{attributeKey: x, algorithm: {algorithm}}}")


class TestEndpointAttributeFilter:
    @pytest.mark.parametrize(
        ("algorithm", "kept"),
        [
            ("{type: threshold, threshold: {operator: LessThan, value: 2}}", [0]),
            ("{type: threshold, threshold: {operator: LessThanOrEqual, value: 2}}", [0, 1]),
            ("{type: threshold, threshold: {operator: GreaterThan, value: 2}}", [2, 3]),
            ("{type: threshold, threshold: {operator: GreaterThanOrEqual, value: 2}}", [1, 2, 3]),
            ("{type: threshold, threshold: {operator: Equal, value: 2}}", [1]),
            ("{type: threshold, threshold: {operator: NotEqual, value: 2}}", [0, 2, 3]),
            ("{type: range, range: {min: 2, max: 3}}", [1, 2]),
            ("{type: topK, topK: {k: 2}}", [2, 3]),
            ("{type: topK, topK: {k: 1, higherIsBetter: false}}", [0]),
            ("{type: topK, topK: {k: 99}}", [0, 1, 2, 3]),
            ("{type: percentile, percentile: {percentile: 50}}", [1, 2, 3]),
            ("{type: percentile, percentile: {percentile: 25, higherIsBetter: false}}", [0]),
            ("{type: percentile, percentile: {percentile: 0}}", [0, 1, 2, 3]),
            ("{type: percentile, percentile: {percentile: 100}}", [3]),
        ],
    )
    @pytest.mark.parametrize("missing", ["Pass", "Fail"])
    def test_the_formula(self, kit: Any, algorithm: str, kept: list[int], missing: str) -> None:
        parameters = kit.parameters(
            "endpoint-attribute-filter", f"{{attribute: x, onMissing: {missing}, algorithm: {algorithm}}}"
        )
        pods = figures(kit, 1.0, 2.0, 3.0, 4.0, None)
        found = kit.make("endpoint-attribute-filter", **vars(parameters)).filter(kit.ask(), pods)
        assert found == [pods[number] for number in kept] + ([pods[4]] if missing == "Pass" else [])

    @pytest.mark.parametrize(("fallback", "left"), [("true", 2), ("false", 0)])
    @pytest.mark.parametrize(
        "algorithm", ["{type: range, range: {min: 8, max: 9}}", "{type: percentile, percentile: {}}"]
    )
    def test_nobody_is_left(self, kit: Any, algorithm: str, fallback: str, left: int) -> None:
        parameters = kit.parameters(
            "endpoint-attribute-filter",
            f"{{attribute: y, onMissing: Fail, fallbackOnEmpty: {fallback}, algorithm: {algorithm}}}",
        )
        found = kit.make("endpoint-attribute-filter", **vars(parameters)).filter(kit.ask(), figures(kit, 1.0, 2.0))
        assert len(found) == left

    @pytest.mark.parametrize(
        ("algorithm", "message"),
        [
            ("{}", "type is missing"),
            ("{type: threshold}", "threshold is missing"),
            ("{type: topK, threshold: {value: 1}}", "topK is missing"),
            ("{type: range, range: {min: 2, max: 1}}", "min must not be more"),
        ],
    )
    def test_mistakes(self, kit: Any, algorithm: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            kit.parameters("endpoint-attribute-filter", f"{{attribute: x, algorithm: {algorithm}}}")


class TestTopology:
    PLACES = "{hostnameLabel: host, rackLabel: rack, zoneLabel: zone, regionLabel: region}"
    TEXT = f"""\
plugins:
- {{type: topology-extractor, parameters: {PLACES}}}
- type: topology-affinity-scorer
- {{type: topology-affinity-filter, parameters: {{minAffinity: rack}}}}
- {{type: topology-affinity-filter, name: same-host}}
"""

    def pods(self, kit: Any) -> list[Any]:
        peer = {"host": "h1", "rack": "r1", "zone": "z1", "region": "g1"}
        return [
            kit.endpoint(0, **peer),
            kit.endpoint(1, **{**peer, "host": "h2"}),
            kit.endpoint(2, host="h3", rack="r2", zone="z1", region="g1"),
            kit.endpoint(3, host="h4", rack="r3", zone="z2", region="g1"),
            kit.endpoint(4, host="h5", region="g2"),
            kit.endpoint(5),
        ]

    def test_near_and_far(self, kit: Any) -> None:
        pods = self.pods(kit)
        rig = kit.rig(self.TEXT, pods)
        request = kit.ask()
        request.attributes["peer-endpoint"] = kit.endpoint(9, host="h1", rack="r1", zone="z1", region="g1")
        assert rig.plugin("topology-affinity-scorer").score(request, pods) == [1.0, 0.2, 0.05, 0.02, 0.0, 0.0]
        assert rig.plugin("topology-affinity-filter").filter(request, pods) == pods[:2]
        assert rig.plugin("same-host").filter(request, pods) == pods[:1]
        assert rig.plugin("same-host").filter(request, pods[1:]) == pods[1:], "nobody is better than all"

    def test_nothing_is_known_of_a_peer(self, kit: Any) -> None:
        pods = self.pods(kit)
        rig = kit.rig(self.TEXT, pods)
        assert rig.plugin("topology-affinity-scorer").score(kit.ask(), pods) == [0.0] * 6
        assert rig.plugin("topology-affinity-filter").filter(kit.ask(), pods) == pods

    def test_the_pod_is_its_own_host(self, kit: Any) -> None:
        scorer = kit.make("topology-affinity-scorer")
        request = kit.ask()
        rank0, rank1 = kit.endpoint(0, 8000), kit.endpoint(0, 8001)
        request.attributes["peer-endpoint"] = rank0
        assert scorer.score(request, [rank1, kit.endpoint(1)]) == [1.0, 0.0]

    def test_prefill_happens_near_the_decoder(self, kit: Any) -> None:
        text = """\
plugins:
- type: decode-filter
- type: prefill-filter
- {type: topology-extractor, parameters: {hostnameLabel: host}}
- {type: topology-affinity-filter, parameters: {topologyProducerName: topology-extractor}}
- {type: topology-affinity-scorer, parameters: {topologyProducerName: topology-extractor}}
- type: always-disagg-pd-decider
- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decode-filter}]}
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: topology-affinity-filter}, {pluginRef: topology-affinity-scorer}]
"""
        pods = [
            kit.endpoint(number, **{"llm_d.ai__role": role, "host": host})
            for number, (role, host) in enumerate(
                [("prefill", "a"), ("prefill", "b"), ("decode", "a"), ("decode", "b")]
            )
        ]
        rig = kit.rig(text, pods)
        for _ in range(20):
            decision = rig.send(kit.ask(b"x" * 400))
            prefiller = decision.profiles["prefill"][0]
            assert prefiller.labels["host"] == decision.endpoints[0].labels["host"]
