# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift: what people do to the platform's objects is reported and repaired, what is not the platform's stays."""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(1200), pytest.mark.usefixtures("empty", "converged")]

Json = dict[str, Any]
UNCHANGED_SECONDS = 20  # of processor time: what it takes on an idle machine, whatever else this one does
NAMESPACE = "llm-platform"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/litellm"
CONFIG = f"/api/v1/namespaces/{NAMESPACE}/configmaps/litellm"


def deployment(state: State) -> Json:
    found: Json = state.get(DEPLOYMENT)["spec"]
    return found


def test_unchanged_is_quick_and_quiet(ansible: Ansible) -> None:
    runs = [ansible.site() for _ in range(2)]
    seconds, cpu = min(run.seconds for run in runs), min(run.cpu for run in runs)
    print(f"site.yml unchanged: {seconds:.1f} s, {cpu:.1f} s of processor time (load {os.getloadavg()[0]:.1f})")
    assert [run.changed for run in runs] == [0, 0]
    assert cpu < UNCHANGED_SECONDS


def test_edits_and_deletions_by_hand_are_reported_and_repaired(ansible: Ansible, state: State) -> None:
    replicas = deployment(state)["replicas"]
    state.edit(DEPLOYMENT, {"spec": {"minReadySeconds": 1}})  # a field that the role leaves to others
    state.edit(DEPLOYMENT, {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}})
    state.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/services/litellm")
    looked = ansible.site("--check", "--diff")
    assert looked.changed == 1
    assert "terminationGracePeriodSeconds: 7" in looked.output
    assert deployment(state)["template"]["spec"]["terminationGracePeriodSeconds"] == 7
    reported = ansible.role("litellm", "verify", fails=True)
    assert "Service llm-platform/litellm is missing" in reported.output
    held = ".spec.template.spec.terminationGracePeriodSeconds is held by kubectl-edit"
    assert f"Deployment llm-platform/litellm differs: {held}" in reported.output
    repaired = ansible.site()
    assert repaired.changed == 1
    assert deployment(state)["template"]["spec"]["terminationGracePeriodSeconds"] != 7
    assert deployment(state)["minReadySeconds"] == 1
    assert deployment(state)["replicas"] == replicas
    state.edit(DEPLOYMENT, {"spec": {"minReadySeconds": None}})
    assert ansible.site().changed == 0


def test_an_autoscaler_is_reported_by_verify_and_not_fought(ansible: Ansible, state: State) -> None:
    before = deployment(state)["replicas"]
    state.edit(f"{DEPLOYMENT}/scale", {"spec": {"replicas": before + 1}}, "kube-controller-manager")
    reported = ansible.role("litellm", "verify", fails=True)
    assert ".spec.replicas is held by kube-controller-manager" in reported.output
    refused = ansible.run("site.yml", fails=True)
    assert "other field managers hold .spec.replicas (managed by kube-controller-manager)" in refused.output
    assert deployment(state)["replicas"] == before + 1
    forced = ansible.site(variables={"litellm_force": True})
    assert forced.changed == 1
    assert deployment(state)["replicas"] == before


def test_a_model_taken_out_of_the_list_disappears_and_strangers_stay(
    ansible: Ansible, state: State, variables: Json
) -> None:
    stranger = f"/api/v1/namespaces/{NAMESPACE}/configmaps/stranger"
    labels = {"app.kubernetes.io/managed-by": "inferops.cluster", "app.kubernetes.io/part-of": "llm-platform"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stranger", "labels": labels}}
    state.request("POST", stranger.rpartition("/")[0], {**body, "data": {"a": "1"}})
    version = state.get(stranger)["metadata"]["resourceVersion"]
    before = state.names()
    models = copy.deepcopy(variables["inferops_models"])
    added = {**models[0], "name": "passing-model", "model": "passing-model", "replicas": 1}
    try:
        ansible.site(variables={"inferops_models": [*models, added]})
        made = state.names() - before
        assert len(made) > 5
        assert all("passing-model" in name for name in made)
        looked = ansible.site("--check")
        assert looked.changed >= 3
        assert state.names() - before == made
        ansible.site()
        assert state.names() == before
        assert ansible.site().changed == 0
        assert state.get(stranger)["metadata"]["resourceVersion"] == version
    finally:
        state.request("DELETE", stranger)


@pytest.mark.parametrize(
    "role",
    ["gateway_api_crds", "envoy_gateway", "gpu_nodes", "kserve_runtimes", "inference_pool", "epp", "litellm"],
)
def test_each_role_can_be_verified_alone(ansible: Ansible, variables: Json, role: str) -> None:
    if role == "gpu_nodes" and not variables.get("inferops_gpu_nodes"):
        pytest.skip("the inventory takes care of no GPU nodes")
    assert ansible.role(role, "verify").changed == 0


def test_check_mode_on_an_empty_cluster_foresees_everything(ansible: Ansible, state: State) -> None:
    """Objects whose namespace or kind comes from an earlier set of the same play count as changed."""
    before = state.names()
    fresh = f"fresh-{time.time_ns() % 100000}"
    roles = ("envoy_gateway_gateway", "kserve_runtimes", "inference_pool", "inference_pool_gateway", "epp", "litellm")
    looked = ansible.site("--check", variables={f"{role}_namespace": fresh for role in roles})
    assert looked.changed >= 4
    assert state.names() == before
