# SPDX-License-Identifier: GPL-3.0-or-later
"""InferenceModelRewrite and InferenceObjective: what the cluster says about models and priorities."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.kit.cluster import LLM_D, NEW, OLD, definition
from conformance.kit.picker import Picker
from conformance.kit.talk import fresh, refuse, route, served
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

NEVER = "v1.3.0 never looks whether the cluster has these resources, and so never reads them"
LATER = "v1.3 does not know the group llm-d.ai"

pytestmark = pytest.mark.differs(go=NEVER)


def rewrite(pool: str, *rules: dict[str, Any]) -> dict[str, Any]:
    """The spec of an InferenceModelRewrite."""
    return {"poolRef": {"group": NEW, "name": pool}, "rules": list(rules)}


def rule(match: str | None, *targets: tuple[str, int]) -> dict[str, Any]:
    """One rule: for a model, or for all (None), these targets with their weights."""
    found: dict[str, Any] = {"targets": [{"modelRewrite": name, "weight": weight} for name, weight in targets]}
    if match is not None:
        found["matches"] = [{"model": {"type": "Exact", "value": match}}]
    return found


def target(found: Picker, model: str, headers: dict[str, str] | None = None) -> str:
    """The model that an engine is asked for."""
    name: str = route(found, fresh(model), headers).document["model"]
    return name


@pytest.fixture(scope="module")
def rewriting(around: World) -> Iterator[Picker]:
    """A picker for a pool of its own."""
    with around.pool("rewriting", engines=1), around.picker("rewriting") as found:
        yield found


class TestRewrite:
    def test_exact(self, around: World, rewriting: Picker) -> None:
        """A rule for one model changes that one, and no other; without the resource all is as before."""
        with around.resource("InferenceModelRewrite", "exact", rewrite("rewriting", rule("old", ("new", 1)))):
            eventually(lambda: target(rewriting, "old") == "new")
            assert target(rewriting, "other") == "other"
        eventually(lambda: target(rewriting, "old") == "old")

    def test_generic(self, around: World, rewriting: Picker) -> None:
        """A rule without matches is for all models."""
        with around.resource("InferenceModelRewrite", "generic", rewrite("rewriting", rule(None, ("any", 1)))):
            eventually(lambda: target(rewriting, "whatever") == "any")

    def test_exact_before_generic(self, around: World, rewriting: Picker) -> None:
        """An exact rule goes before a generic one, in whatever order they stand."""
        spec = rewrite("rewriting", rule(None, ("any", 1)), rule("special", ("own", 1)))
        with around.resource("InferenceModelRewrite", "both", spec):
            eventually(lambda: target(rewriting, "special") == "own")
            assert target(rewriting, "whatever") == "any"

    def test_the_first_rule(self, around: World, rewriting: Picker) -> None:
        """Of two rules for a model the first counts."""
        spec = rewrite("rewriting", rule("m1", ("first", 1)), rule("m1", ("second", 1)))
        with around.resource("InferenceModelRewrite", "twice", spec):
            eventually(lambda: target(rewriting, "m1") == "first")

    def test_the_older_one(self, around: World, rewriting: Picker) -> None:
        """Of two resources for a model the older counts."""
        with around.resource("InferenceModelRewrite", "z-older", rewrite("rewriting", rule("m2", ("older", 1)))):
            eventually(lambda: target(rewriting, "m2") == "older")
            time.sleep(1.1)  # creation times are whole seconds
            with around.resource("InferenceModelRewrite", "a-newer", rewrite("rewriting", rule("m2", ("newer", 1)))):
                with around.resource("InferenceModelRewrite", "witness", rewrite("rewriting", rule("m3", ("seen", 1)))):
                    eventually(lambda: target(rewriting, "m3") == "seen")
                    assert target(rewriting, "m2") == "older"

    def test_weights(self, around: World, rewriting: Picker) -> None:
        """Targets are chosen by their weights."""
        spec = rewrite("rewriting", rule("split", ("heavy", 80), ("light", 20)))
        with around.resource("InferenceModelRewrite", "split", spec):
            eventually(lambda: target(rewriting, "split") != "split")
            counted = collections.Counter(target(rewriting, "split") for _ in range(150))
        assert counted["heavy"] + counted["light"] == 150
        assert 8 <= counted["light"] <= 55, counted

    def test_another_pool(self, around: World, rewriting: Picker) -> None:
        """A resource for another pool is not for this one."""
        with (
            around.resource("InferenceModelRewrite", "theirs", rewrite("another", rule("m4", ("theirs", 1)))),
            around.resource("InferenceModelRewrite", "ours", rewrite("rewriting", rule("m5", ("ours", 1)))),
        ):
            eventually(lambda: target(rewriting, "m5") == "ours")
            assert target(rewriting, "m4") == "m4"

    def test_against_the_header(self, around: World, rewriting: Picker) -> None:
        """A rule of the cluster goes before the client's header."""
        with around.resource("InferenceModelRewrite", "strong", rewrite("rewriting", rule("m6", ("cluster", 1)))):
            eventually(lambda: target(rewriting, "m6") == "cluster")
            assert target(rewriting, "m6", {"x-gateway-model-name-rewrite": "client"}) == "cluster"

    def test_metric(self, around: World, rewriting: Picker) -> None:
        """Decisions are counted."""
        with around.resource("InferenceModelRewrite", "counted", rewrite("rewriting", rule("m7", ("t7", 1)))):
            eventually(lambda: target(rewriting, "m7") == "t7")
            served(rewriting, fresh("m7"))
        labels = {"model_rewrite_name": "counted", "model_name": "m7", "target_model": "t7"}
        assert rewriting.metrics().value("inference_extension_model_rewrite_decisions_total", **labels) >= 2
        assert rewriting.metrics().value("llm_d_epp_model_rewrite_decisions_total", **labels) >= 2


@pytest.fixture(scope="module")
def loaded(around: World) -> Iterator[Picker]:
    """A picker whose only engine is saturated."""
    with around.pool("loaded", engines=1) as pool, around.picker("loaded") as found:
        pool.show({"waiting": 99, "kv": 0.99})
        eventually(lambda: found.metrics().value("inference_pool_per_pod_queue_size", name="loaded") == 99)
        yield found


def shed(found: Picker, objective: str) -> bool:
    """Whether a request with this objective is shed."""
    return refuse(found, headers={"x-gateway-inference-objective": objective}).status == 429


def taken(found: Picker, objective: str) -> bool:
    """Whether it is served."""
    return bool(route(found, headers={"x-gateway-inference-objective": objective}).destination)


class TestObjective:
    def test_it_comes_and_goes(self, around: World, loaded: Picker) -> None:
        """It counts from when it is there, as long as it is."""
        with around.objective("loaded", "passing", -5):
            eventually(lambda: shed(loaded, "passing"))
        eventually(lambda: taken(loaded, "passing"))

    def test_its_priority_changes(self, around: World, loaded: Picker) -> None:
        """A new priority is a new priority."""
        with around.objective("loaded", "changing", -1):
            eventually(lambda: shed(loaded, "changing"))
            around.space.patch(
                "inference.networking.x-k8s.io", "v1alpha2", "InferenceObjective", "changing", {"priority": 1}
            )
            eventually(lambda: taken(loaded, "changing"))

    def test_no_priority(self, around: World, loaded: Picker) -> None:
        """Without a priority it is 0: not shed."""
        with around.objective("loaded", "plain", None), around.objective("loaded", "witness", -1):
            eventually(lambda: shed(loaded, "witness"))
            assert taken(loaded, "plain")

    def test_another_pool(self, around: World, loaded: Picker) -> None:
        """An objective of another pool is not for this one."""
        with around.objective("another", "theirs", -1), around.objective("loaded", "witness", -1):
            eventually(lambda: shed(loaded, "witness"))
            assert taken(loaded, "theirs")

    def test_label(self, around: World, rewriting: Picker) -> None:
        """The priority is a label of the metrics."""
        with around.objective("rewriting", "labelled", 7):
            name = "llm_d_epp_request_total"

            def counted() -> float:
                served(rewriting, fresh("prioritised"), {"x-gateway-inference-objective": "labelled"})
                return rewriting.metrics().value(name, model_name="prioritised", priority="7")

            assert eventually(counted) >= 1


@pytest.fixture(scope="class")
def both_groups(around: World) -> Iterator[None]:
    """A cluster that has both resources in the group llm-d.ai, too."""
    with contextlib.ExitStack() as stack:
        for kind in ("InferenceObjective", "InferenceModelRewrite"):
            stack.enter_context(definition(around.api, LLM_D, "v1alpha2", kind))
        yield


@pytest.mark.differs(go=LATER)
@pytest.mark.usefixtures("both_groups")
class TestNewGroup:
    """The group llm-d.ai; where the cluster has it, the legacy one is ignored."""

    def test_rewrite(self, around: World) -> None:
        """A rewrite in the new group counts, one in the old group does not."""
        with (
            around.pool("grouped", engines=1),
            around.resource("InferenceModelRewrite", "old", rewrite("grouped", rule("m1", ("legacy", 1)))),
            around.resource("InferenceModelRewrite", "new", rewrite("grouped", rule("m2", ("canonical", 1))), LLM_D),
            around.picker("grouped") as found,
        ):
            eventually(lambda: target(found, "m2") == "canonical")
            assert target(found, "m1") == "m1"

    def test_objective(self, around: World) -> None:
        """So does an objective."""
        with (
            around.pool("ranked", engines=0),
            around.objective("ranked", "new", -1, LLM_D),
            around.picker("ranked") as found,
        ):
            eventually(lambda: shed(found, "new"))


def test_the_pool_is_named_in_full(around: World, main_pool: Pool, picker: Picker) -> None:
    """An objective whose poolRef has another group is not for this pool."""
    spec = {"poolRef": {"group": "example.com", "name": main_pool.name}, "priority": -1}
    main_pool.show(*({"waiting": 99} for _ in main_pool.engines))
    with (
        around.resource("InferenceObjective", "foreign", spec),
        around.objective(main_pool.name, "native", -1),
    ):
        eventually(lambda: shed(picker, "native"))
        assert taken(picker, "foreign")


GONE = "v1.3 no longer knows InferenceModel"


def model(name: str, *targets: tuple[str, int], pool: str = "modelled", **more: Any) -> dict[str, Any]:
    """The spec of an InferenceModel."""
    found = {"modelName": name, "poolRef": {"group": NEW, "name": pool}, **more}
    if targets:
        found["targetModels"] = [{"name": each, "weight": weight} for each, weight in targets]
    return found


@pytest.fixture(scope="module")
def modelled(around: World) -> Iterator[Picker]:
    """A cluster that has InferenceModels, and a picker whose only engine is saturated."""
    with (
        definition(around.api, OLD, "v1alpha2", "InferenceModel"),
        around.pool("modelled", engines=1) as pool,
        around.picker("modelled") as found,
    ):
        pool.show({"waiting": 99, "kv": 0.99})
        eventually(lambda: found.metrics().value("inference_pool_per_pod_queue_size", name="modelled") == 99)
        yield found


def dropped(found: Picker, name: str, objective: str = "") -> bool:
    """Whether a request for this model is shed."""
    headers = {"x-gateway-inference-objective": objective} if objective else {}
    return refuse(found, fresh(name), headers).status == 429


@pytest.mark.differs(go=GONE)
class TestInferenceModel:
    """The older resource (v1alpha2)."""

    def test_criticality(self, around: World, modelled: Picker) -> None:
        """Sheddable models are shed while the pool is saturated; others are not."""
        with (
            around.resource("InferenceModel", "c", model("critical", criticality="Critical")),
            around.resource("InferenceModel", "s", model("standard", criticality="Standard")),
            around.resource("InferenceModel", "p", model("plain")),
            around.resource("InferenceModel", "b", model("batch", criticality="Sheddable")),
        ):
            eventually(lambda: dropped(modelled, "batch"))
            for name in ("critical", "standard", "plain", "nobody's"):
                assert route(modelled, fresh(name)).destination
        eventually(lambda: route(modelled, fresh("batch")).destination)

    def test_its_priority_is_told(self, around: World, modelled: Picker) -> None:
        """A critical model has priority 1."""
        with around.resource("InferenceModel", "told", model("told", criticality="Critical")):
            name, labels = "llm_d_epp_request_total", {"model_name": "told", "priority": "1"}
            eventually(lambda: route(modelled, fresh("told")) and modelled.metrics().value(name, **labels))

    def test_an_objective_goes_before_it(self, around: World, modelled: Picker) -> None:
        """Who names an objective has that one's priority."""
        with (
            around.objective("modelled", "modelled-batch", -1),
            around.resource("InferenceModel", "vip", model("vip", criticality="Critical")),
        ):
            eventually(lambda: dropped(modelled, "vip", "modelled-batch"))
            assert route(modelled, fresh("vip")).destination

    def test_targets(self, around: World, modelled: Picker) -> None:
        """Requests are split among the targets by their weights."""
        with around.resource("InferenceModel", "split", model("chat", ("chat-v1", 80), ("chat-v2", 20))):
            eventually(lambda: target(modelled, "chat") != "chat")
            counted = collections.Counter(target(modelled, "chat") for _ in range(100))
        assert counted["chat-v1"] + counted["chat-v2"] == 100
        assert 4 <= counted["chat-v2"] <= 40, counted

    def test_rewrites(self, around: World, modelled: Picker) -> None:
        """It goes before a rewrite for all models, and behind one for just this model."""
        with (
            around.resource("InferenceModelRewrite", "all", rewrite("modelled", rule(None, ("any", 1)))),
            around.resource("InferenceModel", "own", model("own", ("own-v1", 1))),
        ):
            eventually(lambda: target(modelled, "own") == "own-v1" and target(modelled, "other") == "any")
            with around.resource("InferenceModelRewrite", "one", rewrite("modelled", rule("own", ("own-v2", 1)))):
                eventually(lambda: target(modelled, "own") == "own-v2")

    def test_another_pool(self, around: World, modelled: Picker) -> None:
        """One for another pool is not for this one."""
        with (
            around.resource("InferenceModel", "theirs", model("shared", ("theirs", 1), pool="another")),
            around.resource("InferenceModel", "witness", model("seen", ("seen-v1", 1))),
        ):
            eventually(lambda: target(modelled, "seen") == "seen-v1")
            assert target(modelled, "shared") == "shared"
