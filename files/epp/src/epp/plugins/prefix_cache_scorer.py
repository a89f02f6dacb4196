# SPDX-License-Identifier: GPL-3.0-or-later
"""prefix-cache-scorer: prefers endpoints that hold the beginning of the prompt in their prefix cache.

Parameters:
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer): where matches come from.
    matchLengthWeight (0.0), matchLengthScaleTokens (8192): how much the absolute length of a match counts.
    v1.3's, which give the scorer an index of its own: autoTune (true), blockSize (64 bytes), maxPrefixBlocksToMatch
    (256), lruCapacityPerServer (31250); and v1.5's blockSizeTokens and maxPrefixTokensToMatch.
Formula: w * min(1, matched tokens / scale)^2 + (1 - w) * matched blocks / blocks, with w = matchLengthWeight.
Source: GAIE v1.3, v1.5 and llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer import load
from epp.datalayer.known import Column, Known
from epp.datalayer.prompts import BYTES_PER_TOKEN, Geometry, PrefixMatch
from epp.model import Endpoint, InferenceRequest
from epp.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer, ApproxPrefixCacheProducerParameters
from epp.plugins.prefixes import match_of, shares, shares_column
from epp.scheduling.api import PREFIX_MATCH, Context, Producer, Scorer, param


@dataclass(frozen=True)
class PrefixCacheScorerParameters:
    """Parameters of prefix-cache-scorer."""

    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="where matches come from")
    match_length_weight: float = param(0.0, minimum=0, maximum=1, doc="weight of a match's absolute length")
    match_length_scale_tokens: int = param(8192, minimum=1, doc="tokens that count as a full match")
    auto_tune: bool | None = param(None, doc="own index: block size and capacity from metrics (true)")
    block_size: int | None = param(None, minimum=1, doc="own index: bytes per block (64)")
    block_size_tokens: int | None = param(None, minimum=1, doc="own index: tokens per block, instead of blockSize")
    max_prefix_blocks_to_match: int | None = param(None, minimum=1, doc="own index: blocks that are looked at (256)")
    max_prefix_tokens_to_match: int | None = param(None, minimum=0, doc="own index: tokens that are looked at (all)")
    lru_capacity_per_server: int | None = param(None, minimum=1, doc="own index: blocks per endpoint (31250)")

    def __post_init__(self) -> None:
        """A scorer has an index of its own, or another plugin's."""
        if self.own_index and self.prefix_match_info_producer_name:
            raise ValueError(
                "prefixMatchInfoProducerName and parameters of an own index exclude each other; "
                "move the latter to the producer"
            )
        if self.block_size is not None and self.block_size_tokens is not None:
            raise ValueError("blockSize and blockSizeTokens exclude each other; remove one")

    @property
    def own_index(self) -> bool:
        """Whether any of v1.3's parameters is given."""
        given = (self.auto_tune, self.block_size, self.block_size_tokens, self.max_prefix_blocks_to_match)
        return any(
            value is not None for value in (*given, self.max_prefix_tokens_to_match, self.lru_capacity_per_server)
        )

    def geometry(self) -> Geometry:
        """The own index, with v1.3's defaults."""
        from_tokens = self.block_size_tokens * BYTES_PER_TOKEN if self.block_size_tokens is not None else 64
        return Geometry(
            auto_tune=self.auto_tune is not False,
            block_bytes=self.block_size if self.block_size is not None else from_tokens,
            min_block_bytes=1,
            max_blocks=self.max_prefix_blocks_to_match or 256,
            max_bytes=(self.max_prefix_tokens_to_match or 0) * BYTES_PER_TOKEN,
            capacity=self.lru_capacity_per_server or 31250,
        )


class PrefixCacheScorer(Scorer):
    """Prefers warm caches."""

    TYPE = "prefix-cache-scorer"
    PARAMETERS = PrefixCacheScorerParameters

    def __init__(self, name: str, parameters: PrefixCacheScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._weight = parameters.match_length_weight
        self._scale = parameters.match_length_scale_tokens
        if parameters.own_index:
            own = ApproxPrefixCacheProducer(name, ApproxPrefixCacheProducerParameters(), context, parameters.geometry())
            context.adopt(own)
            producer = name
        else:
            wanted = parameters.prefix_match_info_producer_name
            plugin = context.plugin(wanted) if wanted else context.of_type(ApproxPrefixCacheProducer.TYPE)
            producer = plugin.name
        self._key = f"{PREFIX_MATCH}/{producer}"

    @classmethod
    def needs(cls, parameters: PrefixCacheScorerParameters) -> tuple[str, ...]:
        """A producer, unless it has its own index or names one."""
        if parameters.own_index or parameters.prefix_match_info_producer_name:
            return ()
        return (ApproxPrefixCacheProducer.TYPE,)

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        match = match_of(request, self._key)
        return shares(match, endpoints) if self._weight == 0.0 else load.spread(self._rates(match), endpoints)

    def column(self, request: InferenceRequest, endpoints: Known) -> Column:
        """See the module."""
        match = match_of(request, self._key)
        return shares_column(match, endpoints) if self._weight == 0.0 else endpoints.spread(self._rates(match))

    def _rates(self, match: PrefixMatch | None) -> dict[Endpoint, float]:
        """Scores of those that hold anything."""
        if match is None or not match.hashes:
            return {}
        held = match.blocks if match.weights is None else match.weights
        return {endpoint: self._rate(match, blocks) for endpoint, blocks in held.items()}

    def _rate(self, match: PrefixMatch, blocks: float) -> float:
        share = blocks / match.total
        length = min(1.0, blocks * match.block_tokens / self._scale) ** 2
        return self._weight * length + (1.0 - self._weight) * share
