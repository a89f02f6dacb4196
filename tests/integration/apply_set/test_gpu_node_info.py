# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_node_info on a real API server, with nodes and pods that only it knows."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cluster, Json, _program

pytestmark = pytest.mark.cluster


@pytest.fixture
def node(made: Cluster) -> Iterator[str]:
    """A node with four GPUs, each of them shared by two."""
    name = f"gpu-{secrets.token_hex(4)}"
    labels = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": "NVIDIA-L4-SHARED",
        "nvidia.com/gpu.count": "4",
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
        "nvidia.com/gpu.replicas": "2",
        "pool": name,
    }
    nodes = made.api.resources.get(api_version="v1", kind="Node")
    nodes.create(body={"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    amounts = {"nvidia.com/gpu": "8", "cpu": "4", "memory": "1Gi", "pods": "10"}
    status = {"status": {"capacity": amounts, "allocatable": amounts}}
    try:
        nodes.status.patch(body=status, name=name, content_type="application/merge-patch+json")
        yield name
    finally:
        nodes.delete(name=name)


def pod(name: str, gpus: int, **spec: Any) -> Json:
    container = {"name": "c", "image": "localhost/none:1", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    pinned = {"tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0, **spec}
    metadata = {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"automountServiceAccountToken": False, "containers": [container], **pinned},
    }


def test_what_nodes_have_and_who_has_it(made: Cluster, node: str, kubeconfig: str, tmp_path: Path) -> None:
    pods = made.api.resources.get(api_version="v1", kind="Pod")
    for body in (
        pod("runs", 3, nodeName=node),
        pod("waits", 16, nodeSelector={"pool": node}),
    ):
        pods.create(body=body, namespace=made.namespace)
    try:
        task = {"kubeconfig": kubeconfig, "label_selector": f"pool={node}"}
        found = _program("gpu_node_info", tmp_path, task, check=True, diff=False)
        assert not found["failed"], found
        assert not found["changed"]
        (one,) = found["nodes"]
        assert (one["name"], one["ready"]) == (node, False)
        assert one["free"] == {"nvidia.com/gpu": 5}
        assert one["sharing"] == {"strategy": "time_slicing", "replicas": 2, "shared_resources": []}
        assert [(user["name"], user["requests"]) for user in one["pods"]] == [("runs", {"nvidia.com/gpu": 3})]
        assert ("waits", {"nvidia.com/gpu": 16}) in [(user["name"], user["requests"]) for user in found["pending"]]
        assert found["totals"] == {"nvidia.com/gpu": {"capacity": 8, "allocatable": 8, "requested": 3, "free": 5}}
        without = _program("gpu_node_info", tmp_path, {**task, "pods": False}, check=False, diff=False)
        assert without["nodes"][0]["free"] == {"nvidia.com/gpu": 8}
    finally:
        for name in ("runs", "waits"):
            pods.delete(name=name, namespace=made.namespace, body={"gracePeriodSeconds": 0})


def test_a_node_that_is_not_there_and_missing_rights_are_told(made: Cluster, kubeconfig: str, tmp_path: Path) -> None:
    task: Json = {"kubeconfig": kubeconfig, "nodes": ["nowhere"]}
    refused = _program("gpu_node_info", tmp_path, task, check=False, diff=False)
    assert "the cluster has no node nowhere: correct `nodes`" in refused["msg"]
    login = {name: value for name, value in made.login("reader", []).items() if value is not None}
    denied = _program("gpu_node_info", tmp_path, login, check=False, diff=False)
    assert "may not list nodes at cluster scope" in denied["msg"]
