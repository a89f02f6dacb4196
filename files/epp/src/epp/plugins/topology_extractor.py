# SPDX-License-Identifier: GPL-3.0-or-later
"""topology-extractor: where endpoints stand, by their pods' labels.

Parameters: hostnameLabel (the pod's name): the label that names the host; rackLabel (none), zoneLabel
(topology.kubernetes.io/zone), regionLabel (topology.kubernetes.io/region).
Source: llm-d-router extractor of the same type. Labels are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epp.model import Endpoint
from epp.scheduling.api import Context, Extractor, param

LEVELS = ("host", "rack", "zone", "region")


@dataclass(frozen=True)
class TopologyExtractorParameters:
    """Parameters of topology-extractor."""

    hostname_label: str = param("", doc="label that names the host; the pod's name counts without it")
    rack_label: str = param("", doc="label that names the rack")
    zone_label: str = param("topology.kubernetes.io/zone", doc="label that names the zone")
    region_label: str = param("topology.kubernetes.io/region", doc="label that names the region")


class TopologyExtractor(Extractor):
    """Knows who is near whom."""

    TYPE = "topology-extractor"
    PARAMETERS = TopologyExtractorParameters

    def __init__(self, name: str, parameters: TopologyExtractorParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._host = parameters.hostname_label
        self._labels = (parameters.rack_label, parameters.zone_label, parameters.region_label)

    def place(self, endpoint: Endpoint) -> Sequence[str]:
        """Host, rack, zone and region; empty where unknown."""
        host = endpoint.labels.get(self._host, "") if self._host else endpoint.pod
        return (host, *(endpoint.labels.get(label, "") for label in self._labels))

    def common(self, one: Endpoint, other: Endpoint) -> int | None:
        """The index in ``LEVELS`` of the tightest level that two endpoints share; None for none. What is unknown is
        never the same."""
        pairs = zip(self.place(one), self.place(other), strict=True)
        return next((level for level, (here, there) in enumerate(pairs) if here and here == there), None)


def topology(context: Context, wanted: str) -> TopologyExtractor:
    """The extractor that is ``wanted`` by name, or the first."""
    plugin = context.plugin(wanted) if wanted else context.of_type(TopologyExtractor.TYPE)
    assert isinstance(plugin, TopologyExtractor)
    return plugin
