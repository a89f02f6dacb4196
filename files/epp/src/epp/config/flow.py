# SPDX-License-Identifier: GPL-3.0-or-later
"""``flowControl``, read and written: bands, limits and the plugins that it names. Defaults are the reference's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from epp.config.document import Located, duration_text
from epp.config.errors import ConfigError
from epp.config.raw import RawFlowControl, RawPriorityBand
from epp.config.schema import BandSpec, EvictionSpec, FlowControlSpec
from epp.flowcontrol.api import (
    MAX_BYTES,
    MAX_REQUESTS,
    EvictionFilter,
    EvictionOrder,
    FairnessPolicy,
    OrderingPolicy,
    UsageLimitPolicy,
)
from epp.scheduling.api import Plugin

TTL = 60.0
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|[eE]\d+)?")
_UNITS = {
    **{f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGTP")},
    **{letter: 1000 ** (power + 1) for power, letter in enumerate("kMGTP")},
}


class Names(Protocol):
    """The configuration's plugins by name; see the loader."""

    def of_kind(self, name: str, kind: type[Plugin], path: str, line: int) -> str:
        """The name, if it is a plugin of that kind. Raises ConfigError."""

    def default(self, plugin_type: str) -> str:
        """The first configured plugin of that type; one with default parameters if there is none."""

    def first(self, kind: type[Plugin], plugin_type: str) -> str:
        """The first configured plugin of that kind; one of that type with default parameters if there is none."""


def quantity(value: object) -> int:
    """A whole number, or a Kubernetes quantity (``512Mi``, ``5k``). Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a number or a quantity like 512Mi or 5k, not {value!r}")
    unit = match[2] or ""
    factor = 10 ** int(unit[1:]) if unit[:1] in ("e", "E") else _UNITS.get(unit, 1)
    return int(float(match[1]) * factor)


class FlowReading:
    """Completes what was written. Every path and line is that of the value which is wrong."""

    def __init__(self, source: str, names: Names, located: Located | None) -> None:
        self._source, self._names = source, names
        self._located = located or Located({}, 0)

    def result(self, raw: RawFlowControl) -> FlowControlSpec:
        """The section, complete. Raises ConfigError."""
        # There whether anybody refers to them or not, as in the reference: so they can be referred to.
        static = self._names.default("static-usage-limit-policy")
        self._names.default("global-strict-fairness-policy")
        self._names.default("fcfs-ordering-policy")
        default = self._band(raw.default_priority_band or RawPriorityBand(), ("defaultPriorityBand",), None)
        negative = None
        if raw.default_negative_priority_band is not None:
            negative = self._band(raw.default_negative_priority_band, ("defaultNegativePriorityBand",), None)
        usage = raw.usage_limit_policy_plugin_ref
        if usage:
            path = ("usageLimitPolicyPluginRef",)
            usage = self._names.of_kind(usage, UsageLimitPolicy, _text(path), self._line(path))
        request_ttl = TTL if raw.default_request_ttl is None else raw.default_request_ttl
        return FlowControlSpec(
            default_band=default,
            negative_band=negative,
            bands=self._bands(raw, default, negative),
            usage_limit=usage or static,
            max_requests=self._quantity(raw.max_requests, ("maxRequests",), 0),
            max_bytes=self._quantity(raw.max_bytes, ("maxBytes",), 0),
            request_ttl=request_ttl,
            no_endpoint_ttl=request_ttl if raw.no_endpoint_request_ttl is None else raw.no_endpoint_request_ttl,
            eviction=self._eviction() if raw.enable_eviction else None,
        )

    def _bands(
        self, raw: RawFlowControl, default: BandSpec, negative: BandSpec | None
    ) -> tuple[tuple[int, BandSpec], ...]:
        bands: dict[int, BandSpec] = {}
        for index, band in enumerate(raw.priority_bands):
            path = ("priorityBands", index)
            if band.priority is None:
                raise self._error((*path, "priority"), "is missing; say which priority the band is for")
            if band.priority in bands:
                raise self._error((*path, "priority"), f"the priority {band.priority} is there twice; remove one")
            template = default if negative is None or band.priority >= 0 else negative
            bands[band.priority] = self._band(band, path, template)
        return tuple(bands.items())

    def _band(self, raw: RawPriorityBand, path: tuple[str | int, ...], template: BandSpec | None) -> BandSpec:
        """A band; of what it does not say the template's policies count, and the defaults' limits."""
        if template is None and raw.priority is not None:
            raise self._error((*path, "priority"), "has no meaning in a template for bands; remove it")
        fairness, ordering = raw.fairness_policy_ref, raw.ordering_policy_ref
        for name, key, kind in (
            (fairness, "fairnessPolicyRef", FairnessPolicy),
            (ordering, "orderingPolicyRef", OrderingPolicy),
        ):
            if name:
                where = (*path, key)
                self._names.of_kind(name, kind, _text(where), self._line(where))
        if template is not None:
            fairness, ordering = fairness or template.fairness, ordering or template.ordering
        return BandSpec(
            fairness=fairness or self._names.default("global-strict-fairness-policy"),
            ordering=ordering or self._names.default("fcfs-ordering-policy"),
            max_requests=self._quantity(raw.max_requests, (*path, "maxRequests"), MAX_REQUESTS),
            max_bytes=self._quantity(raw.max_bytes, (*path, "maxBytes"), MAX_BYTES),
        )

    def _eviction(self) -> EvictionSpec:
        return EvictionSpec(
            self._names.first(EvictionFilter, "sheddable-eviction-filter"),
            self._names.first(EvictionOrder, "priority-then-time-eviction-order-policy"),
        )

    def _quantity(self, located: Located | None, path: tuple[str | int, ...], default: int) -> int:
        if located is None:
            return default
        try:
            return quantity(located.value)
        except ValueError as error:
            raise ConfigError(self._source, located.line, _text(path), str(error)) from None

    def _error(self, path: tuple[str | int, ...], message: str) -> ConfigError:
        return ConfigError(self._source, self._line(path), _text(path), message)

    def _line(self, path: tuple[str | int, ...]) -> int:
        """The line of the innermost value on the path that is there."""
        node = self._located
        for key in path:
            inner: Any = node.value
            if isinstance(inner, dict) and key not in inner:
                break
            node = inner[key]
        return node.line


def _text(path: tuple[str | int, ...]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "flowControl" + "".join(parts)


def plain(spec: FlowControlSpec) -> Mapping[str, Any]:
    """The section as it is written, with every default."""
    section: dict[str, Any] = {
        "maxBytes": spec.max_bytes,
        "maxRequests": spec.max_requests,
        "defaultRequestTTL": duration_text(spec.request_ttl),
        "noEndpointRequestTTL": duration_text(spec.no_endpoint_ttl),
        "defaultPriorityBand": _plain_band(spec.default_band),
    }
    if spec.negative_band is not None:
        section["defaultNegativePriorityBand"] = _plain_band(spec.negative_band)
    if spec.bands:
        section["priorityBands"] = [{"priority": priority, **_plain_band(band)} for priority, band in spec.bands]
    section["usageLimitPolicyPluginRef"] = spec.usage_limit
    section["enableEviction"] = spec.eviction is not None
    return section


def _plain_band(band: BandSpec) -> dict[str, Any]:
    return {
        "maxBytes": band.max_bytes,
        "maxRequests": band.max_requests,
        "fairnessPolicyRef": band.fairness,
        "orderingPolicyRef": band.ordering,
    }
