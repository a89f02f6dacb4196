# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment variables that v1.3 reads beside the configuration: deprecated there, and of the same effect here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from epp.config.document import duration
from epp.config.errors import ConfigError
from epp.config.schema import EndpointPickerConfig, PluginSpec
from epp.plugins.utilization_detector import UtilizationDetector

_SATURATION = {
    "SD_QUEUE_DEPTH_THRESHOLD": ("queue_depth_threshold", int),
    "SD_KV_CACHE_UTIL_THRESHOLD": ("kv_cache_util_threshold", float),
    "SD_METRICS_STALENESS_THRESHOLD": ("metrics_staleness_threshold", duration),
}
_FLOW_CONTROL = "ENABLE_EXPERIMENTAL_FLOW_CONTROL_LAYER"
_DATA_LAYER = "ENABLE_EXPERIMENTAL_DATALAYER_V2"


def gates(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The feature gates that the environment switches on."""
    return ("flowControl",) if environment.get(_FLOW_CONTROL, "").lower() in ("1", "t", "true") else ()


def with_environment(cfg: EndpointPickerConfig, environment: Mapping[str, str]) -> EndpointPickerConfig:
    """The configuration with what the environment says. Raises ConfigError, which names the variable."""
    warnings = list(cfg.warnings)
    if gates(environment):
        warnings.append(f"{_FLOW_CONTROL} is deprecated; write flowControl into featureGates of the configuration")
    if _DATA_LAYER in environment:
        warnings.append(f"{_DATA_LAYER} has no effect: there is only one data layer here")
    changed: dict[str, Any] = {}
    for name, (field, read) in _SATURATION.items():
        if name in environment:
            changed[field] = _number(name, environment[name], read)
            warnings.append(f"{name} is deprecated; write it into the configuration as saturationDetector")
    if changed:
        cfg = replace(cfg, plugins=tuple(_changed(cfg, spec, changed) for spec in cfg.plugins))
    return replace(cfg, warnings=tuple(warnings))


def _number(name: str, text: str, read: Any) -> Any:
    try:
        value = read(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise ConfigError(name, 0, "", f"{text!r} is not usable; write a number above 0 (a duration like 200ms)")
    return value


def _changed(cfg: EndpointPickerConfig, spec: PluginSpec, changed: Mapping[str, Any]) -> PluginSpec:
    if spec.name != cfg.saturation_detector or spec.type != UtilizationDetector.TYPE:
        return spec
    return PluginSpec(spec.name, spec.type, replace(spec.parameters, **changed))
