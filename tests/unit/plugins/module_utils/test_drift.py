# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift is decided on objects as a real API server (1.35) returned them, shortened."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.drift import (
    content,
    in_sync,
    same_content,
    same_ownership,
)

MANAGER = "inferops.cluster"


def wanted_deployment() -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "t1", "labels": {"a": "b"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                    "containers": [
                        {
                            "name": "c",
                            "image": "busybox",
                            "args": ["--a", "b"],
                            "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "$(X)"}],
                            "ports": [{"containerPort": 80}, {"containerPort": 81, "name": "m"}],
                            "resources": {"requests": {"cpu": "100m"}},
                        }
                    ],
                },
            },
        },
    }


def owned_container() -> dict[str, Any]:
    return {
        ".": {},
        "f:args": {},
        "f:env": {
            'k:{"name":"X"}': {".": {}, "f:name": {}, "f:value": {}},
            'k:{"name":"Y"}': {".": {}, "f:name": {}, "f:value": {}},
        },
        "f:image": {},
        "f:name": {},
        "f:ports": {
            'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}},
            'k:{"containerPort":81,"protocol":"TCP"}': {".": {}, "f:containerPort": {}, "f:name": {}},
        },
        "f:resources": {"f:requests": {"f:cpu": {}}},
    }


def live_deployment() -> dict[str, Any]:
    live = wanted_deployment()
    owned = {
        "f:metadata": {"f:labels": {"f:a": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:template": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {
                    "f:containers": {'k:{"name":"c"}': owned_container()},
                    "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
                },
            },
        },
    }
    live["metadata"] |= {"resourceVersion": "301", "generation": 1, "uid": "u", "annotations": {"revision": "1"}}
    live["metadata"]["managedFields"] = [
        {"manager": MANAGER, "operation": "Apply", "apiVersion": "apps/v1", "fieldsV1": owned},
        {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "apps/v1", "subresource": "status"},
    ]
    live["spec"]["revisionHistoryLimit"] = 10
    container = live["spec"]["template"]["spec"]["containers"][0]
    container["imagePullPolicy"] = "Always"
    for port in container["ports"]:
        port["protocol"] = "TCP"
    live["status"] = {"replicas": 2}
    return live


def container_of(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item["spec"]["template"]["spec"]["containers"][0]
    return found


def test_defaults_that_the_server_added_are_no_drift() -> None:
    assert in_sync(wanted_deployment(), live_deployment(), MANAGER)


@pytest.mark.parametrize(
    "change",
    [
        lambda live: live["spec"].update(replicas=3),
        lambda live: live["metadata"]["labels"].update(a="c"),
        lambda live: live["metadata"]["labels"].pop("a"),
        lambda live: container_of(live).update(args=["--a"]),
        lambda live: container_of(live)["env"].reverse(),
        lambda live: container_of(live)["env"].pop(),
        lambda live: container_of(live)["ports"][0].update(containerPort=8080),
        lambda live: container_of(live)["resources"]["requests"].update(cpu="0.1"),
        lambda live: live["metadata"]["managedFields"].pop(0),
        lambda live: live["metadata"]["managedFields"][0].update(operation="Update"),
    ],
    ids=["value", "label", "label gone", "atomic list", "order", "entry gone", "key", "quantity", "unowned", "update"],
)
def test_another_live_object_is_not_in_sync(change: Any) -> None:
    live = live_deployment()
    change(live)
    assert not in_sync(wanted_deployment(), live, MANAGER)


@pytest.mark.parametrize(
    "change",
    [
        lambda wanted: wanted["spec"].update(paused=False),
        lambda wanted: wanted["spec"].pop("replicas"),
        lambda wanted: wanted["metadata"].pop("labels"),
        lambda wanted: container_of(wanted)["ports"].append({"containerPort": 82}),
        lambda wanted: container_of(wanted)["env"].pop(),
        lambda wanted: container_of(wanted).update(args=None),
        lambda wanted: wanted["spec"].update(replicas=True),
    ],
    ids=["new field", "field dropped", "map dropped", "entry added", "entry dropped", "null", "bool is no number"],
)
def test_another_manifest_is_not_in_sync(change: Any) -> None:
    wanted = wanted_deployment()
    change(wanted)
    assert not in_sync(wanted, live_deployment(), MANAGER)


def test_an_ambiguous_list_key_is_left_to_the_server() -> None:
    wanted, live = wanted_deployment(), live_deployment()
    owned = live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    ports = owned['k:{"name":"c"}']["f:ports"]
    ports['k:{"containerPort":80,"protocol":"UDP"}'] = ports.pop('k:{"containerPort":81,"protocol":"TCP"}')
    assert not in_sync(wanted, live, MANAGER)


def test_a_set_compares_without_order() -> None:
    wanted: Any = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": ["x/b", "x/a"]}}
    live = copy.deepcopy(wanted)
    live["metadata"]["finalizers"] = ["x/a", "x/b", "y/other"]
    owned: Any = {"f:metadata": {"f:finalizers": {".": {}, 'v:"x/a"': {}, 'v:"x/b"': {}}}}
    live["metadata"]["managedFields"] = [
        {"manager": MANAGER, "operation": "Apply", "apiVersion": "v1", "fieldsV1": owned}
    ]
    assert in_sync(wanted, live, MANAGER)
    live["metadata"]["finalizers"].remove("x/b")
    assert not in_sync(wanted, live, MANAGER)


def test_a_manifest_of_only_a_name_needs_no_owner() -> None:
    wanted: Any = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "t1"}}
    assert in_sync(wanted, {**wanted, "metadata": {**wanted["metadata"], "uid": "u"}}, MANAGER)


def test_a_dry_run_differs_by_content_or_by_ownership() -> None:
    live = live_deployment()
    again = copy.deepcopy(live)
    again["metadata"] |= {"resourceVersion": "302", "generation": 2}
    again["metadata"]["managedFields"][0]["time"] = "2026-01-01T00:00:00Z"
    again["status"] = {}
    assert same_content(live, again)
    assert same_ownership(live, again, MANAGER)
    owned = copy.deepcopy(again)
    owned["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"].pop("f:replicas")
    assert same_content(live, owned)
    assert not same_ownership(live, owned, MANAGER)
    again["spec"]["replicas"] = 5
    assert not same_content(live, again)


def test_content_leaves_its_argument_alone() -> None:
    live = live_deployment()
    before = copy.deepcopy(live)
    assert set(content(live)["metadata"]) == {"name", "namespace", "labels", "annotations"}
    assert live == before
