# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the configuration says to what flow control is told: names become plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from epp.flowcontrol.api import (
    BandOptions,
    EvictionFilter,
    EvictionOptions,
    EvictionOrder,
    FairnessPolicy,
    Options,
    OrderingPolicy,
    UsageLimitPolicy,
)
from epp.scheduling.api import Plugin

if TYPE_CHECKING:
    from epp.config.schema import BandSpec, EvictionSpec, FlowControlSpec


def options(spec: FlowControlSpec, plugin: Callable[[str], Plugin]) -> Options:
    """Options from a loaded configuration, whose plugins ``plugin`` finds by name."""
    make = _Finder(plugin)
    return Options(
        default_band=make.band(spec.default_band),
        negative_band=make.band(spec.negative_band) if spec.negative_band is not None else None,
        bands={priority: make.band(band) for priority, band in spec.bands},
        usage_limit=make.find(spec.usage_limit, UsageLimitPolicy),
        max_requests=spec.max_requests,
        max_bytes=spec.max_bytes,
        request_ttl=spec.request_ttl,
        no_endpoint_ttl=spec.no_endpoint_ttl,
        eviction=make.eviction(spec.eviction) if spec.eviction is not None else None,
    )


class _Finder:
    def __init__(self, plugin: Callable[[str], Plugin]) -> None:
        self._plugin = plugin

    def find(self, name: str, kind: Any) -> Any:
        """The plugin of that name; the loader has seen to it that it is of that kind."""
        plugin = self._plugin(name)
        assert isinstance(plugin, kind)
        return plugin

    def band(self, spec: BandSpec) -> BandOptions:
        """One band."""
        return BandOptions(
            self.find(spec.fairness, FairnessPolicy),
            self.find(spec.ordering, OrderingPolicy),
            spec.max_requests,
            spec.max_bytes,
        )

    def eviction(self, spec: EvictionSpec) -> EvictionOptions:
        """Eviction."""
        return EvictionOptions(self.find(spec.filter, EvictionFilter), self.find(spec.order, EvictionOrder))
