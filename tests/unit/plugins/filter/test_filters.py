# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters: what they make of good values, and what they say about bad ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.inferops.cluster.plugins.filter.drift import drift
from ansible_collections.inferops.cluster.plugins.filter.endpoint_picker_config import endpoint_picker_config
from ansible_collections.inferops.cluster.plugins.filter.endpoint_picker_problems import endpoint_picker_problems
from ansible_collections.inferops.cluster.plugins.filter.model_items import model_items
from ansible_collections.inferops.cluster.plugins.filter.unknown_variables import unknown_variables

SPECS = {
    "argument_specs": {"main": {"options": {"epp_image": {}, "epp_replicas": {}}}, "verify": {"options": {"epp_x": {}}}}
}
MODEL = {"name": "m", "model": "org/m", "replicas": 2, "pool": {"request_timeout": "1h"}, "epp": {"replicas": 3}}


def weights(config: dict[str, Any]) -> dict[str, Any]:
    """Weight of each scorer in the only profile."""
    plugins = config["schedulingProfiles"][0]["plugins"]
    return {plugin["pluginRef"]: plugin["weight"] for plugin in plugins if "weight" in plugin}


def test_weights_picker_and_thresholds_reach_the_configuration() -> None:
    config = endpoint_picker_config(
        {
            "scorers": {"prefix_cache": 60, "kv_cache_utilization": 30, "queue": 10},
            "picker": "random-picker",
            "saturation_detector": {"queue_depth_threshold": 5, "kv_cache_util_threshold": 0.8},
        }
    )
    assert weights(config) == {"prefix-cache-scorer": 60, "kv-cache-utilization-scorer": 30, "queue-scorer": 10}
    assert config["schedulingProfiles"][0]["plugins"][-1] == {"pluginRef": "random-picker"}
    assert {"type": "random-picker"} in config["plugins"]
    assert config["saturationDetector"] == {"queueDepthThreshold": 5, "kvCacheUtilThreshold": 0.8}


@pytest.mark.parametrize("key", ["prefix_cache", "prefix-cache", "prefixCacheScorer", "prefix-cache-scorer"])
def test_a_scorer_has_many_spellings(key: str) -> None:
    assert weights(endpoint_picker_config({"scorers": {key: 1}})) == {"prefix-cache-scorer": 1}


def test_a_scorer_of_weight_0_is_left_out_and_parameters_are_kept() -> None:
    scorers = {"queue": 0, "prefix_cache": {"weight": 2.5, "parameters": {"blockSize": 16}}}
    config = endpoint_picker_config({"scorers": scorers})
    assert weights(config) == {"prefix-cache-scorer": 2.5}
    assert config["plugins"][0] == {"type": "prefix-cache-scorer", "parameters": {"blockSize": 16}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scorers": {"prefx_cache": 1}}, "did you mean prefix-cache-scorer"),
        ({"scorers": {"queue": -1}}, "scorers.queue: the weight is -1"),
        ({"scorers": {"queue": "many"}}, "scorers.queue: the weight is 'many'"),
        ({"scorers": {"queue": 0}}, "at least one scorer"),
        ({"scorers": {"queue": {"wait": 1}}}, "unknown key 'wait'; did you mean 'weight'"),
        ({"scorers": {"queue": 1}, "picker": "best"}, "picker: 'best' is not one of max-score-picker"),
        ({"scorers": {"queue": 1}, "saturation_detector": {"queue_depth": 1}}, "did you mean 'queue_depth_threshold'"),
        ({"scorers": [1]}, "scorers must be a dictionary"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(said)):
        endpoint_picker_config(values)
    assert said in endpoint_picker_problems(values)[0]


def test_right_values_are_no_problem() -> None:
    assert endpoint_picker_problems({"scorers": {"queue": 1}}) == []


def test_unknown_variables_are_named_with_the_nearest_one() -> None:
    assert unknown_variables(["epp_replcas", "epp_image", "epp_x"], SPECS) == [
        "unknown variable epp_replcas: did you mean epp_replicas?"
    ]
    assert "remove it" in unknown_variables(["epp_zzzzzzzz"], SPECS)[0]


def test_unknown_variables_needs_a_specification() -> None:
    with pytest.raises(AnsibleFilterError, match=r"argument_specs\.yml"):
        unknown_variables([], {"main": {}})


def test_a_model_is_split_among_the_roles() -> None:
    assert model_items([MODEL], "kserve_runtimes") == [{"name": "m", "model": "org/m", "replicas": 2}]
    assert model_items([MODEL], "inference_pool", {"vllm": 8000}) == [
        {"name": "m", "model_names": ["m"], "target_ports": [8000], "request_timeout": "1h"}
    ]
    assert model_items([MODEL], "epp") == [{"name": "m", "runtime": "vllm", "replicas": 3}]
    assert model_items([{**MODEL, "served_name": "org/m"}], "litellm") == [{"name": "org/m"}]


def test_a_models_own_port_wins() -> None:
    assert model_items([{**MODEL, "port": 9}], "inference_pool", {"vllm": 8000})[0]["target_ports"] == [9]


def test_a_canary_shares_the_name_and_its_part_of_the_requests() -> None:
    models = [
        {**MODEL, "canary": {"name": "n", "weight": 10}, "litellm": {"params": {"rpm": 5}}},
        {"name": "n", "served_name": "org/n", "model": "org/n"},
    ]
    assert model_items(models, "litellm") == [
        {"name": "m", "params": {"rpm": 5, "weight": 90}},
        {"name": "m", "model": "hosted_vllm/org/n", "params": {"rpm": 5, "weight": 10}},
        {"name": "org/n"},
    ]
    assert "canary" not in model_items(models, "kserve_runtimes")[0]


def test_a_canary_of_weight_0_is_none() -> None:
    assert model_items([{**MODEL, "canary": {"name": "n", "weight": 0}}], "litellm") == [{"name": "m"}]


def test_a_canary_cannot_get_more_than_all() -> None:
    with pytest.raises(AnsibleFilterError, match="m: the canary's weight is 101"):
        model_items([{**MODEL, "canary": {"name": "n", "weight": 101}}], "litellm")


def test_adapters_are_models_to_clients() -> None:
    model = {**MODEL, "loras": [{"name": "poet", "path": "org/poet"}]}
    assert model_items([model], "inference_pool")[0]["model_names"] == ["m", "poet"]
    assert model_items([model], "litellm") == [{"name": "m"}, {"name": "poet"}]
    assert model_items([model], "kserve_runtimes")[0]["loras"] == model["loras"]


def test_no_other_role_takes_models() -> None:
    with pytest.raises(AnsibleFilterError, match="gpu_nodes"):
        model_items([MODEL], "gpu_nodes")


def test_differences_are_sentences_that_name_who_holds_what() -> None:
    def entry(action: str, **more: Any) -> dict[str, Any]:
        found = {"kind": "ConfigMap", "namespace": "llm", "name": "a", "action": action, "reason": "", "taken_over": []}
        return {**found, "changed": action not in ("unchanged", "absent"), **more}

    held = [{"field": ".data.a", "manager": "kubectl-edit"}]
    entries = [
        entry("unchanged"),
        entry("created"),
        entry("updated", taken_over=held, reason="takes over .data.a (managed by kubectl-edit)"),
        entry("deleted", kind="Namespace", namespace=None),
        entry("updated", reason="only the ownership of its fields goes to inferops.cluster"),
    ]
    assert drift(entries) == [
        "ConfigMap llm/a is missing",
        "ConfigMap llm/a differs: .data.a is held by kubectl-edit",
        "Namespace a is there, but no longer among the variables",
        "ConfigMap llm/a differs: only the ownership of its fields goes to inferops.cluster",
    ]
