# SPDX-License-Identifier: GPL-3.0-or-later
"""mm-embeddings-cache-producer: remembers which endpoint has seen which image, video or clip.

Parameters: cacheSizeInMBPerServer (4096): the encoder cache of an endpoint; 2 MB per item.
Formula: an item's address or data is hashed; an endpoint (of the encode profile, where there is one) holds the last
size / 2 items of the requests that went to it. Each item of a request counts once.
Source: llm-d-router producer of the same type, whose items may weigh their tokens; here all weigh the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epp.datalayer.items import Items
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.disaggregation import ENCODE
from epp.plugins.media import media
from epp.scheduling.api import Context, Producer, RequestHook, param

ITEM_MATCH = "item-match"
"""Key prefix of the attribute with an :class:`ItemMatch`."""
MB_PER_ITEM = 2


@dataclass(frozen=True, slots=True)
class ItemMatch:
    """How much of a request's media each endpoint is believed to know."""

    items: tuple[int, ...]
    matched: Mapping[Endpoint, float]
    """An endpoint that knows none is absent."""


@dataclass(frozen=True)
class MmEmbeddingsCacheProducerParameters:
    """Parameters of mm-embeddings-cache-producer."""

    cache_size_in_mb_per_server: int = param(
        4096, minimum=MB_PER_ITEM, key="cacheSizeInMBPerServer", doc="encoder cache of an endpoint"
    )


class MmEmbeddingsCacheProducer(Producer, RequestHook):
    """Remembers pictures."""

    TYPE = "mm-embeddings-cache-producer"
    PARAMETERS = MmEmbeddingsCacheProducerParameters

    def __init__(self, name: str, parameters: MmEmbeddingsCacheProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._items = Items(parameters.cache_size_in_mb_per_server // MB_PER_ITEM)
        self.key = f"{ITEM_MATCH}/{name}"
        context.datastore.on_removed(self._items.drop)

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Look up what the request brings."""
        digests = tuple(dict.fromkeys(each.digest for each in media(request)))
        if digests:
            weights = dict.fromkeys(digests, 1.0)
            request.attributes[self.key] = ItemMatch(digests, self._items.matched(weights, endpoints))

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Whoever encodes will hold it."""
        found = request.attributes.get(self.key)
        if isinstance(found, ItemMatch):
            for endpoint in decision.profiles.get(ENCODE) or decision.endpoints[:1]:
                self._items.add(endpoint, found.items)
