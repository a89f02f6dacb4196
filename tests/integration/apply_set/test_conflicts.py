# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields that others hold: people's edits are drift, programs' are conflicts, and force is an explicit choice."""

from __future__ import annotations

import pytest
from kubernetes import client

from .conftest import Cluster, Json, Run
from .objects import actions, config_map, deployment

pytestmark = pytest.mark.cluster


def held(result: Json) -> list[Json]:
    return [held for entry in result["objects"] for held in entry["taken_over"]]


def test_edits_by_hand_are_reported_and_repaired(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [config_map("cm", a="1", b="1")], "repair": True}
    module(task)
    made.merge("ConfigMap", "cm", {"data": {"a": "typed", "more": "theirs"}}, "kubectl-edit")
    looked = module(task, check=True, diff=True)[0]
    assert actions(looked) == ["updated"]
    assert held(looked) == [{"field": ".data.a", "manager": "kubectl-edit"}]
    assert looked["objects"][0]["reason"] == "takes over .data.a (managed by kubectl-edit)"
    assert "typed" in looked["diff"][0]["before"]
    assert made.get("ConfigMap", "cm").data.a == "typed"
    repaired, again = module(task, task)
    assert actions(repaired) == ["updated"]
    assert not again["changed"]
    assert held(again) == []
    assert made.get("ConfigMap", "cm").data.to_dict() == {"a": "1", "b": "1", "more": "theirs"}


def test_a_replica_count_set_by_hand_is_repaired_and_an_autoscalers_is_not(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [deployment()], "repair": True}
    module(task)
    apps = client.AppsV1Api(made.api.client)
    body = {"spec": {"replicas": 5}}
    apps.patch_namespaced_deployment_scale("web", made.namespace, body, field_manager="kubectl")
    repaired = module(task)[0]
    assert actions(repaired) == ["updated"]
    assert held(repaired) == [{"field": ".spec.replicas", "manager": "kubectl"}]
    apps.patch_namespaced_deployment_scale("web", made.namespace, body, field_manager="kube-controller-manager")
    refused = module(task)[0]
    assert "other field managers hold .spec.replicas (managed by kube-controller-manager)" in refused["msg"]
    assert made.get("Deployment", "web", "apps/v1").spec.replicas == 5
    forced = module({**task, "force": True})[0]
    assert held(forced) == [{"field": ".spec.replicas", "manager": "kube-controller-manager"}]
    assert made.get("Deployment", "web", "apps/v1").spec.replicas == 1


def test_what_somebody_made_or_applies_is_no_drift_of_ours(made: Cluster, module: Run) -> None:
    """An object that a person made under the same name, and fields that another tool applies."""
    maps = made.api.resources.get(api_version="v1", kind="ConfigMap")
    body = {**config_map("theirs", a="typed"), "metadata": {"name": "theirs", "namespace": made.namespace}}
    maps.create(body=body, namespace=made.namespace, field_manager="kubectl-create")
    task = {"namespace": made.namespace, "objects": [config_map("theirs", a="1")], "repair": True}
    refused = module(task)[0]
    assert "hold .data.a (managed by kubectl-create)" in refused["msg"]
    assert made.get("ConfigMap", "theirs").data.a == "typed"
    ours = {**task, "objects": [config_map("cm", a="1")]}
    module(ours)
    applied = {**config_map("cm", a="applied"), "metadata": {"name": "cm", "namespace": made.namespace}}
    maps.server_side_apply(
        body=applied, namespace=made.namespace, name="cm", field_manager="kubectl", force_conflicts=True
    )
    refused = module(ours)[0]
    assert "hold .data.a (managed by kubectl)" in refused["msg"]


def test_without_repair_an_edit_by_hand_is_a_conflict(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [config_map("cm", a="1")]}
    module(task)
    made.merge("ConfigMap", "cm", {"data": {"a": "typed"}}, "kubectl-edit")
    refused = module(task)[0]
    assert "hold .data.a (managed by kubectl-edit)" in refused["msg"]


def test_a_failure_shows_only_the_objects_that_matter(made: Cluster, playbook: Run) -> None:
    good = [config_map(f"cm-{number}", a="1") for number in range(30)]
    bad = config_map("Not_A_Name")
    task = {"namespace": made.namespace, "objects": good}
    playbook(task)
    output: list[str] = []
    failed = playbook({**task, "objects": [*good, bad]}, output=output)[0]
    assert [entry["name"] for entry in failed["objects"]] == ["Not_A_Name"]
    assert "cm-7" not in output[0]
