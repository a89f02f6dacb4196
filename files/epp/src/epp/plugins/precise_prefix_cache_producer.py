# SPDX-License-Identifier: GPL-3.0-or-later
"""precise-prefix-cache-producer: how much of a prompt each endpoint has in its prefix cache, as far as can be told.

Parameters:
    tokenProcessorConfig: blockSizeTokens (16, also blockSize), hashSeed, hashAlgorithm (taken, without effect).
    indexerConfig, kvEventsConfig, speculativeIndexing, speculativeTTL: taken, without effect.
Formula: that of approx-prefix-cache-producer; see ``LIMITS``.
Source: llm-d-router producer of the same type, which follows the events of the engines' caches, and wants every prompt
tokenized by a service of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epp.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer, ApproxPrefixCacheProducerParameters
from epp.scheduling.api import Context, param

ESTIMATED = "the events of the engines' caches are not read: prefixes are estimated by what was sent where"


@dataclass(frozen=True)
class TokenProcessorConfig:
    """How prompts are cut into blocks."""

    block_size_tokens: int = param(16, minimum=1, doc="tokens per block; at least 64 while tokens are estimated")
    block_size: int | None = param(None, minimum=1, doc="the same")
    hash_seed: str = param("", doc="no effect")
    hash_algorithm: str = param("", doc="no effect")


@dataclass(frozen=True)
class PrecisePrefixCacheProducerParameters:
    """Parameters of precise-prefix-cache-producer."""

    token_processor_config: TokenProcessorConfig = param(TokenProcessorConfig)
    indexer_config: dict[str, Any] = param(dict, doc="no effect")
    kv_events_config: dict[str, Any] = param(dict, doc="no effect")
    speculative_indexing: bool = param(False, doc="no effect: what was sent counts at once")
    speculative_ttl: float = param(2.0, minimum=0, duration=True, key="speculativeTTL", doc="no effect")

    def estimate(self) -> ApproxPrefixCacheProducerParameters:
        """What approx-prefix-cache-producer is told."""
        cut = self.token_processor_config
        return ApproxPrefixCacheProducerParameters(block_size_tokens=cut.block_size or cut.block_size_tokens)


class PrecisePrefixCacheProducer(ApproxPrefixCacheProducer):
    """Estimates where the reference knows."""

    TYPE = "precise-prefix-cache-producer"
    PARAMETERS = PrecisePrefixCacheProducerParameters
    LIMITS = ESTIMATED

    def __init__(self, name: str, parameters: PrecisePrefixCacheProducerParameters, context: Context) -> None:
        super().__init__(name, parameters.estimate(), context)

    @classmethod
    def warnings(cls, parameters: Any) -> tuple[str, ...]:
        """Nobody should take an estimate for knowledge."""
        return (cls.LIMITS,)
