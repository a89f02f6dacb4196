# SPDX-License-Identifier: GPL-3.0-or-later
"""Single steps on the platform, in check mode."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Playbook

pytestmark = pytest.mark.cluster

GO_IMAGE = "registry.k8s.io/gateway-api-inference-extension/epp:v1.3.0"
MODELS: dict[str, Any] = {"inferops_models": [{"name": "one", "model": "org/one"}, {"name": "two", "model": "org/two"}]}


def test_the_image_of_one_endpoint_picker_is_replaced(playbook: Playbook) -> None:
    wanted = {"inferops_epp_image": GO_IMAGE, "inferops_epp_pools": ["two"]}
    run = playbook("epp_image", {**MODELS, **wanted, "epp_image": "registry.example.com/epp:1"}, "--diff")
    assert run.code == 0, run.output
    assert run.output.count(f"image: {GO_IMAGE}") == 1
    assert run.output.count("image: registry.example.com/epp:1") == 1
    assert GO_IMAGE in run.result("Say what keeps the image there")["msg"]


def test_a_pool_that_there_is_not_is_named(playbook: Playbook) -> None:
    run = playbook("epp_image", {**MODELS, "inferops_epp_image": GO_IMAGE, "inferops_epp_pools": ["tow"]})
    assert run.code != 0
    assert "There is no pool tow in inferops_models; there are one, two" in run.output


def test_gpu_nodes_alone(playbook: Playbook) -> None:
    run = playbook(
        "gpu_nodes", {"gpu_nodes_wait": False, "gpu_nodes_sharing": {"strategy": "time_slicing", "replicas": 4}}
    )
    assert run.code == 0, run.output
    assert {("DaemonSet", "nvidia-device-plugin"), ("RuntimeClass", "nvidia")} <= run.objects("created")


def test_gpu_nodes_taken_back(playbook: Playbook) -> None:
    run = playbook("gpu_nodes", {"gpu_nodes_wait": False, "inferops_gpu_nodes_state": "absent"})
    assert run.code == 0, run.output
    assert run.objects("created", "changed") == set()


def test_a_node_that_there_is_not_is_named(playbook: Playbook) -> None:
    run = playbook("gpu_nodes", {"gpu_nodes_nodes": ["gpu-99"]})
    assert run.code != 0
    assert "gpu-99" in run.output
