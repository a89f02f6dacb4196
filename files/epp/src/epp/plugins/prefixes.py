# SPDX-License-Identifier: GPL-3.0-or-later
"""How plugins find what a producer said of a prompt's prefixes."""

from __future__ import annotations

import numpy as np

from epp.datalayer import load
from epp.datalayer.known import Column, Known
from epp.datalayer.prompts import PrefixMatch
from epp.model import Endpoint, InferenceRequest
from epp.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer
from epp.scheduling.api import PREFIX_MATCH, Context


def producer_key(context: Context, wanted: str) -> str:
    """The attribute of the producer that is ``wanted`` by name, or of the first approx-prefix-cache-producer."""
    plugin = context.plugin(wanted) if wanted else context.of_type(ApproxPrefixCacheProducer.TYPE)
    return f"{PREFIX_MATCH}/{plugin.name}"


def needs_producer(wanted: str) -> tuple[str, ...]:
    """What has to exist so that :func:`producer_key` finds something."""
    return () if wanted else (ApproxPrefixCacheProducer.TYPE,)


def match_of(request: InferenceRequest, key: str) -> PrefixMatch | None:
    """What the producer said, None if nothing."""
    found = request.attributes.get(key)
    return found if isinstance(found, PrefixMatch) else None


def shares(match: PrefixMatch | None, endpoints: list[Endpoint]) -> list[float]:
    """The part of the prompt that each endpoint is believed to hold, 0 to 1."""
    if match is None or not match.blocks or not match.hashes:
        return [0.0] * len(endpoints)
    total, blocks = match.total, match.blocks if match.weights is None else match.weights
    return load.spread({endpoint: held / total for endpoint, held in blocks.items()}, endpoints)


def shares_column(match: PrefixMatch | None, endpoints: Known) -> Column:
    """The same in an array."""
    if match is None or not match.blocks or not match.hashes:
        return np.zeros(len(endpoints))
    return endpoints.spread(match.blocks if match.weights is None else match.weights) / match.total


def uncached_tokens(request: InferenceRequest, endpoints: list[Endpoint]) -> list[int]:
    """Tokens of the prompt that each endpoint would have to compute; the most hopeful producer counts."""
    tokens = request.prompt_tokens
    found = [value for value in request.attributes.values() if isinstance(value, PrefixMatch) and value.blocks]
    if not found:
        return [tokens] * len(endpoints)
    left = [tokens] * len(endpoints)
    for match in found:
        for index, endpoint in enumerate(endpoints):
            held = match.blocks.get(endpoint)
            if held:
                left[index] = min(left[index], max(0, tokens - held * match.block_tokens))
    return left
