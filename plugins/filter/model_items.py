# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Splits the platform's one list of models into the lists that the roles take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: model_items
short_description: What one role takes from the platform's list of models
version_added: 1.0.0
description:
  - The variable C(inferops_models) describes each model once. This filter gives the part of it that a role takes.
positional: role
options:
  _input:
    description: Models, as the playbook C(inferops.cluster.site) takes them.
    type: list
    elements: dict
    required: true
  role:
    description: The role that the items are for.
    type: str
    required: true
    choices: [kserve_runtimes, inference_pool, epp, litellm]
  ports:
    description: Port of the model server for each runtime, for models that name none.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Items for the role epp
  ansible.builtin.debug:
    msg: "{{ inferops_models | inferops.cluster.model_items('epp') }}"
"""

RETURN = r"""
_value:
  description: One item for each model, in the same order.
  type: list
  elements: dict
"""

# Keys of a model that are for the other roles; all remaining keys describe its servers.
PARTS = ("pool", "epp", "litellm")


def model_items(
    models: Iterable[Mapping[str, Any]], role: str, ports: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Return the items of C(role) for C(models)."""
    try:
        build = {"kserve_runtimes": _servers, "inference_pool": _pool, "epp": _epp, "litellm": _litellm}[role]
    except KeyError:
        raise AnsibleFilterError(f"model_items: no role {role!r} takes models") from None
    return [build(model, ports or {}) for model in models]


def _servers(model: Mapping[str, Any], ports: Mapping[str, int]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in PARTS}


def _pool(model: Mapping[str, Any], ports: Mapping[str, int]) -> dict[str, Any]:
    port = model.get("port") or ports.get(model.get("runtime", "vllm"))
    item: dict[str, Any] = {"name": model["name"], "model_names": [served_name(model)]}
    if port:
        item["target_ports"] = [port]
    return item | dict(model.get("pool") or {})


def _epp(model: Mapping[str, Any], ports: Mapping[str, int]) -> dict[str, Any]:
    return {"name": model["name"], "runtime": model.get("runtime", "vllm")} | dict(model.get("epp") or {})


def _litellm(model: Mapping[str, Any], ports: Mapping[str, int]) -> dict[str, Any]:
    return {"name": served_name(model)} | dict(model.get("litellm") or {})


def served_name(model: Mapping[str, Any]) -> str:
    """Return the name that clients ask for."""
    return str(model.get("served_name") or model["name"])


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"model_items": model_items}
