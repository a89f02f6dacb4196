# SPDX-License-Identifier: GPL-3.0-or-later
"""EndpointPickerConfig as it is written: every field of both API groups, before defaulting.

Fields that only older or newer versions have are all here; the loader decides what they come to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from epp.config.document import Located
from epp.scheduling.api import param


@dataclass(frozen=True)
class PluginRef:
    """A plugin by name."""

    plugin_ref: str


@dataclass(frozen=True)
class RawPlugin:
    """One entry of ``plugins:``; parameters are read once the type is known."""

    type: str
    name: str = ""
    parameters: Located | None = None


@dataclass(frozen=True)
class RawProfilePlugin:
    """One plugin of a profile."""

    plugin_ref: str
    weight: float | None = param(None, minimum=0)


@dataclass(frozen=True)
class RawProfile:
    """One scheduling profile."""

    name: str
    plugins: tuple[RawProfilePlugin, ...] = ()


@dataclass(frozen=True)
class RawDataSource:
    """One source of the data layer."""

    plugin_ref: str
    extractors: tuple[PluginRef, ...] = ()


@dataclass(frozen=True)
class RawDiscovery:
    """``dataLayer.discovery``: a reference, or (newer) one below ``endpoints``."""

    plugin_ref: str = ""
    endpoints: PluginRef | None = None

    def __post_init__(self) -> None:
        """One of them."""
        if bool(self.plugin_ref) == bool(self.endpoints):
            raise ValueError("name one plugin: pluginRef, or endpoints with a pluginRef below it")


@dataclass(frozen=True)
class RawDataLayer:
    """``dataLayer`` (``data`` in v1.3)."""

    inject_defaults: bool = True
    sources: tuple[RawDataSource, ...] = ()
    discovery: RawDiscovery | None = None
    peer_discovery: PluginRef | None = None
    cross_replica_syncer_plugin_ref: str = ""
    cross_replica_sync_interval: float | None = param(None, duration=True)


@dataclass(frozen=True)
class RawPriorityBand:
    """One band of flow control."""

    priority: int | None = None
    max_bytes: Located | None = None
    max_requests: Located | None = None
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""


@dataclass(frozen=True)
class RawFlowControl:
    """``flowControl``."""

    max_bytes: Located | None = None
    max_requests: Located | None = None
    default_request_ttl: float | None = field(default=None, metadata={"key": "defaultRequestTTL", "duration": True})
    no_endpoint_request_ttl: float | None = field(
        default=None, metadata={"key": "noEndpointRequestTTL", "duration": True}
    )
    default_priority_band: RawPriorityBand | None = None
    default_negative_priority_band: RawPriorityBand | None = None
    priority_bands: tuple[RawPriorityBand, ...] = ()
    usage_limit_policy_plugin_ref: str = ""
    saturation_detector: PluginRef | None = None
    enable_eviction: bool = False


@dataclass(frozen=True)
class RawRequestHandler:
    """``requestHandler``."""

    parsers: tuple[PluginRef, ...] = ()


@dataclass(frozen=True)
class RawConfig:
    """The whole document."""

    api_version: str = ""
    kind: str = ""
    feature_gates: tuple[str, ...] = ()
    plugins: tuple[Located, ...] = ()
    scheduling_profiles: tuple[Located, ...] = ()
    data_layer: Located | None = None
    data: Located | None = None
    flow_control: Located | None = None
    request_handler: Located | None = None
    saturation_detector: Located | None = None
    parser: PluginRef | None = None
