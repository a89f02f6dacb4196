# SPDX-License-Identifier: GPL-3.0-or-later
"""On the controller the work is done in the task's worker, elsewhere as a module; nobody can tell from the results."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from kubernetes import client

from .conftest import Cluster, Json, Run
from .objects import actions, config_map

pytestmark = pytest.mark.cluster


def test_both_ways_give_the_same(made: Cluster, playbook: Run, elsewhere: str) -> None:
    given = {"namespace": made.namespace, "prune": True, "wait": True}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "correct-horse"}}
    tasks: list[Json] = [
        {**given, "objects": [config_map("a"), config_map("b"), secret]},
        {**given, "objects": [config_map("a", x="1")]},
        {**given, "objects": [{"kind": "ConfigMap"}]},
        {**given, "objects": [], "wait_timeout": "soon"},
        {**given, "objects": [], "nonsense": 1},
        {"action": "cluster_wait", "objects": [{"kind": "ConfigMap", "name": "no"}], "wait_timeout": 1},
        {**given, "objects": [config_map("a")], "state": "absent"},
    ]
    outputs: list[str] = []
    options = ("-vvv", "--diff")
    direct = playbook(*tasks, options=options, output=outputs)
    packed = playbook(*tasks, options=options, output=outputs, python=elsewhere)
    assert ["Using module file" in output.replace("copy.py", "") for output in outputs] == [True, True]
    assert "modules/apply_set.py" not in outputs[0]
    assert "modules/apply_set.py" in outputs[1]
    for here, there in zip(direct, packed, strict=True):
        assert essence(here) == essence(there)
    assert not any("correct-horse" in output for output in outputs)
    assert [result["failed"] for result in direct] == [False, False, True, True, True, True, False]
    assert "Unsupported parameters" in direct[4]["msg"]


def essence(result: Json) -> Json:
    """What a play can rely on; masks of secrets differ from run to run."""
    kept = ("changed", "failed", "objects")
    found: Json = {name: result[name] for name in kept if name in result}
    found["msg"] = str(result.get("msg", "")).partition(" Supported parameters")[0]
    return {**found, "waited": sorted(result.get("waited") or {})}


def test_the_environment_of_the_task_counts(made: Cluster, playbook: Run, kubeconfig: str) -> None:
    task: Json = {"kubeconfig": None, "namespace": made.namespace, "objects": [config_map("a")]}
    wrong, right = playbook(
        {**task, "environment": {"K8S_AUTH_KUBECONFIG": "/nowhere"}},
        {**task, "environment": {"K8S_AUTH_KUBECONFIG": kubeconfig}},
    )
    assert "kubeconfig /nowhere does not exist" in wrong["msg"]
    assert actions(right) == ["created"]


def test_credentials_show_in_no_result(
    made: Cluster, playbook: Run, configuration: client.Configuration, elsewhere: str
) -> None:
    token = made.token("poor")
    login: Json = {"host": configuration.host, "api_key": token, "ca_cert": configuration.ssl_ca_cert}
    task = {**login, "kubeconfig": None, "namespace": made.namespace, "objects": [config_map("a")]}
    for python in (sys.executable, elsewhere):
        output: list[str] = []
        refused: list[dict[str, Any]] = playbook(task, options=("-vvvv",), output=output, python=python)
        assert "may not get configmaps" in refused[0]["msg"]
        assert token not in str(refused)
        assert token not in output[0].replace(f'"api_key": "{token}"', "")
