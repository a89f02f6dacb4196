# SPDX-License-Identifier: GPL-3.0-or-later
"""EndpointPickerConfig as typed data, after defaulting. See the loader for how it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

API_VERSIONS = ("llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1")
KIND = "EndpointPickerConfig"


@dataclass(frozen=True)
class PluginSpec:
    """One entry of ``plugins:``; ``parameters`` is an instance of the plugin's own parameter class."""

    name: str
    type: str
    parameters: Any


@dataclass(frozen=True)
class ProfilePlugin:
    """One plugin of a profile; ``weight`` matters for scorers only."""

    plugin: str
    weight: float = 1.0


@dataclass(frozen=True)
class ProfileSpec:
    """One scheduling profile, in the order of its plugins."""

    name: str
    plugins: tuple[ProfilePlugin, ...]


@dataclass(frozen=True)
class DataSourceSpec:
    """One source of the data layer and the extractors that read it."""

    plugin: str
    extractors: tuple[str, ...] = ()


@dataclass(frozen=True)
class BandSpec:
    """One priority band of flow control. Limits of 0 are none."""

    fairness: str
    """Name of the plugin that chooses among its flows."""
    ordering: str
    """Name of the plugin that orders the requests of a flow."""
    max_requests: int
    max_bytes: int


@dataclass(frozen=True)
class EvictionSpec:
    """Names of the plugins that say which requests in flight may be given up, and in which order."""

    filter: str
    order: str


@dataclass(frozen=True)
class FlowControlSpec:
    """Flow control. Limits of 0 are none; times to live are seconds, and 0 is without end."""

    default_band: BandSpec
    usage_limit: str
    """Name of the plugin that says up to which saturation a band may dispatch."""
    negative_band: BandSpec | None = None
    """For priorities below 0; None for the same as the others."""
    bands: tuple[tuple[int, BandSpec], ...] = ()
    """Priorities that have a band of their own."""
    max_requests: int = 0
    max_bytes: int = 0
    request_ttl: float = 60.0
    no_endpoint_ttl: float = 60.0
    eviction: EvictionSpec | None = None


@dataclass(frozen=True)
class EndpointPickerConfig:
    """A configuration that has been checked and completed: every reference resolves, every default is filled in."""

    plugins: tuple[PluginSpec, ...]
    profiles: tuple[ProfileSpec, ...]
    profile_handler: str
    """Name of the plugin that chooses among profiles."""
    saturation_detector: str
    """Name of the plugin that says how full the pool is."""
    sources: tuple[DataSourceSpec, ...] = ()
    discovery: str = ""
    """Name of the plugin that says where the endpoints come from; empty when flags say it."""
    parsers: tuple[str, ...] = ()
    """Names of the parser plugins, in order."""
    flow_control: FlowControlSpec | None = None
    """None unless the feature gate is on."""
    feature_gates: dict[str, bool] = field(default_factory=dict)
    source: str = field(default="built-in default", compare=False)
    """Where it came from, for messages."""
    api_version: str = field(default=API_VERSIONS[0], compare=False)
    """The group and version in which it was written."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was understood but has no effect, one sentence each; to be logged at start."""

    def plugin(self, name: str) -> PluginSpec:
        """The plugin of that name; KeyError if there is none."""
        for spec in self.plugins:
            if spec.name == name:
                return spec
        raise KeyError(name)
