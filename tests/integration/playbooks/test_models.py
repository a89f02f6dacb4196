# SPDX-License-Identifier: GPL-3.0-or-later
"""One model of many: brought, given another state, taken away. The others stay."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Playbook

pytestmark = pytest.mark.cluster

MODELS: dict[str, Any] = {
    "inferops_models": [{"name": "one", "model": "org/one", "replicas": 2}, {"name": "two", "model": "org/two"}]
}
ORDER = ["Apply the model servers", "Apply the pools", "Apply the endpoint pickers", "Apply LiteLLM"]


def applied(ran: list[str]) -> list[str]:
    """Which sets were applied, in order."""
    return [name for task in ran for name in ORDER if task.endswith(name)]


def test_a_new_model_comes_with_servers_route_picker_and_entry(playbook: Playbook) -> None:
    variables = {"inferops_model_name": "three", "inferops_model_source": "org/three", "inferops_model_gpus": "2"}
    run = playbook("model_deploy", {**MODELS, **variables})
    assert run.code == 0, run.output
    assert applied(run.ran()) == ORDER
    assert {
        ("Deployment", "three"),
        ("InferencePool", "three"),
        ("HTTPRoute", "three"),
        ("Deployment", "three-epp"),
        ("EnvoyExtensionPolicy", "three"),
        ("ConfigMap", "litellm"),
    } <= run.objects("created")
    assert {("Deployment", "one"), ("Deployment", "two")} <= run.objects("created")
    assert "enter it into inferops_models" in run.result("Say what keeps the model there")["msg"]


def test_a_known_model_gets_another_state(playbook: Playbook) -> None:
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "one", "inferops_model_replicas": 3}, "--diff")
    assert run.code == 0, run.output
    assert "replicas: 3" in run.output


def test_a_model_as_the_inventory_has_it_needs_no_more_words(playbook: Playbook) -> None:
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "two"})
    assert run.code == 0, run.output
    assert not [task for task in run.ran() if task.startswith("Say what")]


def test_more_keys_may_come_as_text(playbook: Playbook) -> None:
    more = "args: [--max-model-len, '4096']\nepp: {replicas: 2}"
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "two", "inferops_model_more": more}, "--diff")
    assert run.code == 0, run.output
    assert "--max-model-len" in run.output
    assert ("PodDisruptionBudget", "two-epp") in run.objects("created")


def test_a_new_model_without_a_source_is_refused(playbook: Playbook) -> None:
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "thre"})
    assert run.code != 0
    assert "inferops_model_source must say what its servers load" in run.output
    assert applied(run.ran()) == []


def test_a_removed_model_is_withdrawn_before_its_servers_go(playbook: Playbook) -> None:
    run = playbook("model_remove", {**MODELS, "inferops_model_name": "two"})
    assert run.code == 0, run.output
    assert applied(run.ran()) == ["Apply LiteLLM", "Apply the pools", "Apply the endpoint pickers", ORDER[0]]
    assert ("Deployment", "one") in run.objects("created")
    assert not [found for found in run.objects("created") if found[1].startswith("two")]


def test_a_model_that_there_is_not_cannot_be_removed(playbook: Playbook) -> None:
    run = playbook("model_remove", {**MODELS, "inferops_model_name": "tow"})
    assert run.code != 0
    assert "There is no model tow in inferops_models; there are one, two" in run.output


@pytest.mark.parametrize("name", ["model_deploy", "model_remove"])
def test_the_model_must_be_named(playbook: Playbook, name: str) -> None:
    run = playbook(name, MODELS)
    assert run.code != 0
    assert "inferops_model_name" in run.output


def test_a_mistyped_variable_is_named(playbook: Playbook) -> None:
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "one", "inferops_model_replica": 3})
    assert run.code != 0
    assert "did you mean inferops_model_replicas" in run.output


@pytest.mark.parametrize("name", ["kserve_runtimes_models", "inference_pool_pools", "epp_pools", "litellm_models"])
def test_a_list_that_the_models_make_is_refused_in_the_inventory(playbook: Playbook, name: str) -> None:
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "one", name: [{"name": "three"}]})
    assert run.code != 0
    assert (
        f"{name} of the inventory would be without effect, as this playbook makes it of inferops_models" in run.output
    )
    assert applied(run.ran()) == []


def test_the_command_line_may_replace_such_a_list(playbook: Playbook) -> None:
    given = {"epp_pools": [{"name": "one", "replicas": 2}]}
    run = playbook("model_deploy", {**MODELS, "inferops_model_name": "one"}, "-e", json.dumps(given))
    assert run.code == 0, run.output
    created = run.objects("created")
    assert {("PodDisruptionBudget", "one-epp"), ("InferencePool", "two")} <= created
    assert ("Deployment", "two-epp") not in created
