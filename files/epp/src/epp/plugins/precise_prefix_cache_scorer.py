# SPDX-License-Identifier: GPL-3.0-or-later
"""precise-prefix-cache-scorer: prefers endpoints that hold the beginning of the prompt; a producer and a scorer in one.

Parameters: those of precise-prefix-cache-producer; tokensCacheConfig, tokenizersPoolConfig: taken, without effect (a
token-producer asks vLLM for tokens).
Formula: matched blocks / blocks, as prefix-cache-scorer.
Source: llm-d-inference-scheduler 0.4 scorer of the same type; llm-d-router has it as a wrapper of the other two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epp.datalayer.known import Column, Known
from epp.model import Endpoint, InferenceRequest
from epp.plugins.precise_prefix_cache_producer import (
    PrecisePrefixCacheProducer,
    PrecisePrefixCacheProducerParameters,
)
from epp.plugins.prefixes import match_of, shares, shares_column
from epp.scheduling.api import PREFIX_MATCH, Context, Scorer, param


@dataclass(frozen=True)
class PrecisePrefixCacheScorerParameters(PrecisePrefixCacheProducerParameters):
    """Parameters of precise-prefix-cache-scorer."""

    tokens_cache_config: dict[str, Any] = param(dict, doc="no effect")
    tokenizers_pool_config: dict[str, Any] = param(dict, doc="no effect")


class PrecisePrefixCacheScorer(Scorer):
    """Prefers warm caches."""

    TYPE = "precise-prefix-cache-scorer"
    PARAMETERS = PrecisePrefixCacheScorerParameters

    def __init__(self, name: str, parameters: PrecisePrefixCacheScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        context.adopt(PrecisePrefixCacheProducer(name, parameters, context))
        self._key = f"{PREFIX_MATCH}/{name}"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        return shares(match_of(request, self._key), endpoints)

    def column(self, request: InferenceRequest, endpoints: Known) -> Column:
        """See the module."""
        return shares_column(match_of(request, self._key), endpoints)
