# SPDX-License-Identifier: GPL-3.0-or-later
"""topology-affinity-scorer: prefers endpoints near the one that will decode.

Parameters: topologyProducerName (the first topology-extractor): who says where endpoints stand.
Formula: 1 on the same host, 0.2 in the same rack, 0.05 in the same zone, 0.02 in the same region, else 0. For profiles
that run after the decode profile of a disaggregating handler; 0 for all in others.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.disaggregation import PEER
from epp.plugins.topology_extractor import TopologyExtractor, topology
from epp.scheduling.api import Context, Extractor, Scorer, param

SCORES = (1.0, 0.2, 0.05, 0.02)


@dataclass(frozen=True)
class TopologyAffinityScorerParameters:
    """Parameters of topology-affinity-scorer."""

    topology_producer_name: str = param("", plugin=Extractor, doc="who says where endpoints stand")


class TopologyAffinityScorer(Scorer):
    """Prefers neighbours."""

    TYPE = "topology-affinity-scorer"
    PARAMETERS = TopologyAffinityScorerParameters

    def __init__(self, name: str, parameters: TopologyAffinityScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._topology = topology(context, parameters.topology_producer_name)

    @classmethod
    def needs(cls, parameters: TopologyAffinityScorerParameters) -> tuple[str, ...]:
        """An extractor."""
        return () if parameters.topology_producer_name else (TopologyExtractor.TYPE,)

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        peer = request.attributes.get(PEER)
        if not isinstance(peer, Endpoint):
            return [0.0] * len(endpoints)
        levels = (self._topology.common(endpoint, peer) for endpoint in endpoints)
        return [0.0 if level is None else SCORES[level] for level in levels]
