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
  - A model's C(canary) is another model, by its C(name), or an adapter of its own, that gets C(weight) percent of the
    requests to the model from LiteLLM. A model's C(loras) are offered beside it.
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
  description: >-
    One item for each model, in the same order; for C(litellm), one more for each canary and each adapter.
  type: list
  elements: dict
"""

# Keys of a model that are for the other roles; all remaining keys describe its servers.
PARTS = ("pool", "epp", "litellm", "canary")

Model = Mapping[str, Any]
Item = dict[str, Any]


def model_items(models: Iterable[Model], role: str, ports: Mapping[str, int] | None = None) -> list[Item]:
    """Return the items of C(role) for C(models)."""
    known = list(models)
    if role == "kserve_runtimes":
        return [_servers(model) for model in known]
    if role == "inference_pool":
        return [_pool(model, ports or {}) for model in known]
    if role == "epp":
        return [_epp(model) for model in known]
    if role == "litellm":
        names = {model["name"]: served_name(model) for model in known}
        return [entry for model in known for entry in _entries(model, names)]
    raise AnsibleFilterError(f"model_items: no role {role!r} takes models")


def _servers(model: Model) -> Item:
    return {key: value for key, value in model.items() if key not in PARTS}


def _pool(model: Model, ports: Mapping[str, int]) -> Item:
    port = model.get("port") or ports.get(model.get("runtime", "vllm"))
    item: Item = {"name": model["name"], "model_names": [served_name(model), *_adapters(model)]}
    if port:
        item["target_ports"] = [port]
    return item | dict(model.get("pool") or {})


def _epp(model: Model) -> Item:
    return {"name": model["name"], "runtime": model.get("runtime", "vllm")} | dict(model.get("epp") or {})


def _entries(model: Model, names: Mapping[str, str]) -> list[Item]:
    """What the API offers: the model, its canary under the same name with its part of the requests, its adapters."""
    given = dict(model.get("litellm") or {})
    first: Item = {"name": served_name(model)} | given
    adapters = [{"name": name} | given for name in _adapters(model)]
    canary = model.get("canary") or {}
    weight = int(canary.get("weight", 0))
    if not 0 <= weight <= 100:
        raise AnsibleFilterError(f"{model['name']}: the canary's weight is {weight}, but must be from 0 to 100")
    if not weight:
        return [first, *adapters]
    name = names.get(canary["name"], canary["name"])
    second = first | {"model": f"hosted_vllm/{name}"}
    return [_weighed(first, 100 - weight), _weighed(second, weight), *adapters]


def _weighed(entry: Item, weight: int) -> Item:
    """An entry of LiteLLM with its part of the requests to all entries of its name."""
    return entry | {"params": {**(entry.get("params") or {}), "weight": weight}}


def _adapters(model: Model) -> list[str]:
    """The names of the model's LoRA adapters, which are models to clients."""
    return [str(adapter["name"]) for adapter in model.get("loras") or []]


def served_name(model: Mapping[str, Any]) -> str:
    """Return the name that clients ask for."""
    return str(model.get("served_name") or model["name"])


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"model_items": model_items}
