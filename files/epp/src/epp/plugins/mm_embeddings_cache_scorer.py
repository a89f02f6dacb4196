# SPDX-License-Identifier: GPL-3.0-or-later
"""mm-embeddings-cache-scorer: prefers endpoints that have seen a request's images, videos or audio.

Parameters: producerName (the first mm-embeddings-cache-producer): who remembers.
Formula: matched weight / weight of all items; 0 for requests without any.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.mm_embeddings_cache_producer import ITEM_MATCH, ItemMatch, MmEmbeddingsCacheProducer
from epp.scheduling.api import Context, Producer, Scorer, param


@dataclass(frozen=True)
class MmEmbeddingsCacheScorerParameters:
    """Parameters of mm-embeddings-cache-scorer."""

    producer_name: str = param("", plugin=Producer, doc="who remembers")


class MmEmbeddingsCacheScorer(Scorer):
    """Prefers who knows the picture."""

    TYPE = "mm-embeddings-cache-scorer"
    PARAMETERS = MmEmbeddingsCacheScorerParameters

    def __init__(self, name: str, parameters: MmEmbeddingsCacheScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        wanted = parameters.producer_name
        producer = context.plugin(wanted) if wanted else context.of_type(MmEmbeddingsCacheProducer.TYPE)
        self._key = f"{ITEM_MATCH}/{producer.name}"

    @classmethod
    def needs(cls, parameters: MmEmbeddingsCacheScorerParameters) -> tuple[str, ...]:
        """A producer."""
        return () if parameters.producer_name else (MmEmbeddingsCacheProducer.TYPE,)

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        found = request.attributes.get(self._key)
        if not isinstance(found, ItemMatch) or not found.matched:
            return [0.0] * len(endpoints)
        total = len(found.items)
        return [found.matched.get(endpoint, 0.0) / total for endpoint in endpoints]
