# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts of InferenceObjectives, InferenceModelRewrites and InferenceModels, for which pool and which model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from epp.datalayer.kubeconfig import Credentials
from epp.datalayer.kubernetes import KubeClient
from epp.datalayer.objectives import MODELS, OBJECTIVES, REWRITES, Objectives

Spec = dict[str, Any]


def named(**specs: Any) -> dict[str, Spec]:
    """Objects by name, created one second after the other; a spec may be a pair with its time."""
    objects = {}
    for second, (name, spec) in enumerate(specs.items()):
        at, content = spec if isinstance(spec, tuple) else (f"2026-01-01T00:00:{second:02}Z", spec)
        objects[name] = {"metadata": {"name": name, "creationTimestamp": at}, "spec": content}
    return objects


def of(pool: str = "pool", **spec: Any) -> Spec:
    return {"poolRef": {"name": pool}, **spec}


def rule(match: str | None, *targets: tuple[str, int | None]) -> Spec:
    found: Spec = {
        "targets": [
            {"modelRewrite": name} if weight is None else {"modelRewrite": name, "weight": weight}
            for name, weight in targets
        ]
    }
    if match is not None:
        found["matches"] = [{"model": {"type": "Exact", "value": match}}]
    return found


def made(
    objectives: dict[str, Spec] | None = None,
    rewrites: dict[str, Spec] | None = None,
    models: dict[str, Spec] | None = None,
    seed: int = 1,
) -> Any:
    """The objectives of ``pool``."""
    found = Objectives(KubeClient(Credentials("http://x")), "ns", seed)
    found.take(OBJECTIVES, objectives or {})
    found.take(REWRITES, rewrites or {})
    found.take(MODELS, models or {})
    return found.of_pool("pool")


def target(found: Any, model: str) -> str | None:
    rewrite = found.rewrite(model)
    return None if rewrite is None else rewrite.target


class TestPriority:
    def test_by_name(self) -> None:
        found = made(named(a=of(priority=5), b=of(priority=-1), c=of(), d=of(priority="high")))
        assert [found.priority(name, "m") for name in "abcd"] == [5, -1, 0, 0]
        assert found.priority("", "m") == found.priority("unknown", "m") == 0

    @pytest.mark.parametrize(
        ("reference", "ours"),
        [
            ({"name": "pool"}, True),
            ({"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}, True),
            ({"name": "pool", "group": "inference.networking.x-k8s.io"}, True),
            ({"name": "pool", "group": ""}, True),
            ({"name": "pool", "group": "example.com"}, False),
            ({"name": "pool", "kind": "Service"}, False),
            ({"name": "other"}, False),
            ({}, False),
            (None, False),
        ],
    )
    def test_the_pool_it_refers_to(self, reference: Any, ours: bool) -> None:
        found = made(named(a={"poolRef": reference, "priority": 5}))
        assert found.priority("a", "m") == (5 if ours else 0)

    def test_criticality(self) -> None:
        models = named(
            a=of(modelName="critical", criticality="Critical"),
            b=of(modelName="standard", criticality="Standard"),
            c=of(modelName="sheddable", criticality="Sheddable"),
            d=of(modelName="plain"),
            e=of(modelName="odd", criticality="Whatever"),
        )
        found = made(models=models)
        names = ("critical", "standard", "sheddable", "plain", "odd", "unknown")
        assert [found.priority("", name) for name in names] == [1, 0, -1, 0, 0, 0]

    def test_an_objective_goes_before_criticality(self) -> None:
        found = made(named(low=of(priority=-5)), models=named(a=of(modelName="m", criticality="Critical")))
        assert found.priority("low", "m") == -5
        assert found.priority("unknown", "m") == 1

    def test_of_two_models_the_older(self) -> None:
        models = named(
            z=("2025-01-01T00:00:00Z", of(modelName="m", criticality="Sheddable", targetModels=[{"name": "old"}])),
            a=("2026-01-01T00:00:00Z", of(modelName="m", criticality="Critical", targetModels=[{"name": "new"}])),
        )
        found = made(models=models)
        assert (found.priority("", "m"), target(found, "m")) == (-1, "old")

    def test_a_pool_that_nobody_refers_to(self) -> None:
        found = made(named(a=of("other", priority=5)))
        assert (found.priority("a", "m"), found.rewrite("m")) == (0, None)


class TestRewrite:
    def test_exact_and_generic(self) -> None:
        found = made(rewrites=named(r=of(rules=[rule(None, ("any", 1)), rule("special", ("own", 1))])))
        assert (target(found, "special"), target(found, "whatever"), found.rewrite("")) == ("own", "any", None)

    def test_an_exact_rule_of_a_younger_resource_goes_before_an_older_generic_one(self) -> None:
        found = made(rewrites=named(old=of(rules=[rule(None, ("any", 1))]), new=of(rules=[rule("m", ("own", 1))])))
        assert target(found, "m") == "own"

    @pytest.mark.parametrize("match", ["m", None])
    def test_the_older_resource_and_its_first_rule(self, match: str | None) -> None:
        rewrites = named(
            z=("2025-01-01T00:00:00Z", of(rules=[rule(match, ("first", 1)), rule(match, ("second", 1))])),
            a=("2026-01-01T00:00:00Z", of(rules=[rule(match, ("younger", 1))])),
        )
        assert target(made(rewrites=rewrites), "m") == "first"

    def test_those_of_one_second_go_by_name(self) -> None:
        at = "2026-01-01T00:00:00Z"
        rewrites = named(b=(at, of(rules=[rule("m", ("b", 1))])), a=(at, of(rules=[rule("m", ("a", 1))])))
        assert target(made(rewrites=rewrites), "m") == "a"

    def test_it_says_who_said_so(self) -> None:
        found = made(rewrites=named(named_so=of(rules=[rule("m", ("t", 1))])))
        assert found.rewrite("m").resource == "named_so"

    def test_several_matches(self) -> None:
        several = rule("a", ("t", 1))
        several["matches"].append({"model": {"value": "b"}})
        several["matches"].append({"model": {"type": "Regex", "value": "c"}})
        several["matches"] += [{"model": None}, {}, "text", {"model": {"value": ""}}]
        found = made(rewrites=named(r=of(rules=[several])))
        assert [target(found, model) for model in "abc"] == ["t", "t", None]

    @pytest.mark.parametrize("rules", [None, [], "text", [None], [{}], [{"targets": []}], [rule("m")], [rule(None)]])
    def test_rules_that_say_nothing(self, rules: Any) -> None:
        assert made(rewrites=named(r=of(rules=rules))).rewrite("m") is None

    def test_weights(self) -> None:
        """Within four standard deviations of 3000 choices."""
        found = made(rewrites=named(r=of(rules=[rule("m", ("a", 70), ("b", 20), ("c", 10), ("never", 0))])))
        counted = Counter(target(found, "m") for _ in range(3000))
        assert abs(counted["a"] - 2100) <= 101
        assert abs(counted["b"] - 600) <= 88
        assert abs(counted["c"] - 300) <= 66
        assert counted["never"] == 0

    @pytest.mark.parametrize("weight", [None, 0])
    def test_without_weights_all_are_alike(self, weight: int | None) -> None:
        found = made(rewrites=named(r=of(rules=[rule("m", ("a", weight), ("b", weight))])))
        counted = Counter(target(found, "m") for _ in range(1000))
        assert abs(counted["a"] - 500) <= 64

    def test_a_seed_makes_choices_repeatable(self) -> None:
        def run(seed: int) -> list[str | None]:
            found = made(rewrites=named(r=of(rules=[rule("m", ("a", 1), ("b", 1))])), seed=seed)
            return [target(found, "m") for _ in range(50)]

        assert run(7) == run(7) != run(8)

    def test_an_older_model_goes_between_exact_and_generic(self) -> None:
        models = named(a=of(modelName="m", targetModels=[{"name": "t", "weight": 1}]), b=of(modelName="own"))
        generic = named(r=of(rules=[rule(None, ("any", 1))]))
        assert target(made(rewrites=generic, models=models), "m") == "t"
        assert target(made(rewrites=generic, models=models), "own") == "any"
        exact = named(r=of(rules=[rule("m", ("exact", 1))]))
        found = made(rewrites=exact, models=models)
        assert (target(found, "m"), target(found, "own")) == ("exact", None)
        assert made(models=models).rewrite("m").resource == ""

    def test_weights_of_an_older_model(self) -> None:
        targets = [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}]
        found = made(models=named(a=of(modelName="m", targetModels=targets)))
        counted = Counter(target(found, "m") for _ in range(2000))
        assert abs(counted["b"] - 200) <= 54

    def test_a_model_without_a_name(self) -> None:
        found = made(models=named(a=of(targetModels=[{"name": "t"}]), b={"poolRef": {"name": "pool"}}))
        assert found.rewrite("") is None

    def test_a_spec_that_is_none(self) -> None:
        assert made({"a": {"metadata": {"name": "a"}, "spec": "text"}}).priority("a", "m") == 0
