# SPDX-License-Identifier: GPL-3.0-or-later
"""cluster_wait: any condition, on many objects, at once."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Cluster, Json, Run
from .objects import condition, config_map, custom, deployment, later, status_crd

pytestmark = pytest.mark.cluster

Wait = Callable[..., Json]


def entry(kind: str, namespace: str | None, name: str | None = None, **more: Any) -> Json:
    given = {"kind": kind, "namespace": namespace, "name": name, **more}
    return {name: value for name, value in given.items() if value is not None}


def test_many_kinds_of_conditions_at_once(made: Cluster, module: Run, waiter: Wait, things: str) -> None:
    here, version = made.namespace, {"api_version": f"{things}/v1"}
    labelled = [{**custom("Thing", things, name, 1), "metadata": {"name": name, "labels": {"l": "1"}}} for name in "bc"]
    module({"namespace": here, "objects": [config_map("cm", a="1"), config_map("going"), *labelled]})
    objects = [
        entry("ConfigMap", here, "cm", jsonpath=[{"path": ".data.a", "value": 1}]),
        entry("Thing", here, "a", **version, conditions=[{"type": "Ready"}]),
        entry("Thing", here, **version, label_selector="l=1", minimum=2, conditions=[{"type": "Ready"}]),
        entry("ConfigMap", here, "going", state="absent"),
        entry("Thing", None, **version, label_selector="l=2", state="absent"),
        entry("Namespace", None, here),
    ]
    looked, failed = waiter(*objects, check=True), waiter(*objects)
    assert [found["ready"] for found in looked["objects"]] == [True, False, False, False, True, True]
    assert not looked["failed"]
    assert "3 of 6 objects were not ready after 2 s" in failed["msg"]
    assert f"Thing {here}/a: its controller has not set the condition Ready yet" in failed["msg"]
    assert f"Thing {here}/l=1: 0 of 2 are as wanted; Thing {here}/b: its controller has not set" in failed["msg"]
    assert f"ConfigMap {here}/going: exists" in failed["msg"]

    def controllers() -> None:
        for name in "abc":
            made.status("Thing", name, f"{things}/v1", {"conditions": [condition("Ready")]})
        made.delete("ConfigMap", "going")

    with later(1.0, controllers):
        reached = waiter(*objects, wait_timeout=30)
    assert not reached["failed"], reached["msg"]
    assert not reached["changed"]
    assert reached["objects"][2]["found"] == ["b", "c"]


def test_a_failed_wait_tells_what_the_pods_say(made: Cluster, module: Run, waiter: Wait) -> None:
    items = [deployment(serviceAccountName="nobody")]
    module({"namespace": made.namespace, "objects": items})
    failed = waiter(entry("Deployment", made.namespace, "web", api_version="apps/v1"), wait_timeout=4)
    assert f"Deployment {made.namespace}/web: 0 of 1 replicas" in failed["msg"]
    assert 'serviceaccount "nobody" not found' in failed["msg"]


def test_objects_and_kinds_that_do_not_exist_yet_are_waited_for(made: Cluster, module: Run, waiter: Wait) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    awaited = entry("Thing", made.namespace, "a", api_version=f"{group}/v1")
    missing = waiter(awaited, entry("ConfigMap", made.namespace, "cm"))
    assert f"the server does not serve {group}/v1" in missing["msg"]
    assert f"ConfigMap {made.namespace}/cm: does not exist" in missing["msg"]
    items = [custom("Thing", group, "a", 1), status_crd("Thing", group)]
    with later(1.0, lambda: module({"namespace": made.namespace, "objects": items})):
        found = waiter(awaited, wait_timeout=60)
    assert not found["failed"], found["msg"]
    gone = waiter(entry("Never", made.namespace, "a", api_version=f"never.{group}/v1", state="absent"))
    assert not gone["failed"]
    module({"namespace": made.namespace, "objects": items, "state": "absent"})


def test_what_can_never_be_found_is_told_at_once(made: Cluster, waiter: Wait) -> None:
    wrong = waiter(entry("ConfigMao", made.namespace, "a"), entry("ConfigMap", None, "a"), wait_timeout=60)
    assert "v1 has no kind ConfigMao; did you mean ConfigMap?" in wrong["msg"]
    assert "ConfigMap a names no namespace: give it one" in wrong["msg"]


def test_a_long_wait_shows_its_progress(made: Cluster, playbook: Run, things: str) -> None:
    objects = [entry("Thing", made.namespace, "a", api_version=f"{things}/v1", conditions=[{"type": "Ready"}])]
    objects.insert(0, entry("Namespace", None, made.namespace))
    task = {"action": "cluster_wait", "objects": objects, "wait_timeout": 60}
    output: list[str] = []
    with later(13.0, lambda: made.status("Thing", "a", f"{things}/v1", {"conditions": [condition("Ready")]})):
        result = playbook(task, output=output)[0]
    progress = (
        rf"\[localhost\] waiting: 1 of 2 objects not ready after \d\d s: Thing {made.namespace}/a: its controller"
    )
    assert re.search(progress, output[0])
    assert not result["failed"], result
    assert [found["ready"] for found in result["objects"]] == [True, True]
