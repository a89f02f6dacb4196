# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes and pods tell about GPUs."""

from __future__ import annotations

from typing import Any

from ansible_collections.inferops.cluster.plugins.module_utils.gpus import Inventory, requests
from ansible_collections.inferops.cluster.plugins.modules.gpu_node_info import RESOURCES

Json = dict[str, Any]
HOPPER = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.family": "hopper",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/cuda.driver-version.full": "595.91.07",
    "nvidia.com/cuda.runtime-version.full": "13.2",
    "kubernetes.io/os": "linux",
}


def node(name: str, gpus: dict[str, str], labels: dict[str, str] | None = None, **spec: Any) -> Json:
    amounts = {"cpu": "16", "memory": "64Gi", "ephemeral-storage": "100Gi", "pods": "110", **gpus}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec, "status": status}


def container(gpus: int = 0, resource: str = "nvidia.com/gpu", **more: Any) -> Json:
    limits = {"memory": "1Gi", **({resource: str(gpus)} if gpus else {})}
    return {"name": "c", "resources": {"limits": limits}, **more}


def pod(name: str, on: str | None, *containers: Json, **status: Any) -> Json:
    spec: Json = {"containers": list(containers)}
    if on:
        spec["nodeName"] = on
    return {"metadata": {"name": name, "namespace": "llm"}, "spec": spec, "status": {"phase": "Running", **status}}


def test_what_a_node_has_and_who_has_it() -> None:
    pods = [
        pod("llama", "a", container(4), container()),
        pod("web", "a", container()),
        pod("phi", "a", container(1)),
    ]
    pods[0]["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "llama-1", "controller": True}]
    found = Inventory([node("a", {"nvidia.com/gpu": "8"}, HOPPER), node("cpu-only", {})], pods, RESOURCES)
    assert [one["name"] for one in found.nodes] == ["a"]
    one = found.nodes[0]
    assert one["capacity"] == one["allocatable"] == {"nvidia.com/gpu": 8}
    assert one["requested"] == {"nvidia.com/gpu": 5}
    assert one["free"] == {"nvidia.com/gpu": 3}
    assert [(user["name"], user["owner"], user["requests"]) for user in one["pods"]] == [
        ("llama", "ReplicaSet llama-1", {"nvidia.com/gpu": 4}),
        ("phi", "", {"nvidia.com/gpu": 1}),
    ]
    assert one["gpu"] == {
        "product": "NVIDIA-H100-80GB-HBM3",
        "count": 8,
        "memory_mib": 81559,
        "family": "hopper",
        "compute_capability": "9.0",
    }
    assert one["driver"] == {"version": "595.91.07", "cuda_version": "13.2"}
    assert one["sharing"] == {"strategy": None, "replicas": 1, "shared_resources": []}
    assert "kubernetes.io/os" not in one["labels"]
    assert found.totals == {"nvidia.com/gpu": {"capacity": 8, "allocatable": 8, "requested": 5, "free": 3}}


def test_shared_gpus() -> None:
    sliced = {**HOPPER, "nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"}
    renamed = {**HOPPER, "nvidia.com/gpu.sharing-strategy": "mps", "nvidia.com/gpu.replicas": "2"}
    old = {name: value for name, value in HOPPER.items() if "version.full" not in name}
    old.update({f"nvidia.com/cuda.driver.{part}": value for part, value in (("major", "580"), ("minor", "126"))})
    nodes = [
        node("time", {"nvidia.com/gpu": "32"}, sliced),
        node("mps", {"nvidia.com/gpu.shared": "16", "nvidia.com/gpu": "0"}, renamed),
        node("untold", {"nvidia.com/gpu": "16"}, old),
    ]
    time, mps, untold = Inventory(nodes, [], RESOURCES).nodes
    assert time["sharing"] == {"strategy": "time_slicing", "replicas": 4, "shared_resources": []}
    assert mps["sharing"] == {"strategy": "mps", "replicas": 2, "shared_resources": ["nvidia.com/gpu.shared"]}
    assert untold["sharing"]["replicas"] == 2
    assert untold["driver"] == {"version": "580.126", "cuda_version": None}


def test_slices() -> None:
    labels = {"nvidia.com/mig.capable": "true", "nvidia.com/mig.config": "all-balanced"}
    mixed = {**HOPPER, **labels, "nvidia.com/mig.strategy": "mixed", "nvidia.com/mig.config.state": "pending"}
    single = {**HOPPER, **labels, "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}
    nodes = [
        node("mixed", {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "2", "nvidia.com/mig-3g.40gb": "1"}, mixed),
        node("single", {"nvidia.com/gpu": "56"}, single),
    ]
    first, second = Inventory(nodes, [], RESOURCES).nodes
    assert first["mig"] == {
        "capable": True,
        "strategy": "mixed",
        "config": "all-balanced",
        "state": "pending",
        "profiles": {"1g.10gb": 2, "3g.40gb": 1},
    }
    assert second["mig"]["profiles"] == {"1g.10gb": 56}


def test_a_node_whose_plugin_does_not_run_is_shown_without_gpus() -> None:
    found = Inventory([node("broken", {}, {"nvidia.com/gpu.present": "true"}, unschedulable=True)], [], RESOURCES).nodes
    assert [(one["capacity"], one["schedulable"]) for one in found] == [({}, False)]


def test_pods_that_wait_tell_why() -> None:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pods = [pod("big", None, container(16), phase="Pending", conditions=[condition]), pod("new", None, container(1))]
    pending = Inventory([node("a", {"nvidia.com/gpu": "8"})], pods, RESOURCES).pending
    assert [(one["name"], one["reason"]) for one in pending] == [
        ("big", message),
        ("new", "the scheduler has not looked at it yet"),
    ]


def test_init_containers_and_sidecars_count_as_the_scheduler_counts_them() -> None:
    made = pod("p", "a", container(1), container(2))
    made["spec"]["initContainers"] = [container(1, restartPolicy="Always"), container(5), container(1)]
    assert requests(made) == {"nvidia.com/gpu": 6}
    made["spec"]["initContainers"] = [container(1, restartPolicy="Always"), container(2)]
    assert requests(made) == {"nvidia.com/gpu": 4}


def test_gpus_of_other_makes_and_chosen_resources() -> None:
    amounts = {"amd.com/gpu": "8", "example.com/fpga": "2"}
    assert Inventory([node("a", amounts)], [], RESOURCES).totals.keys() == {"amd.com/gpu"}
    assert Inventory([node("a", amounts)], [], ["example.com/*"]).totals.keys() == {"example.com/fpga"}
