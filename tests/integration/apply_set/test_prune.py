# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects that leave a set leave the cluster, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import secrets

import pytest

from .conftest import Cluster, Json, Run
from .objects import actions, config_map, crd, custom, deployment, namespace

pytestmark = pytest.mark.cluster

PART_OF = "applyset.kubernetes.io/part-of"


def named(result: Json) -> dict[str, str]:
    """What was done, by the name of the object."""
    return {entry["name"]: entry["action"] for entry in result["objects"]}


def record(cluster: Cluster, name: str = "test") -> dict[str, str]:
    """The annotations of the set's record, without their common prefix."""
    found = cluster.get("ConfigMap", f"applyset-{name}").metadata.annotations.to_dict()
    return {key.rpartition("/")[2]: value for key, value in found.items()}


def test_what_is_no_longer_given_goes(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "prune": True, "wait": True}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}}
    both = [config_map("kept", a="1"), config_map("dropped"), account]
    created, again = module({**task, "objects": both}, {**task, "objects": both})
    assert named(created) == {"kept": "created", "dropped": "created", "sa": "created", "applyset-test": "created"}
    assert (again["changed"], set(actions(again))) == (False, {"unchanged"})
    digest = hashlib.sha256(f"applyset-test.{made.namespace}.ConfigMap.".encode()).digest()
    identity = f"applyset-{base64.urlsafe_b64encode(digest).decode().rstrip('=')}-v1"
    assert made.get("ConfigMap", "kept").metadata.labels[PART_OF] == identity
    assert made.get("ConfigMap", "applyset-test").metadata.labels["applyset.kubernetes.io/id"] == identity
    expected = {"tooling": "inferops.cluster/v1.0.0", "contains-group-kinds": "ConfigMap,ServiceAccount"}
    assert record(made) == {**expected, "additional-namespaces": ""}

    smaller = {**task, "objects": both[:1]}
    looked = module(smaller, check=True, diff=True)[0]
    assert named(looked) == {"kept": "unchanged", "dropped": "deleted", "sa": "deleted", "applyset-test": "updated"}
    headers = {(entry["before_header"], entry["after_header"]) for entry in looked["diff"]}
    dropped = f"ConfigMap {made.namespace}/dropped"
    assert (f"{dropped} (live)", f"{dropped} (absent)") in headers
    assert made.get("ConfigMap", "dropped") is not None
    pruned, after = module(smaller, smaller)
    assert named(pruned) == named(looked)
    assert not after["changed"]
    assert made.get("ConfigMap", "dropped") is None
    assert made.get("ServiceAccount", "sa") is None
    assert record(made)["contains-group-kinds"] == "ConfigMap"


def test_only_objects_of_the_set_go(made: Cluster, module: Run) -> None:
    """Not those of others, of other sets, applied without prune, or with a copied label."""
    given = {"namespace": made.namespace}
    task = {**given, "prune": True}
    module({**task, "objects": [config_map("ours")]}, {**task, "name": "other", "objects": [config_map("theirs")]})
    module({**given, "objects": [config_map("plain")]})
    labels = {PART_OF: made.get("ConfigMap", "ours").metadata.labels[PART_OF]}
    copied = {**config_map("copied"), "metadata": {"name": "copied", "labels": labels}}
    made.api.resources.get(api_version="v1", kind="ConfigMap").create(body=copied, namespace=made.namespace)
    pruned = module({**task, "objects": [deployment()]})[0]
    assert named(pruned) == {"web": "created", "ours": "deleted", "applyset-test": "updated"}
    for name in ("theirs", "plain", "copied"):
        assert made.get("ConfigMap", name) is not None


def test_an_object_of_another_set_is_refused_and_taken_over_with_force(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "prune": True, "objects": [config_map("cm", a="1")]}
    other = {**task, "name": "other"}
    module(task)
    for state in ("present", "absent"):
        refused = module({**other, "state": state})[0]
        assert f"ConfigMap {made.namespace}/cm belongs to the set applyset-" in refused["msg"]
        assert "`force: true`" in refused["msg"]
        assert "Nothing was changed." in refused["msg"]
    taken, back = module({**other, "force": True}, {**task, "objects": []})
    assert actions(taken) == ["updated", "created"]
    assert named(back) == {"applyset-test": "updated"}
    assert made.get("ConfigMap", "cm") is not None


def test_tasks_without_prune_leave_membership_as_it_is(made: Cluster, module: Run) -> None:
    given = {"namespace": made.namespace, "objects": [config_map("cm", a="1")]}
    module({**given, "prune": True})
    label = made.get("ConfigMap", "cm").metadata.labels[PART_OF]
    same, changed = module(given, {**given, "objects": [config_map("cm", a="2")]})
    assert not same["changed"]
    assert actions(changed) == ["updated"]
    assert made.get("ConfigMap", "cm").metadata.labels[PART_OF] == label
    pruned = module({**given, "prune": True, "objects": []})[0]
    assert named(pruned) == {"cm": "deleted", "applyset-test": "updated"}


def test_namespaces_and_definitions_of_the_set(cluster: Cluster, module: Run) -> None:
    """Members are found in all namespaces of the set, also when the namespaces come and go with it."""
    group = f"{secrets.token_hex(4)}.example.com"
    second = f"{cluster.namespace}-b"
    elsewhere = {**config_map("far"), "metadata": {"name": "far", "namespace": second}}
    base = [namespace(cluster.namespace), config_map("near")]
    more = [*base, namespace(second), elsewhere, custom("Thing", group, "a", 1), crd("Thing", group)]
    task = {"namespace": cluster.namespace, "prune": True, "wait": True, "wait_timeout": 60}
    looked = module({**task, "objects": more}, check=True)[0]
    assert set(actions(looked)) == {"created"}
    created, again = module({**task, "objects": more}, {**task, "objects": more})
    assert set(actions(created)) == {"created"}
    assert not again["changed"]
    kinds = f"ConfigMap,CustomResourceDefinition.apiextensions.k8s.io,Namespace,Thing.{group}"
    assert record(cluster)["contains-group-kinds"] == kinds
    assert record(cluster)["additional-namespaces"] == second
    pruned, after = module({**task, "objects": base}, {**task, "objects": base})
    expected = {second: "deleted", "far": "deleted", "a": "deleted", f"things.{group}": "deleted"}
    assert expected.items() <= named(pruned).items()
    assert named(pruned)["near"] == "unchanged"
    assert not after["changed"]
    assert record(cluster)["additional-namespaces"] == ""
    assert cluster.get("Namespace", second) is None


def test_a_definition_or_namespace_with_objects_of_others_is_not_pruned(cluster: Cluster, module: Run) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    second = f"{cluster.namespace}-b"
    items = [namespace(cluster.namespace), namespace(second), crd("Thing", group)]
    task = {"namespace": cluster.namespace, "prune": True, "wait": True, "wait_timeout": 60}
    module({**task, "objects": items}, {"namespace": second, "objects": [custom("Thing", group, "theirs", 1)]})
    for leftover in ({"objects": items[:1]}, {"objects": [], "state": "absent"}):
        refused = module({**task, **leftover})[0]
        assert f"CustomResourceDefinition things.{group} is no longer in the set" in refused["msg"]
        assert f"Namespace {second} is no longer in the set" in refused["msg"]
        assert f"also delete what is not of the set: Thing {second}/theirs" in refused["msg"]
        assert "Nothing was changed." in refused["msg"]
    module({"namespace": second, "objects": [custom("Thing", group, "theirs", 1)], "state": "absent"})
    pruned = module({**task, "objects": items[:1]})[0]
    assert named(pruned)[second] == named(pruned)[f"things.{group}"] == "deleted"


def test_absent_takes_away_what_the_variables_no_longer_name(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "prune": True, "wait": True}
    module({**task, "objects": [config_map("a"), config_map("b"), config_map("kept")]})
    absent = {**task, "objects": [config_map("a")], "state": "absent", "exclude": [{"name": "kept"}]}
    looked, gone, again = *module(absent, check=True), *module(absent, absent)
    assert named(looked) == named(gone) == {"a": "deleted", "b": "deleted", "applyset-test": "deleted"}
    assert not again["changed"]
    assert made.get("ConfigMap", "applyset-test") is None
    assert made.get("ConfigMap", "kept") is not None


def test_a_record_of_another_tool_is_respected(made: Cluster, module: Run) -> None:
    body = config_map("applyset-test")
    body["metadata"]["annotations"] = {"applyset.kubernetes.io/tooling": "kubectl/v1.35.0"}
    made.api.resources.get(api_version="v1", kind="ConfigMap").create(body=body, namespace=made.namespace)
    refused = module({"namespace": made.namespace, "prune": True, "objects": [config_map("a")]})[0]
    assert "applyset-test should record what belongs to the set, but it belongs to the tool kubectl" in refused["msg"]
    assert made.get("ConfigMap", "a") is None


def test_what_an_interrupted_run_left_is_found_by_the_next(made: Cluster, module: Run) -> None:
    """Refused while writing: the record was wide before, and what was written is pruned later."""
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    task = {"namespace": made.namespace, "prune": True, "wait": True, "wait_timeout": 2}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}}
    module({**task, "objects": [held, config_map("cm")]})
    stuck = module({**task, "objects": [account]})[0]
    assert "held: is being deleted (held by example.com/hold)" in stuck["msg"]
    assert record(made)["contains-group-kinds"] == "ConfigMap,ServiceAccount"
    made.merge("ConfigMap", "held", {"metadata": {"finalizers": []}}, "its-controller")
    done, after = module({**task, "objects": []}, {**task, "objects": []})
    assert named(done)["sa"] == "deleted"
    assert not after["changed"]
    assert record(made)["contains-group-kinds"] == ""


def test_prune_needs_a_home_for_its_record(module: Run) -> None:
    unsaid, misnamed = module(
        {"prune": True, "objects": [namespace("x")]},
        {"prune": True, "namespace": "n", "name": "Not a name", "objects": []},
    )
    assert "`prune` needs `namespace`" in unsaid["msg"]
    assert "must be a valid object name: 'Not a name'" in misnamed["msg"]
