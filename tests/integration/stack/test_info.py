# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that tell about the running platform: its GPUs, and its endpoint pickers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600), pytest.mark.usefixtures("converged")]

Json = dict[str, Any]
NAMESPACE = "llm-platform"
READER = "picker-reader"
PATHS = ["/metrics", "/debug/endpoints", "/debug/decisions"]


@pytest.fixture
def reader(state: State) -> Any:
    """A service account that may read what the pickers say of themselves."""
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    metadata = {"name": READER}
    state.request("POST", accounts, {"metadata": metadata})
    rules = [{"nonResourceURLs": PATHS, "verbs": ["get"]}]
    state.request("POST", f"{rbac}/clusterroles", {"metadata": metadata, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": READER}
    subject = {"kind": "ServiceAccount", "name": READER, "namespace": NAMESPACE}
    state.request("POST", f"{rbac}/clusterrolebindings", {"metadata": metadata, "roleRef": role, "subjects": [subject]})
    yield READER
    state.request("DELETE", f"{rbac}/clusterrolebindings/{READER}")
    state.request("DELETE", f"{rbac}/clusterroles/{READER}")
    state.request("DELETE", f"{accounts}/{READER}")


def test_gpus(ansible: Ansible, state: State) -> None:
    found = ansible.module("gpu_node_info", {})
    offered = {
        node["metadata"]["name"]: int(node["status"]["allocatable"]["nvidia.com/gpu"])
        for node in state.get("/api/v1/nodes")["items"]
        if "nvidia.com/gpu" in node["status"]["allocatable"]
    }
    assert {node["name"]: node["allocatable"]["nvidia.com/gpu"] for node in found["nodes"]} == offered
    assert all(node["ready"] for node in found["nodes"])


def test_what_a_picker_sees_and_has_decided(ansible: Ansible, state: State, variables: Json, reader: str) -> None:
    model = variables["inferops_models"][0]
    ansible.run("playbooks/verify.yml")
    service = {"namespace": NAMESPACE, "name": f"{model['name']}-epp"}
    gather = ["endpoints", "decisions", "metrics"]
    found = ansible.module("epp_info", {**service, "service_account": reader, "gather": gather})
    pods = state.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=inferops.cluster/model={model['name']}")
    addresses = {f"{pod['status']['podIP']}:8000" for pod in pods["items"] if pod["status"]["phase"] == "Running"}
    for replica in found["replicas"]:
        assert {endpoint["address"] for endpoint in replica["endpoints"]} == addresses
        assert all(endpoint["metrics"]["age_seconds"] < 30 for endpoint in replica["endpoints"])
        ready = [one["value"] for one in replica["metrics"] if one["name"] == "inference_pool_ready_pods"]
        assert [float(value) for value in ready] == [len(addresses)]
    decisions = [decision for replica in found["replicas"] for decision in replica["decisions"]]
    assert decisions
    assert set(found["picked"]) <= addresses
    for decision in decisions:
        assert decision["status"] == 200
        assert decision["endpoint"] in decision["scores"]
        assert decision["reason"].startswith("score ")
    refused = ansible.module("epp_info", service, fails=True)
    assert "Give a `service_account`" in json.dumps(refused)
