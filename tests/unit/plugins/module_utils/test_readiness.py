# SPDX-License-Identifier: GPL-3.0-or-later
"""One rule per kind: what counts as ready, and the reason when it is not."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.readiness import readiness


def item(api_version: str, kind: str, status: Any, spec: Any = None, generation: int = 2) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": "x", "generation": generation},
        "spec": spec or {},
        "status": status,
    }


def condition(name: str, status: str = "True", **more: Any) -> dict[str, Any]:
    return {"type": name, "status": status, **more}


ROLLED_OUT = {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
ROUTE = "gateway.networking.k8s.io/v1"
BOTH = [condition("Accepted", observedGeneration=2), condition("ResolvedRefs", observedGeneration=2)]

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("deployment", item("apps/v1", "Deployment", ROLLED_OUT, {"replicas": 3}), ""),
    ("of zero replicas", item("apps/v1", "Deployment", {"observedGeneration": 2}, {"replicas": 0}), ""),
    ("just created", item("apps/v1", "Deployment", {}, {"replicas": 3}), "controller has not seen"),
    ("behind", item("apps/v1", "Deployment", {**ROLLED_OUT, "observedGeneration": 1}, {"replicas": 3}), "not seen"),
    (
        "updating",
        item("apps/v1", "Deployment", {**ROLLED_OUT, "updatedReplicas": 1}, {"replicas": 3}),
        "1 of 3 replicas up",
    ),
    ("old pods", item("apps/v1", "Deployment", {**ROLLED_OUT, "replicas": 5}, {"replicas": 3}), "2 old replicas"),
    (
        "down",
        item("apps/v1", "Deployment", {**ROLLED_OUT, "availableReplicas": 2}, {"replicas": 3}),
        "2 of 3 replicas av",
    ),
    ("paused", item("apps/v1", "Deployment", ROLLED_OUT, {"replicas": 3, "paused": True}), "paused"),
    (
        "quota",
        item(
            "apps/v1",
            "Deployment",
            {
                "observedGeneration": 2,
                "conditions": [condition("ReplicaFailure", reason="FailedCreate", message="quota")],
            },
        ),
        "0 of 1 replicas updated (FailedCreate: quota)",
    ),
    (
        "stateful set",
        item("apps/v1", "StatefulSet", {"observedGeneration": 2, "readyReplicas": 2}, {"replicas": 2}),
        "",
    ),
    (
        "partitioned",
        item(
            "apps/v1",
            "StatefulSet",
            {
                "observedGeneration": 2,
                "readyReplicas": 3,
                "updatedReplicas": 1,
                "currentRevision": "a",
                "updateRevision": "b",
            },
            {"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}},
        ),
        "1 of 2 replicas updated",
    ),
    ("daemon set on no node", item("apps/v1", "DaemonSet", {"observedGeneration": 2}), ""),
    (
        "daemon set",
        item(
            "apps/v1",
            "DaemonSet",
            {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1},
        ),
        "available on 1 of 2 nodes",
    ),
    ("job", item("batch/v1", "Job", {"conditions": [condition("Complete")]}), ""),
    ("running job", item("batch/v1", "Job", {"succeeded": 1}, {"completions": 3}), "1 of 3 completions"),
    ("pod", item("v1", "Pod", {"phase": "Running", "conditions": [condition("Ready")]}), ""),
    ("finished pod", item("v1", "Pod", {"phase": "Succeeded", "conditions": [condition("Ready", "False")]}), ""),
    (
        "unready pod",
        item("v1", "Pod", {"conditions": [condition("Ready", "False", reason="ContainersNotReady")]}),
        "Ready is False: ContainersNotReady",
    ),
    ("claim", item("v1", "PersistentVolumeClaim", {"phase": "Bound"}), ""),
    ("pending claim", item("v1", "PersistentVolumeClaim", {"phase": "Pending"}), "the claim is Pending"),
    ("service", item("v1", "Service", {"loadBalancer": {}}, {"type": "ClusterIP"}), ""),
    ("no address", item("v1", "Service", {"loadBalancer": {}}, {"type": "LoadBalancer"}), "no load balancer"),
    ("namespace", item("v1", "Namespace", {"phase": "Active"}), ""),
    (
        "CRD",
        item("apiextensions.k8s.io/v1", "CustomResourceDefinition", {"conditions": [condition("Established")]}),
        "",
    ),
    (
        "new CRD",
        item("apiextensions.k8s.io/v1", "CustomResourceDefinition", {}),
        "has not set the condition Established",
    ),
    (
        "gateway",
        item(
            ROUTE, "Gateway", {"conditions": [condition("Accepted"), condition("Programmed", "False", reason="NoRes")]}
        ),
        "Programmed is False: NoRes",
    ),
    (
        "gateway, stale",
        item(ROUTE, "Gateway", {"conditions": [condition("Accepted", observedGeneration=1)]}),
        "Accepted is about an older generation",
    ),
    (
        "route",
        item(
            ROUTE,
            "HTTPRoute",
            {"parents": [{"parentRef": {"name": "g"}, "conditions": BOTH}]},
            {"parentRefs": [{"name": "g"}]},
        ),
        "",
    ),
    (
        "route, one of two parents",
        item(
            ROUTE,
            "HTTPRoute",
            {"parents": [{"parentRef": {"name": "g"}, "conditions": BOTH}]},
            {"parentRefs": [{"name": "g"}, {"name": "h"}]},
        ),
        "no controller has answered for its parent h",
    ),
    (
        "route without backend",
        item(
            ROUTE,
            "HTTPRoute",
            {
                "parents": [
                    {
                        "parentRef": {"name": "g"},
                        "conditions": [
                            condition("Accepted"),
                            condition("ResolvedRefs", "False", message="no Service m"),
                        ],
                    }
                ]
            },
            {"parentRefs": [{"name": "g"}]},
        ),
        "ResolvedRefs is False: no Service m",
    ),
    ("policy", item("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy", {}), "no controller has answered"),
    (
        "accepted policy",
        item("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy", {"ancestors": [{"conditions": BOTH}]}),
        "",
    ),
    ("custom, no status", item("x.io/v1", "Thing", None), ""),
    ("custom, behind", item("x.io/v1", "Thing", {"observedGeneration": 1}), "controller has not seen"),
    (
        "custom, not ready",
        item(
            "x.io/v1", "Thing", {"conditions": [condition("Accepted"), condition("Ready", "Unknown", message="soon")]}
        ),
        "Ready is Unknown: soon",
    ),
    ("custom, other conditions", item("x.io/v1", "Thing", {"conditions": [condition("Odd", "False")]}), ""),
]


@pytest.mark.parametrize(("thing", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_reason_tells_what_is_missing(thing: dict[str, Any], reason: str) -> None:
    state = readiness(thing)
    assert state.ready is (reason == "")
    assert reason in state.reason


def test_only_what_cannot_recover_is_final() -> None:
    failed = readiness(item("batch/v1", "Job", {"conditions": [condition("Failed", reason="BackoffLimitExceeded")]}))
    assert (failed.final, failed.reason) == (True, "the job failed: BackoffLimitExceeded")
    assert readiness(item("v1", "Pod", {"phase": "Failed", "reason": "Evicted"})).final
    assert not readiness(item("v1", "Pod", {"phase": "Pending"})).final
    assert readiness(item("batch/v1", "Job", {}, {"suspend": True})).final


def test_an_object_on_its_way_out_is_not_ready() -> None:
    leaving = item("v1", "Namespace", {"phase": "Active"})
    leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/hold"]}
    assert readiness(leaving).reason == "is being deleted (held by x.io/hold)"
