# SPDX-License-Identifier: GPL-3.0-or-later
"""approx-prefix-cache-producer: estimates how much of a prompt each endpoint has in its prefix cache.

Parameters:
    autoTune (true): take block size and capacity from what the model servers report, where they do.
    blockSizeTokens (16): tokens per block; at least 64 while tokens are estimated at 4 bytes each.
    maxPrefixBlocksToMatch (2048), maxPrefixTokensToMatch (131072): how much of a prompt is looked at.
    lruCapacityPerServer (31250): blocks remembered per endpoint.
Formula: a prompt is cut into blocks, each block's hash includes those before it; an endpoint's match is the number of
consecutive blocks, from the start, that went to it before and that newer ones have not pushed out. The first 64 blocks
of a prompt are looked at one by one, the next 128 two at a time, the next 256 four, all others eight at a time.
Source: GAIE v1.5 and llm-d-router producer of the same type. Three things differ: blocks that lie deep
in a prompt are joined as said (the reference looks at each), the tuned capacity counts tokens (so
larger blocks make fewer entries), and a prompt's end is forgotten before its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from epp.datalayer.prefix import RUNG, PrefixIndex, block_hashes, is_whole, plain_blocks
from epp.model import Decision, Endpoint, InferenceRequest
from epp.scheduling.api import BYTES_PER_TOKEN, PREFIX_MATCH, Context, PrefixMatch, Producer, RequestHook, param

MIN_BLOCK_TOKENS = 64
PREFILL_PROFILE = "prefill"
MAX_ENTRIES = 4_000_000
"""Entries over all endpoints of one index: at some 230 bytes each, what a process can bear."""


@dataclass(frozen=True)
class ApproxPrefixCacheProducerParameters:
    """Parameters of approx-prefix-cache-producer."""

    auto_tune: bool = param(True, doc="block size and capacity from the model servers' metrics")
    block_size_tokens: int = param(16, minimum=1, doc="tokens per block")
    max_prefix_blocks_to_match: int = param(2048, minimum=1, doc="blocks of a prompt that are looked at")
    max_prefix_tokens_to_match: int = param(131072, minimum=0, doc="tokens of a prompt that are looked at; 0 is all")
    lru_capacity_per_server: int = param(31250, minimum=1, doc="blocks remembered per endpoint")


@dataclass(frozen=True)
class Geometry:
    """The parameters in bytes, as the index needs them."""

    auto_tune: bool
    block_bytes: int
    min_block_bytes: int
    max_blocks: int
    max_bytes: int
    capacity: int


class ApproxPrefixCacheProducer(Producer, RequestHook):
    """Remembers what was sent where."""

    TYPE = "approx-prefix-cache-producer"
    PARAMETERS: ClassVar[type[Any]] = ApproxPrefixCacheProducerParameters

    def __init__(self, name: str, parameters: ApproxPrefixCacheProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._geometry = Geometry(
            auto_tune=parameters.auto_tune,
            block_bytes=parameters.block_size_tokens * BYTES_PER_TOKEN,
            min_block_bytes=MIN_BLOCK_TOKENS * BYTES_PER_TOKEN,
            max_blocks=parameters.max_prefix_blocks_to_match,
            max_bytes=parameters.max_prefix_tokens_to_match * BYTES_PER_TOKEN,
            capacity=parameters.lru_capacity_per_server,
        )
        self._context = context
        self._index = PrefixIndex()
        self._key = f"{PREFIX_MATCH}/{name}"
        context.datastore.on_removed(self._drop)
        context.datastore.journal.teach(name, self)

    @classmethod
    def with_geometry(cls, name: str, geometry: Geometry, context: Context) -> ApproxPrefixCacheProducer:
        """One for a scorer that brings its own parameters (v1.3)."""
        producer = cls(name, ApproxPrefixCacheProducerParameters(), context)
        producer._geometry = geometry
        return producer

    def match(self, request: InferenceRequest) -> PrefixMatch | None:
        """What :meth:`produce` found for a request."""
        found = request.attributes.get(self._key)
        return found if isinstance(found, PrefixMatch) else None

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Hash the prompt, and look it up."""
        block_bytes = self._block_bytes(endpoints)
        model = request.target_model or request.model
        prompt = self._looked_at(request)
        most = self._geometry.max_blocks
        hashes = block_hashes(model, request.cache_salt, prompt, block_bytes, most, growing=True)
        blocks = self._index.match(hashes, endpoints)
        total = len(hashes)
        if total > RUNG:
            total = min(-(-len(prompt) // block_bytes), most)
            blocks = {endpoint: min(plain_blocks(depth), total) for endpoint, depth in blocks.items()}
        request.attributes[self._key] = PrefixMatch(hashes, block_bytes // BYTES_PER_TOKEN, blocks, total=total)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """The chosen endpoints will hold this prompt."""
        match = self.match(request)
        if match is None or not match.hashes:
            return
        chosen = decision.endpoints[0]
        block_bytes = match.block_tokens * BYTES_PER_TOKEN
        total = len(self._looked_at(request))
        hit = min(total, match.blocks.get(chosen, 0) * block_bytes)
        journal = self._context.datastore.journal
        for endpoint in (chosen, *decision.profiles.get(PREFILL_PROFILE, ())[:1]):
            news = self._index.add(endpoint, match.hashes, self._capacity(endpoint, block_bytes))
            if news and journal.active and (news := self._worth_telling(news, match, total)):
                journal.prefix(self.name, endpoint, news)
        match.hashes = ()  # an answer may take minutes, and nobody needs them any more
        self._context.recorder.prefix_match(self.name, hit, total)
        self._context.recorder.prefix_index_size(self.name, len(self._index))

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """Peers have sent prompts with these block hashes to the endpoint."""
        self._index.add(endpoint, hashes, self._capacity(endpoint, self._block_bytes((endpoint,))))

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        """All that is remembered: the block hashes of each endpoint, the oldest first."""
        return self._index.held()

    def _worth_telling(self, news: list[int], match: PrefixMatch, length: int) -> list[int]:
        """News without a last block that is shorter than others: only this very prompt would find it again."""
        hashes = match.hashes
        if len(hashes) == 1 or news[-1] != hashes[-1]:
            return news
        block_bytes = match.block_tokens * BYTES_PER_TOKEN
        looked_at = min(length, self._geometry.max_blocks * block_bytes)
        return news if is_whole(hashes, looked_at, block_bytes) else news[:-1]

    def _drop(self, endpoint: Endpoint) -> None:
        self._index.drop(endpoint)
        self._context.recorder.prefix_index_size(self.name, len(self._index))

    def _looked_at(self, request: InferenceRequest) -> bytes:
        limit = self._geometry.max_bytes
        return request.prompt[:limit] if 0 < limit < len(request.prompt) else request.prompt

    def _block_bytes(self, endpoints: Sequence[Endpoint]) -> int:
        """Bytes per block: all endpoints of a pool must agree, so the first one that reports a size decides."""
        geometry, tuned = self._geometry, 0
        if geometry.auto_tune and endpoints:
            tuned = endpoints[0].metrics.block_size
            if not tuned:
                tuned = next((each.metrics.block_size for each in endpoints if each.metrics.block_size), 0)
        return max(tuned * BYTES_PER_TOKEN or geometry.block_bytes, geometry.min_block_bytes)

    def _capacity(self, endpoint: Endpoint, block_bytes: int) -> int:
        """Blocks that the endpoint's cache holds, as far as is known, within what this process can remember."""
        metrics, capacity = endpoint.metrics, self._geometry.capacity
        if self._geometry.auto_tune and metrics.block_size and metrics.num_blocks:
            capacity = max(1, metrics.block_size * BYTES_PER_TOKEN * metrics.num_blocks // block_bytes)
        return min(capacity, MAX_ENTRIES // max(1, len(self._context.datastore.endpoints())))
