# SPDX-License-Identifier: GPL-3.0-or-later
"""topology-affinity-filter: keeps endpoints near the one that will decode.

Parameters: minAffinity (host): host, rack, zone or region; topologyProducerName (the first topology-extractor): who
says where endpoints stand.
Formula: those that share minAffinity, or something tighter, with the decoding endpoint; all when none does, and in
profiles that do not run after a decode profile.
Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.disaggregation import PEER
from epp.plugins.topology_extractor import LEVELS, TopologyExtractor, topology
from epp.scheduling.api import Context, Extractor, Filter, param


@dataclass(frozen=True)
class TopologyAffinityFilterParameters:
    """Parameters of topology-affinity-filter."""

    min_affinity: str = param("host", choices=LEVELS, doc="what must be shared")
    topology_producer_name: str = param("", plugin=Extractor, doc="who says where endpoints stand")


class TopologyAffinityFilter(Filter):
    """Neighbours, if there are any."""

    TYPE = "topology-affinity-filter"
    PARAMETERS = TopologyAffinityFilterParameters

    def __init__(self, name: str, parameters: TopologyAffinityFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._level = LEVELS.index(parameters.min_affinity)
        self._topology = topology(context, parameters.topology_producer_name)

    @classmethod
    def needs(cls, parameters: TopologyAffinityFilterParameters) -> tuple[str, ...]:
        """An extractor."""
        return () if parameters.topology_producer_name else (TopologyExtractor.TYPE,)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        peer = request.attributes.get(PEER)
        if not isinstance(peer, Endpoint):
            return endpoints
        near: list[Endpoint] = []
        for endpoint in endpoints:
            level = self._topology.common(endpoint, peer)
            if level is not None and level <= self._level:
                near.append(endpoint)
        return near or endpoints
