# SPDX-License-Identifier: GPL-3.0-or-later
"""What was sent where: which endpoints are believed to hold the beginning of a prompt, request by request.

All that approx-prefix-cache-producer does for each request; compiled where it can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from epp.datalayer.journal import Journal
from epp.datalayer.prefix import RUNG, PrefixIndex, block_hashes, is_whole, plain_blocks
from epp.model import Endpoint, InferenceRequest

BYTES_PER_TOKEN: Final = 4
"""Estimated bytes of prompt per token, as the reference estimates while it has no tokenizer."""
MAX_ENTRIES: Final = 4_000_000
"""Entries over all endpoints of one index: at some 230 bytes each, what a process can bear."""


class Pool(Protocol):
    """What is asked of the pool; see :class:`epp.datalayer.store.Datastore`."""

    @property
    def journal(self) -> Journal:
        """What peers are told."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints that may serve now."""


@dataclass(init=False, slots=True)
class PrefixMatch:
    """How much of one request's prompt each endpoint is believed to hold in its prefix cache."""

    hashes: Sequence[int]
    """Chained hashes of the prompt's blocks, first block first; a hash may stand for several blocks."""
    block_tokens: int
    """Tokens per block."""
    blocks: Mapping[Endpoint, int]
    """Consecutive blocks held from the start of the prompt; an endpoint that holds none is absent."""
    weights: Mapping[Endpoint, float] | None
    """The same with blocks counted for less that are not in GPU memory; None where nobody knows."""
    total: int
    """Blocks of the prompt; as many as hashes, unless it is given."""

    def __init__(
        self,
        hashes: Sequence[int],
        block_tokens: int,
        blocks: Mapping[Endpoint, int] | None = None,
        weights: Mapping[Endpoint, float] | None = None,
        total: int = 0,
    ) -> None:
        self.hashes = hashes
        self.block_tokens = block_tokens
        self.blocks = {} if blocks is None else blocks
        self.weights = weights
        self.total = total or len(hashes)


def cached_tokens(request: InferenceRequest, endpoint: Endpoint) -> int:
    """Tokens of the prompt that the endpoint is believed to hold in its prefix cache; the most hopeful producer counts.

    0 means that no producer believes it to hold anything.
    """
    cached = 0
    for value in request.attributes.values():
        if isinstance(value, PrefixMatch):
            held: Any = value.blocks  # of whatever numbers a plugin has put there
            blocks = held.get(endpoint)
            if blocks:
                cached = max(cached, int(blocks * value.block_tokens))
    return cached


@dataclass(frozen=True)
class Geometry:
    """How prompts are cut into blocks, and how many of them are remembered, in bytes."""

    auto_tune: bool
    """Block size and capacity are what the model servers report, where they do."""
    block_bytes: int
    min_block_bytes: int
    max_blocks: int
    """Blocks of a prompt that are looked at."""
    max_bytes: int
    """Bytes of a prompt that are looked at; 0 is all."""
    capacity: int
    """Blocks remembered per endpoint."""


class Prompts:
    """Remembers the prompts that were sent to each endpoint of a pool."""

    def __init__(self, name: str, geometry: Geometry, pool: Pool) -> None:
        """``name`` is that by which peers know it."""
        self._name, self._geometry, self._pool = name, geometry, pool
        self._journal = pool.journal
        self._index = PrefixIndex()

    def __len__(self) -> int:
        """Entries: pairs of block and endpoint."""
        return len(self._index)

    def match(self, request: InferenceRequest, endpoints: list[Endpoint]) -> PrefixMatch:
        """Hash the request's prompt, and look it up."""
        block_bytes = self._block_bytes(endpoints)
        prompt = self._looked_at(request)
        most = self._geometry.max_blocks
        model = request.target_model or request.model
        hashes = block_hashes(model, request.cache_salt, prompt, block_bytes, most, growing=True)
        blocks = self._index.match(hashes, endpoints)
        total = len(hashes)
        if total > RUNG:
            total = min(-(-len(prompt) // block_bytes), most)
            blocks = {endpoint: min(plain_blocks(depth), total) for endpoint, depth in blocks.items()}
        return PrefixMatch(hashes, block_bytes // BYTES_PER_TOKEN, blocks, None, total)

    def sent(self, request: InferenceRequest, match: PrefixMatch, endpoints: Sequence[Endpoint]) -> tuple[int, int]:
        """These endpoints will hold the prompt. Returns the bytes of it that the first one is believed to hold now, and
        how many are looked at. The match has no hashes any more."""
        block_bytes = match.block_tokens * BYTES_PER_TOKEN
        total = len(self._looked_at(request))
        hit = min(total, match.blocks.get(endpoints[0], 0) * block_bytes)
        for endpoint in endpoints:
            news = self._index.add(endpoint, match.hashes, self._capacity(endpoint, block_bytes))
            if news and self._journal.active:
                news = self._worth_telling(news, match, total)
                if news:
                    self._journal.prefix(self._name, endpoint, news)
        match.hashes = ()  # an answer may take minutes, and nobody needs them any more
        return hit, total

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """Peers have sent prompts with these block hashes to the endpoint."""
        self._index.add(endpoint, hashes, self._capacity(endpoint, self._block_bytes([endpoint])))

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        """All that is remembered: the block hashes of each endpoint, the oldest first."""
        return self._index.held()

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and its cache with it."""
        self._index.drop(endpoint)

    def _worth_telling(self, news: list[int], match: PrefixMatch, length: int) -> list[int]:
        """News without a last block that is shorter than others: only this very prompt would find it again."""
        hashes = match.hashes
        if len(hashes) == 1 or news[-1] != hashes[-1]:
            return news
        block_bytes = match.block_tokens * BYTES_PER_TOKEN
        looked_at = min(length, self._geometry.max_blocks * block_bytes)
        return news if is_whole(hashes, looked_at, block_bytes) else news[:-1]

    def _looked_at(self, request: InferenceRequest) -> bytes:
        limit, prompt = self._geometry.max_bytes, request.prompt
        return prompt[:limit] if 0 < limit < len(prompt) else prompt

    def _block_bytes(self, endpoints: list[Endpoint]) -> int:
        """Bytes per block: all endpoints of a pool must agree, so the first one that reports a size decides."""
        geometry, tuned = self._geometry, 0
        if geometry.auto_tune:
            for endpoint in endpoints:
                tuned = endpoint.metrics.block_size
                if tuned:
                    break
        return max(tuned * BYTES_PER_TOKEN or geometry.block_bytes, geometry.min_block_bytes)

    def _capacity(self, endpoint: Endpoint, block_bytes: int) -> int:
        """Blocks that the endpoint's cache holds, as far as is known, within what this process can remember."""
        metrics, capacity = endpoint.metrics, self._geometry.capacity
        if self._geometry.auto_tune and metrics.block_size and metrics.num_blocks:
            capacity = max(1, metrics.block_size * BYTES_PER_TOKEN * metrics.num_blocks // block_bytes)
        return min(capacity, MAX_ENTRIES // max(1, len(self._pool.endpoints())))
