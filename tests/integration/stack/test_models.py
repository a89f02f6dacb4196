# SPDX-License-Identifier: GPL-3.0-or-later
"""One model at a time on the running platform: deployed, given a share of another's requests, removed; an adapter."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(900), pytest.mark.usefixtures("converged")]

Json = dict[str, Any]
NAMESPACE = "llm-platform"
SECOND = "second"


def addresses(state: State, model: str) -> set[str]:
    """Of the running pods of a model."""
    pods = state.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=inferops.cluster/model={model}")
    running = [pod for pod in pods["items"] if pod["status"]["phase"] == "Running"]
    return {pod["status"]["podIP"] for pod in running if "deletionTimestamp" not in pod["metadata"]}


def asked(ansible: Ansible, state: State, model: str, times: int) -> list[str]:
    """The addresses of the pods that have answered so many requests to a name of the API."""
    key = state.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/litellm")["data"]["master_key"]
    found = ansible.module(
        "inference_request",
        {
            "service": {"namespace": NAMESPACE, "name": "litellm", "port": 4000},
            "inference_key": f"{{{{ '{key}' | b64decode }}}}",
            "model": model,
            "prompts": [f"question {number}" for number in range(times)],
            "concurrency": 8,
            "parameters": {"max_tokens": 2},
            "expect": {"status": [200]},
        },
    )
    return [each["served_by"].rpartition(":")[0] for each in found["responses"]]


@pytest.fixture
def models(variables: Json) -> list[Json]:
    """The models of the inventory, and a second one with one server."""
    first: Json = variables["inferops_models"][0]
    return [first, {**first, "name": SECOND, "model": SECOND, "replicas": 1}]


def test_a_model_comes_and_goes(ansible: Ansible, state: State, variables: Json, models: list[Json]) -> None:
    first, second = models
    more = {key: value for key, value in second.items() if key not in ("name", "model", "replicas")}
    chosen = {
        "inferops_model_name": SECOND,
        "inferops_model_source": SECOND,
        "inferops_model_replicas": 1,
        "inferops_model_more": more,
    }
    assert ansible.run("playbooks/model_deploy.yml", variables=chosen).changed > 0
    assert ansible.run("playbooks/model_deploy.yml", variables=chosen).changed == 0
    (pod,) = addresses(state, SECOND)
    assert set(asked(ansible, state, SECOND, 8)) == {pod}

    canary = {
        "inferops_models": models,
        "inferops_model_name": first["name"],
        "inferops_canary_name": SECOND,
        "inferops_canary_weight": 50,
    }
    ansible.run("playbooks/model_canary.yml", variables=canary)
    served = asked(ansible, state, first["name"], 60)
    assert 10 <= served.count(pod) <= 50, served
    assert set(served) - {pod} <= addresses(state, first["name"])
    ansible.run("playbooks/model_canary.yml", variables={**canary, "inferops_canary_weight": 0})
    assert pod not in asked(ansible, state, first["name"], 30)

    removed = {"inferops_models": models, "inferops_model_name": SECOND}
    ansible.run("playbooks/model_remove.yml", variables=removed)
    assert addresses(state, SECOND) == set()
    assert ansible.site().changed == 0


def test_an_adapter_comes_and_goes(ansible: Ansible, state: State, variables: Json) -> None:
    name = variables["inferops_models"][0]["name"]
    adapter = {"inferops_model_name": name, "inferops_lora_name": "pirate", "inferops_lora_path": "adapters/pirate"}
    assert ansible.run("playbooks/lora_rollout.yml", variables=adapter).changed > 0
    assert set(asked(ansible, state, "pirate", 12)) <= addresses(state, name)
    with_it = {**variables["inferops_models"][0], "loras": [{"name": "pirate", "path": "adapters/pirate"}]}
    gone = {**adapter, "inferops_models": [with_it], "inferops_lora_state": "absent"}
    assert ansible.run("playbooks/lora_rollout.yml", variables=gone).changed > 0
    assert ansible.site().changed == 0
