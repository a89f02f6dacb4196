# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: by watches, for what the caller says, past what still terminates, and with progress."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from waiting import until

from .conftest import Cluster, Front, Json, Run
from .objects import actions, condition, config_map, custom, deployment, later, namespace

pytestmark = pytest.mark.cluster


def test_conditions_and_fields_of_a_custom_resource(made: Cluster, module: Run, things: str) -> None:
    def say(**status: Any) -> Any:
        return made.status("Thing", "a", f"{things}/v1", status)

    task = {"namespace": made.namespace, "objects": [custom("Thing", things, "a", 1)], "wait": True, "wait_timeout": 2}
    rules: list[Json] = [{"kind": "Thing", "conditions": [{"type": "Synced", "reason": "Because"}]}]
    rules[0]["jsonpath"] = [{"path": ".status.url"}, {"path": "{.status.phase}", "value": "Up"}]
    task["wait_for"] = rules
    say(url="http://a", phase="Up", conditions=[condition("Ready")])
    missing = module(task)[0]
    assert f"Thing {made.namespace}/a: its controller has not set the condition Synced yet" in missing["msg"]
    say(url="http://a", phase="Down", conditions=[condition("Synced")])
    assert "{.status.phase} is Down, not Up" in module(task)[0]["msg"]
    say(phase="Up", conditions=[condition("Synced", observedGeneration=0)])
    assert "Synced is about an older generation" in module(task)[0]["msg"]
    say(phase="Up", conditions=[condition("Synced")])
    assert ".status.url is not set yet" in module(task)[0]["msg"]
    with later(1.0, lambda: say(url="http://a", phase="Up", conditions=[condition("Synced")])):
        reached = module({**task, "wait_timeout": 20})[0]
    assert not reached["failed"]
    assert reached["objects"][0]["ready"]


def test_rules_that_fit_nothing_or_cannot_be_read_are_refused(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [config_map("cm")], "wait": True}
    path = [{"path": ".status.phase"}]
    unused, empty, unread = module(
        {**task, "wait_for": [{"kind": "Thing", "jsonpath": path}]},
        {**task, "wait_for": [{"kind": "ConfigMap"}]},
        {**task, "wait_for": [{"kind": "ConfigMap", "jsonpath": [{"path": ".status..phase"}]}]},
    )
    assert "wait_for[0] matches no object of the set" in unused["msg"]
    assert "wait_for[0] expects nothing" in empty["msg"]
    assert "the JSONPath '.status..phase' cannot be read from '..phase' on" in unread["msg"]
    assert made.get("ConfigMap", "cm") is None


def test_a_wait_is_a_watch(made: Cluster, module: Run, things: str, front: tuple[Front, Json]) -> None:
    """Many objects that become ready one by one are seen by one LIST and one watch, without polling."""
    counted, login = front
    items = [custom("Thing", things, name, 1) for name in "abcd"]
    task = {**login, "namespace": made.namespace, "objects": items}
    rules = [{"kind": "Thing", "conditions": [{"type": "Ready"}]}]
    module(task)
    counted.counts.clear()

    def controller() -> None:
        until(lambda: counted.watches, "the module watches")
        for name in "abcd":
            made.status("Thing", name, f"{things}/v1", {"conditions": [condition("Ready")]})
            time.sleep(1)

    with later(0.0, controller):
        ready = module({**task, "wait": True, "wait_for": rules, "wait_timeout": 30})[0]
    assert [entry["ready"] for entry in ready["objects"]] == [True] * 4
    # Discovery, four objects, then two LISTs (one to look, one to watch from) and one watch.
    assert counted.counts["GET"] <= 8
    assert counted.watches == 1


def test_without_the_right_to_watch_it_is_looked_again(made: Cluster, module: Run, things: str) -> None:
    rules = [{"apiGroups": [things], "resources": ["things"], "verbs": ["get", "patch"]}]
    login = made.login("reader", rules)
    task = {**login, "namespace": made.namespace, "objects": [custom("Thing", things, "a", 1)], "force": True}
    wait = {"wait": True, "wait_timeout": 20, "wait_for": [{"kind": "Thing", "conditions": [{"type": "Ready"}]}]}
    done = {"conditions": [condition("Ready")]}
    with later(1.5, lambda: made.status("Thing", "a", f"{things}/v1", done)):
        reached = module({**task, **wait})[0]
    assert not reached["failed"], reached["msg"]


def test_a_namespace_that_still_terminates_is_waited_for(cluster: Cluster, module: Run) -> None:
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    items = [namespace(cluster.namespace), config_map("cm")]
    task = {"namespace": cluster.namespace, "objects": items, "wait_timeout": 2}
    module({**task, "objects": [*items, held]})
    core = cluster.api.resources.get(api_version="v1", kind="Namespace")
    core.delete(name=cluster.namespace)
    told = "the namespace says what holds it"
    until(lambda: "example.com/hold" in str(cluster.get("Namespace", cluster.namespace).status), told)
    looked, stuck = *module(task, check=True), *module(task)
    assert actions(looked) == ["created", "created"]
    assert f"Namespace {cluster.namespace}: is being deleted (held by what is in it); " in stuck["msg"]
    assert "example.com/hold" in stuck["msg"]
    assert stuck["waited"]["for"] == "gone"
    assert not stuck["changed"]
    free = {"metadata": {"finalizers": []}}
    with later(1.0, lambda: cluster.merge("ConfigMap", "held", free, "its-controller")):
        made = module({**task, "wait_timeout": 60})[0]
    assert actions(made) == ["created", "created"]
    assert cluster.get("ConfigMap", "held") is None


def test_an_object_that_is_deleted_while_it_is_waited_for(
    made: Cluster, module: Run, front: tuple[Front, Json]
) -> None:
    counted, login = front

    def disturb() -> None:
        until(lambda: counted.watches, "the module watches")
        made.delete("Deployment", "web", "apps/v1")

    task = {**login, "namespace": made.namespace, "objects": [deployment(serviceAccountName="nobody")], "wait": True}
    with later(0.0, disturb):
        failed = module({**task, "wait_timeout": 60})[0]
    assert counted.watches == 1
    assert "web: was deleted by somebody else while it was waited for" in failed["msg"]


def test_a_long_wait_shows_its_progress(made: Cluster, playbook: Run, things: str) -> None:
    done = {"conditions": [condition("Ready")]}
    items = [custom("Thing", things, "a", 1), config_map("cm")]
    rules = [{"kind": "Thing", "conditions": [{"type": "Ready"}]}]
    task = {"namespace": made.namespace, "objects": items, "wait": True, "wait_timeout": 60, "wait_for": rules}
    output: list[str] = []
    with later(13.0, lambda: made.status("Thing", "a", f"{things}/v1", done)):
        result = playbook(task, output=output)[0]
    assert "[localhost] set test: 1 of 2 objects not ready after 1" in output[0]
    assert f"Thing {made.namespace}/a: its controller has not set the condition Ready yet" in output[0]
    assert not result["failed"]
    assert result["changed"]
    assert [entry["ready"] for entry in result["objects"]] == [True, True]
    assert "waited" not in result
    assert "msg" not in result


def test_a_long_wait_in_vain_speaks_of_the_whole_time(made: Cluster, playbook: Run, things: str) -> None:
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    rules = [{"kind": "Thing", "conditions": [{"type": "Ready"}]}]
    items = [custom("Thing", things, "a", 1), held]
    task = {"namespace": made.namespace, "objects": items, "wait": True, "wait_timeout": 17, "wait_for": rules}
    absent = {"namespace": made.namespace, "objects": [held, config_map("cm")], "state": "absent", "wait": True}
    output: list[str] = []
    created = {"namespace": made.namespace, "objects": [config_map("cm")]}
    failed, _made, stuck = playbook(task, created, {**absent, "wait_timeout": 17}, output=output)
    assert re.search(r"set test: 1 of 2 objects were not ready after \d\d s:", failed["msg"])
    assert failed["waited"]["total"] == 2
    assert "[localhost] set test: 1 objects still exist after 1" in output[0]
    assert re.search(r"set test: 1 objects still exist after \d\d s:", stuck["msg"])
    assert (stuck["changed"], actions(stuck)) == (True, ["deleted", "deleted"])
    made.merge("ConfigMap", "held", {"metadata": {"finalizers": []}}, "its-controller")
