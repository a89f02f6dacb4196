# SPDX-License-Identifier: GPL-3.0-or-later
"""prefix-based-pd-decider: prefill elsewhere when much of the prompt is not in the decoding endpoint's prefix cache.

Parameters:
    nonCachedTokens (0): from so many uncached tokens on; 0 means never.
    promptTokens (0): only prompts of so many tokens; 0 means all.
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer): who says what is cached.
Formula: tokens >= promptTokens and tokens - cached >= nonCachedTokens.
Source: llm-d-router decider of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.prefixes import match_of, needs_producer, producer_key
from epp.scheduling.api import Context, Decider, Producer, param


@dataclass(frozen=True)
class PrefixBasedPDDeciderParameters:
    """Parameters of prefix-based-pd-decider."""

    non_cached_tokens: int = param(0, minimum=0, doc="uncached tokens from which on to split; 0 is never")
    prompt_tokens: int = param(0, minimum=0, doc="tokens of a prompt that is looked at; 0 is all")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what is cached")


class PrefixBasedPDDecider(Decider):
    """Splits what is long and new."""

    TYPE = "prefix-based-pd-decider"
    PARAMETERS = PrefixBasedPDDeciderParameters

    def __init__(self, name: str, parameters: PrefixBasedPDDeciderParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._uncached = parameters.non_cached_tokens
        self._prompt = parameters.prompt_tokens
        self._key = producer_key(context, parameters.prefix_match_info_producer_name)

    @classmethod
    def needs(cls, parameters: PrefixBasedPDDeciderParameters) -> tuple[str, ...]:
        """A producer."""
        return needs_producer(parameters.prefix_match_info_producer_name)

    def disaggregate(self, request: InferenceRequest, endpoint: Endpoint) -> bool:
        """See the module."""
        tokens = request.prompt_tokens
        if self._uncached == 0 or tokens < max(self._prompt, self._uncached):
            return False
        match = match_of(request, self._key)
        if match is None:
            return False
        return tokens - match.blocks.get(endpoint, 0) * match.block_tokens >= self._uncached
