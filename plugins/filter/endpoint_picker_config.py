# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds an EndpointPickerConfig from scorer weights, a picker and saturation thresholds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: endpoint_picker_config
short_description: Turn scorer weights into an EndpointPickerConfig
version_added: 1.0.0
description:
  - Builds the configuration of an endpoint picker with one scheduling profile from a few values.
  - The result uses the API group that the endpoint pickers of the Gateway API Inference Extension and of llm-d accept.
options:
  _input:
    description: The values.
    type: dict
    required: true
    suboptions:
      scorers:
        description:
          - Weight of each scorer, a number above 0; a scorer of weight 0 is left out.
          - Keys are plugin types with or without the ending C(-scorer), with C(-) or C(_), or in camel case, such as
            C(prefix_cache), C(queue-scorer) or C(prefixCacheScorer).
          - Instead of the weight, a dictionary with C(weight) and C(parameters).
        type: dict
        required: true
      picker:
        description: Plugin type of the picker, or a dictionary with C(type) and C(parameters).
        type: raw
        default: max-score-picker
      saturation_detector:
        description: >-
          C(queue_depth_threshold) (requests), C(kv_cache_util_threshold) (fraction of 1) and
          C(metrics_staleness_threshold) (duration). Left out of the configuration if empty.
        type: dict
        default: {}
"""

EXAMPLES = r"""
- name: Favour pods that hold the prefix of the prompt
  ansible.builtin.debug:
    msg: "{{ values | inferops.cluster.endpoint_picker_config | to_nice_yaml }}"
  vars:
    values:
      scorers: {prefix_cache: 60, kv_cache_utilization: 30, queue: 10}
      picker: max-score-picker
      saturation_detector: {queue_depth_threshold: 5, kv_cache_util_threshold: 0.8}
"""

RETURN = r"""
_value:
  description: The EndpointPickerConfig.
  type: dict
"""

API_VERSION = "inference.networking.x-k8s.io/v1alpha1"
SCORERS = (
    "prefix-cache-scorer",
    "kv-cache-utilization-scorer",
    "queue-scorer",
    "running-requests-size-scorer",
    "lora-affinity-scorer",
)
PICKERS = ("max-score-picker", "random-picker", "weighted-random-picker")
THRESHOLDS = {
    "queue_depth_threshold": "queueDepthThreshold",
    "kv_cache_util_threshold": "kvCacheUtilThreshold",
    "metrics_staleness_threshold": "metricsStalenessThreshold",
}


def endpoint_picker_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the EndpointPickerConfig for C(values); raises AnsibleFilterError that names the wrong value."""
    _refuse_unknown(values, ("scorers", "picker", "saturation_detector"), "endpoint_picker_config")
    scorers = [
        scorer for scorer in (_scorer(key, value) for key, value in _mapping(values, "scorers").items()) if scorer
    ]
    if not scorers:
        raise AnsibleFilterError("scorers: at least one scorer needs a weight above 0")
    picker = _picker(values.get("picker") or PICKERS[0])
    profile = [{"pluginRef": scorer["type"], "weight": weight} for scorer, weight in scorers]
    config: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "EndpointPickerConfig",
        "plugins": [scorer for scorer, dummy in scorers] + [picker],
        "schedulingProfiles": [{"name": "default", "plugins": [*profile, {"pluginRef": picker["type"]}]}],
    }
    thresholds = _mapping(values, "saturation_detector")
    _refuse_unknown(thresholds, tuple(THRESHOLDS), "saturation_detector")
    if thresholds:
        config["saturationDetector"] = {THRESHOLDS[key]: value for key, value in thresholds.items()}
    return config


def _scorer(key: str, value: Any) -> tuple[dict[str, Any], int | float] | None:
    """Return plugin entry and weight of one scorer, None if its weight is 0."""
    kind = _type_name(key)
    parameters: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        _refuse_unknown(value, ("weight", "parameters"), f"scorers.{key}")
        parameters = _mapping(value, "parameters")
        value = value.get("weight", 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise AnsibleFilterError(f"scorers.{key}: the weight is {value!r}, but must be a number of 0 or more")
    return (_plugin(kind, parameters), value) if value else None


def _type_name(key: str) -> str:
    """Return the plugin type that C(key) means: prefix_cache, prefixCacheScorer, prefix-cache-scorer are the same."""
    dashed = "".join(f"-{char.lower()}" if char.isupper() else char for char in str(key)).replace("_", "-").lstrip("-")
    kind = dashed if dashed.endswith("-scorer") else f"{dashed}-scorer"
    if kind not in SCORERS:
        nearest = difflib.get_close_matches(kind, SCORERS, n=1, cutoff=0.6)
        advice = f"did you mean {nearest[0]}?" if nearest else "there are " + ", ".join(SCORERS)
        raise AnsibleFilterError(
            f"scorers.{key}: there is no scorer of this name; {advice} (other plugins need a whole configuration)"
        )
    return kind


def _picker(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        _refuse_unknown(value, ("type", "parameters"), "picker")
        return _plugin(_picker_type(value.get("type")), _mapping(value, "parameters"))
    return _plugin(_picker_type(value), {})


def _picker_type(value: Any) -> str:
    if value not in PICKERS:
        raise AnsibleFilterError(f"picker: {value!r} is not one of {', '.join(PICKERS)}")
    return str(value)


def _plugin(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "parameters": dict(parameters)} if parameters else {"type": kind}


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, Mapping):
        raise AnsibleFilterError(f"{key} must be a dictionary, not {value!r}")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise AnsibleFilterError(f"{where}: unknown key {key!r}; did you mean {nearest[0]!r}?")


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"endpoint_picker_config": endpoint_picker_config}
