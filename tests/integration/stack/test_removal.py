# SPDX-License-Identifier: GPL-3.0-or-later
"""The last test of the platform: every role takes away what it has made, and nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(1200)]

ROLES = ("litellm", "epp", "inference_pool", "kserve_runtimes", "gpu_nodes", "envoy_gateway", "gateway_api_crds")


def test_each_role_leaves_nothing(
    ansible: Ansible, state: State, variables: dict[str, Any], empty: set[str], converged: None
) -> None:
    nodes = state.get("/api/v1/nodes")["items"]
    assert any("inferops.cluster/gpu-node" in node["metadata"]["labels"] for node in nodes)
    for role in ROLES:
        if role != "gpu_nodes" or variables.get("inferops_gpu_nodes"):
            ansible.role(role, "remove")
            assert ansible.role(role, "remove").changed == 0
    assert state.names() - empty == set()
    for node in state.get("/api/v1/nodes")["items"]:
        assert "inferops.cluster/gpu-node" not in node["metadata"]["labels"]
        assert not [taint for taint in node["spec"].get("taints") or [] if taint["key"] == "nvidia.com/gpu"]
