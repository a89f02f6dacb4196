# SPDX-License-Identifier: GPL-3.0-or-later
"""burst-prefix-cache-producer: keeps requests together that share a prompt and come at the same time.

Caches are cold when a burst arrives, so nothing but the burst itself says that its requests belong together.

Parameters:
    windowDurationMs (100): how close in time; counted from the last one.
    maxPerReplica (-1): requests of one prompt per endpoint; -1 is any number.
    blockSizeTokens (64): tokens per block.
    minColocateBlocks (0): leading blocks that different prompts must share to be kept together; 0 is never.
    maxPrefixTokensToMatch (0): tokens of a prompt that are looked at; 0 is 2048 blocks.
    maxBatchSize (1000): prompts that are remembered at once.
    balanceBy (requests): taken and not needed, since other scorers balance.
Formula: the first request of a prompt goes wherever the others send it; those that follow within the window match fully
there, and not at all elsewhere, until maxPerReplica is reached; then the next one is a first again.
Source: llm-d-router producer of the same type, which holds requests back until the window is over, and places them
together. Here nobody waits.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from epp.datalayer.prefix import block_hashes
from epp.datalayer.prompts import BYTES_PER_TOKEN, PrefixMatch
from epp.model import Decision, Endpoint, InferenceRequest
from epp.scheduling.api import PREFIX_MATCH, Context, Producer, RequestHook, param

MAX_BLOCKS = 2048


@dataclass(frozen=True)
class BurstPrefixCacheProducerParameters:
    """Parameters of burst-prefix-cache-producer."""

    window_duration_ms: int = param(100, minimum=1, doc="milliseconds from one request to the next")
    max_per_replica: int = param(-1, minimum=-1, doc="requests of one prompt per endpoint; -1 is any number")
    block_size_tokens: int = param(64, minimum=1, doc="tokens per block")
    min_colocate_blocks: int = param(0, minimum=0, doc="leading blocks that keep different prompts together; 0: never")
    max_prefix_tokens_to_match: int = param(0, minimum=0, doc="tokens of a prompt that are looked at; 0: 2048 blocks")
    max_batch_size: int = param(1000, minimum=-1, doc="prompts that are remembered at once; -1 is any number")
    balance_by: str = param("requests", doc="not needed: other scorers balance")


@dataclass(slots=True)
class _Group:
    """Requests that belong together, and where the current ones go."""

    endpoint: Endpoint
    count: int
    last: float


class BurstPrefixCacheProducer(Producer, RequestHook):
    """Keeps bursts together."""

    TYPE = "burst-prefix-cache-producer"
    PARAMETERS = BurstPrefixCacheProducerParameters
    LIMITS = "requests are placed as they come, not held back and placed together"

    def __init__(self, name: str, parameters: BurstPrefixCacheProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._key = f"{PREFIX_MATCH}/{name}"
        tokens = parameters.max_prefix_tokens_to_match
        self._blocks = max(1, tokens // parameters.block_size_tokens) if tokens else MAX_BLOCKS
        self._limit = parameters.max_batch_size if parameters.max_batch_size > 0 else 1_000_000
        self._groups: OrderedDict[int, _Group] = OrderedDict()

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Find the burst that the request belongs to."""
        rules = self._parameters
        model = request.target_model or request.model
        size = rules.block_size_tokens * BYTES_PER_TOKEN
        hashes = block_hashes(model, request.cache_salt, request.prompt, size, self._blocks)
        match = PrefixMatch(hashes, rules.block_size_tokens)
        request.attributes[self._key] = match
        now = time.monotonic()
        self._expire(now)
        for number in self._names(hashes):
            group = self._groups.get(number)
            full = group is not None and 0 <= rules.max_per_replica <= group.count
            if group is not None and not full and group.endpoint in endpoints:
                match.blocks = {group.endpoint: len(hashes)}
                return

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Those who follow shall go there, too."""
        match = request.attributes.get(self._key)
        if not isinstance(match, PrefixMatch):
            return
        endpoint, now = decision.endpoints[0], time.monotonic()
        for number in self._names(match.hashes):
            group = self._groups.get(number)
            if group is None or group.endpoint is not endpoint:
                self._groups[number] = _Group(endpoint, 1, now)
            else:
                group.count += 1
                group.last = now
            self._groups.move_to_end(number)
        while len(self._groups) > self._limit:
            self._groups.popitem(last=False)
        match.hashes = ()  # an answer may take minutes, and nobody needs them any more

    def _names(self, hashes: object) -> tuple[int, ...]:
        """The hashes under which a prompt is known: of all of it, and of its leading blocks."""
        if not isinstance(hashes, list) or not hashes:
            return ()
        leading = self._parameters.min_colocate_blocks
        return (hashes[-1], hashes[leading - 1]) if 0 < leading < len(hashes) else (hashes[-1],)

    def _expire(self, now: float) -> None:
        oldest = now - self._parameters.window_duration_ms / 1000.0
        while self._groups:
            number, group = next(iter(self._groups.items()))
            if group.last >= oldest:
                return
            del self._groups[number]
