# SPDX-License-Identifier: GPL-3.0-or-later
"""Single steps on the platform, in check mode."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Playbook

pytestmark = pytest.mark.cluster

GO_IMAGE = "registry.k8s.io/gateway-api-inference-extension/epp:v1.3.0"
MODELS: dict[str, Any] = {"inferops_models": [{"name": "one", "model": "org/one"}, {"name": "two", "model": "org/two"}]}


def test_the_image_of_one_endpoint_picker_is_replaced(playbook: Playbook) -> None:
    wanted = {"inferops_epp_image": GO_IMAGE, "inferops_epp_pools": ["two"]}
    run = playbook("epp_image", {**MODELS, **wanted, "epp_image": "registry.example.com/epp:1"}, "--diff")
    assert run.code == 0, run.output
    assert run.output.count(f"image: {GO_IMAGE}") == 1
    assert run.output.count("image: registry.example.com/epp:1") == 1
    assert GO_IMAGE in run.result("Say what keeps the image there")["msg"]


def test_a_pool_that_there_is_not_is_named(playbook: Playbook) -> None:
    run = playbook("epp_image", {**MODELS, "inferops_epp_image": GO_IMAGE, "inferops_epp_pools": ["tow"]})
    assert run.code != 0
    assert "There is no pool tow in inferops_models; there are one, two" in run.output


def test_gpu_nodes_alone(playbook: Playbook, namespace: str) -> None:
    own = {"gpu_nodes_namespace": namespace, "gpu_nodes_runtime_class": namespace, "gpu_nodes_wait": False}
    run = playbook("gpu_nodes", {**own, "gpu_nodes_sharing": {"strategy": "time_slicing", "replicas": 4}})
    assert run.code == 0, run.output
    assert {("DaemonSet", "nvidia-device-plugin"), ("RuntimeClass", namespace)} <= run.objects("created")


def test_gpu_nodes_taken_back(playbook: Playbook) -> None:
    run = playbook("gpu_nodes", {"gpu_nodes_wait": False, "inferops_gpu_nodes_state": "absent"})
    assert run.code == 0, run.output
    assert run.objects("created", "changed") == set()


def test_a_node_that_there_is_not_is_named(playbook: Playbook) -> None:
    run = playbook("gpu_nodes", {"gpu_nodes_nodes": ["gpu-99"]})
    assert run.code != 0
    assert "gpu-99" in run.output


def test_a_canary_gets_its_part_of_the_requests(playbook: Playbook) -> None:
    wanted = {"inferops_model_name": "one", "inferops_canary_name": "two", "inferops_canary_weight": 10}
    run = playbook("model_canary", {**MODELS, **wanted}, "--diff")
    assert run.code == 0, run.output
    assert run.output.count("model_name: one") == 2
    assert "weight: 90" in run.output
    assert "weight: 10" in run.output
    assert {kind for kind, _ in run.objects("created")} & {
        "InferencePool",
        "HTTPRoute",
        "EnvoyExtensionPolicy",
    } == set()
    assert '"weight": 10' in run.result("Say what keeps the weights there")["msg"]


def test_a_canary_that_there_is_not_is_named(playbook: Playbook) -> None:
    wanted = {"inferops_model_name": "one", "inferops_canary_name": "three", "inferops_canary_weight": 101}
    run = playbook("model_canary", {**MODELS, **wanted})
    assert run.code != 0
    assert "There is no other model three, and no such adapter of one; there are two." in run.output
    assert "inferops_canary_weight is 101" in run.output


def test_an_adapter_comes_to_servers_route_and_api(playbook: Playbook) -> None:
    wanted = {"inferops_model_name": "one", "inferops_lora_name": "poet", "inferops_lora_path": "org/poet"}
    run = playbook("lora_rollout", {**MODELS, **wanted}, "--diff")
    assert run.code == 0, run.output
    assert "- poet=org/poet" in run.output
    assert "value: poet" in run.output
    assert "model: hosted_vllm/poet" in run.output
    ran = [task.rpartition(" : ")[2] for task in run.ran()]
    assert ran.index("Apply the model servers") < ran.index("Apply the pools") < ran.index("Apply LiteLLM")


def test_an_adapter_goes_from_the_api_first(playbook: Playbook) -> None:
    one = {"name": "one", "model": "org/one", "loras": [{"name": "poet", "path": "org/poet"}]}
    wanted = {"inferops_model_name": "one", "inferops_lora_name": "poet", "inferops_lora_state": "absent"}
    run = playbook("lora_rollout", {"inferops_models": [one], **wanted}, "--diff")
    assert run.code == 0, run.output
    assert "poet=" not in run.output
    ran = [task.rpartition(" : ")[2] for task in run.ran()]
    assert ran.index("Apply LiteLLM") < ran.index("Apply the pools") < ran.index("Apply the model servers")


def test_a_new_adapter_needs_its_path(playbook: Playbook) -> None:
    run = playbook("lora_rollout", {**MODELS, "inferops_model_name": "one", "inferops_lora_name": "poet"})
    assert run.code != 0
    assert "inferops_lora_path must say where the new adapter poet is" in run.output


def test_paths_of_the_inventory_start_from_where_ansible_was_started(playbook: Playbook, tmp_path: Path) -> None:
    names = {"kind": "Thing", "plural": "things"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
    given = {}
    for variable in ("gateway_api_crds_src", "gateway_api_crds_inference_src"):
        group = f"{variable.replace('_', '-')}.example.com"
        spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
        crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": spec}
        file = tmp_path / f"{variable}.yaml"
        file.write_text(json.dumps({**crd, "metadata": {"name": f"things.{group}"}}))
        given[variable] = [os.path.relpath(file, ROOT)]
    play = tmp_path / "elsewhere" / "play.yml"
    play.parent.mkdir()
    auth = {"group/inferops.cluster.k8s": {"kubeconfig": "{{ inferops_kubeconfig }}"}}
    role = {"hosts": "localhost", "gather_facts": False, "module_defaults": auth}
    play.write_text(json.dumps([{**role, "roles": ["inferops.cluster.gateway_api_crds"]}]))
    run = playbook(play, {**given, "gateway_api_crds_replace": True})
    assert run.code == 0, run.output
    assert {name for _, name in run.objects("created")} == {
        "things.gateway-api-crds-src.example.com",
        "things.gateway-api-crds-inference-src.example.com",
    }
