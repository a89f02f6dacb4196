# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint has which blocks in its KV cache, as the engines themselves say.

A block is known here by a key of our own, computed from the tokens that the engine names in its event: each key
includes those before it. So requests can be looked up whatever the engine's hash function and seed are. The engine's
own hashes are only names, by which it later says what it has thrown away.

Keys: k(-1) = xxh3(model); k(i) = xxh3(token ids of block i as 4 bytes each, its extra keys; seed k(i-1)).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import gcd

import xxhash

from epp.datalayer.kvevents import GPU, AllBlocksCleared, BlockRemoved, BlockStored, Event
from epp.datalayer.slots import Slots
from epp.model import Endpoint

MAX_ENTRIES = 4_000_000
"""Pairs of block and endpoint over all endpoints: at some 300 bytes each, what a process can bear."""
WHOLE_PREFIX = frozenset({"", "full_attention", "mla_attention", "sink_full_attention"})
"""Kinds of attention whose blocks say that a whole prefix is there; a sliding window keeps only the end of it."""
NO_EXTRAS: Mapping[int, tuple[str, ...]] = {}


def first_key(model: str) -> int:
    """What comes before the first block of a model's, or an adapter's, prompts."""
    return xxhash.xxh3_64_intdigest(f"{model}\0tokens".encode())


def block_keys(
    before: int, tokens: bytes, block_tokens: int, extras: Mapping[int, tuple[str, ...]] = NO_EXTRAS
) -> list[int]:
    """Keys of the whole blocks of ``tokens`` (an ``array("I")`` as bytes); ``extras`` by the number of the block."""
    digest, size = xxhash.xxh3_64_intdigest, 4 * block_tokens
    keys = []
    for number in range(len(tokens) // size):
        block = tokens[number * size : (number + 1) * size]
        if number in extras:
            block += b"".join(f"\0{text}".encode() for text in extras[number])
        before = digest(block, before)
        keys.append(before)
    return keys


@dataclass(slots=True)
class _Block:
    """One of an engine's blocks, by its hash: our keys of it, and how often it is stored where."""

    keys: tuple[int, ...]
    gpu: int = 0
    elsewhere: int = 0


@dataclass(slots=True)
class _Cache:
    """What one endpoint holds, the oldest first."""

    bit: int
    blocks: dict[int, _Block] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    """Kind of attention by group."""
    gpu: int = 0
    """Places in GPU memory that its blocks take: those that are stored twice take two."""


@dataclass(slots=True)
class Counts:
    """What has happened to an index, for metrics."""

    admitted: int = 0
    evicted: int = 0
    skipped: int = 0
    """Blocks that cannot be placed, mostly because their parent was named before anybody listened."""


class BlockIndex:
    """Blocks by endpoint."""

    def __init__(self, block_tokens: int, limit: int = MAX_ENTRIES) -> None:
        """``limit`` bounds pairs of block and endpoint."""
        self.block_tokens = block_tokens
        """Tokens per block, as keys are made of them."""
        self.counts = Counts()
        self._limit = limit
        self._caches: dict[Endpoint, _Cache] = {}
        self._slots = Slots()
        self._gpu: dict[int, int] = {}
        """Key to the bits of the endpoints that have it in GPU memory."""
        self._elsewhere: dict[int, int] = {}
        """The same for any other medium."""
        self._expected: dict[int, int] = {}
        """The same for what endpoints are about to compute."""
        self._size = 0

    def __len__(self) -> int:
        """Blocks that endpoints have named, over all of them."""
        return self._size

    def knows(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint has ever said anything."""
        return endpoint in self._caches

    def take(self, endpoint: Endpoint, model: str, event: Event) -> None:
        """Follow an event; ``model`` is the base model's name. Raises ValueError for one that makes no sense."""
        cache = self._cache(endpoint)
        if isinstance(event, BlockStored):
            self._store(cache, model, event)
            if cache.gpu > endpoint.metrics.num_blocks > 0:
                self._bound(cache, endpoint.metrics.num_blocks)
        elif isinstance(event, BlockRemoved):
            self._remove(cache, event)
        elif isinstance(event, AllBlocksCleared):
            self.clear(endpoint)

    def expect(self, endpoint: Endpoint, keys: Sequence[int]) -> list[int]:
        """The endpoint is about to compute these blocks; returns those that are new, for :meth:`give_up`."""
        bit, gpu, expected = self._cache(endpoint).bit, self._gpu, self._expected
        fresh = [key for key in keys if not (gpu.get(key, 0) | expected.get(key, 0)) & bit]
        for key in fresh:
            expected[key] = expected.get(key, 0) | bit
        return fresh

    def give_up(self, endpoint: Endpoint, keys: Sequence[int]) -> None:
        """Expect these no longer: by now the engine has named them, or never will."""
        cache = self._caches.get(endpoint)
        for key in keys if cache is not None else ():
            assert cache is not None
            _clear(self._expected, key, cache.bit)

    def match(
        self, keys: Sequence[int], endpoints: Sequence[Endpoint], elsewhere: float
    ) -> tuple[dict[Endpoint, int], dict[Endpoint, float]]:
        """Consecutive blocks from the start that each endpoint holds, and the same with those that are not in GPU
        memory counted as ``elsewhere`` (0 to 1). Endpoints that hold none are absent."""
        slots = self._slots
        alive = slots.mask(endpoints)
        depths: dict[Endpoint, int] = {}
        gpu, others, expected, mixed = self._gpu, self._elsewhere, self._expected, False
        simple = not others and not expected
        depth = 0
        for key in keys:
            held = gpu.get(key, 0)
            if not simple:
                held |= expected.get(key, 0)
                more = others.get(key, 0) & alive & ~held
                if more:
                    mixed = True
                    held |= more
            still = alive & held
            if still != alive:
                slots.note(alive & ~still, depth, depths)
                alive = still
                if not alive:
                    break
            depth += 1
        slots.note(alive, depth, depths)
        depths = slots.among(depths, endpoints)
        weights: dict[Endpoint, float] = {endpoint: float(count) for endpoint, count in depths.items()}
        for endpoint, count in depths.items() if mixed else ():
            bit = self._caches[endpoint].bit
            slow = sum(1 for key in keys[:count] if not (gpu.get(key, 0) | expected.get(key, 0)) & bit)
            weights[endpoint] = count - slow * (1.0 - elsewhere)
        return depths, weights

    def clear(self, endpoint: Endpoint) -> None:
        """The endpoint's cache is empty."""
        cache = self._caches.get(endpoint)
        if cache is None:
            return
        for block in cache.blocks.values():
            for key in block.keys:
                _clear(self._gpu, key, cache.bit)
                _clear(self._elsewhere, key, cache.bit)
        self._size -= len(cache.blocks)
        self.counts.evicted += len(cache.blocks)
        cache.blocks, cache.gpu = {}, 0

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and what was expected of it as well."""
        self.clear(endpoint)
        cache = self._caches.pop(endpoint, None)
        if cache is None:
            return
        for key in [key for key, bits in self._expected.items() if bits & cache.bit]:
            _clear(self._expected, key, cache.bit)
        self._slots.drop(endpoint)

    def _cache(self, endpoint: Endpoint) -> _Cache:
        cache = self._caches.get(endpoint)
        if cache is None:
            cache = self._caches[endpoint] = _Cache(1 << self._slots.number(endpoint))
        return cache

    def _store(self, cache: _Cache, model: str, event: BlockStored) -> None:
        if event.group is not None:
            if event.kind:
                cache.kinds[event.group] = event.kind
            if cache.kinds.get(event.group, "?") not in WHOLE_PREFIX:
                return
        if event.block_size <= 0:
            raise ValueError(f"blocks of {event.block_size} tokens")
        if event.tokens:
            self._store_tokens(cache, model, event)
            return
        for number in event.hashes:  # moved, or copied, to another medium
            block = cache.blocks.get(number)
            if block is not None:
                self._hold(cache, block, event.medium)

    def _store_tokens(self, cache: _Cache, model: str, event: BlockStored) -> None:
        if len(event.tokens) != event.block_size * len(event.hashes):
            raise ValueError(f"{len(event.tokens)} tokens in {len(event.hashes)} blocks of {event.block_size}")
        if event.block_size % self.block_tokens:
            self._resize(gcd(event.block_size, self.block_tokens))
        if event.parent is None:
            before = first_key(event.lora or model)
        elif event.parent in cache.blocks:
            before = cache.blocks[event.parent].keys[-1]
        else:
            self.counts.skipped += len(event.hashes)
            return
        try:
            tokens = array("I", event.tokens).tobytes()
        except OverflowError as error:
            raise ValueError(f"a token id is no 32-bit number: {error}") from None
        ratio = event.block_size // self.block_tokens
        extras = {}
        for number, texts in enumerate(event.extras):
            if texts:
                extras.update(dict.fromkeys(range(number * ratio, (number + 1) * ratio), texts))
        keys = block_keys(before, tokens, self.block_tokens, extras)
        for index, number in enumerate(event.hashes):
            block = cache.blocks.get(number)
            if block is None:
                block = cache.blocks[number] = _Block(tuple(keys[index * ratio : (index + 1) * ratio]))
                self._size += 1
                self.counts.admitted += 1
            self._hold(cache, block, event.medium)
        if self._size > self._limit:
            self._trim(cache)

    def _hold(self, cache: _Cache, block: _Block, medium: str) -> None:
        if medium == GPU:
            block.gpu += 1
            cache.gpu += 1
            holders = self._gpu
        else:
            block.elsewhere += 1
            holders = self._elsewhere
        for key in block.keys:
            holders[key] = holders.get(key, 0) | cache.bit

    def _remove(self, cache: _Cache, event: BlockRemoved) -> None:
        if event.group is not None and cache.kinds.get(event.group, "?") not in WHOLE_PREFIX:
            return
        for number in event.hashes:
            block = cache.blocks.get(number)
            if block is None:
                continue
            # An engine may hold the same block twice, and says for each that it is gone.
            if event.medium == GPU:
                self._take_away(cache, block, min(1, block.gpu))
            else:
                block.elsewhere = max(0, block.elsewhere - 1)
            self._forget(cache, number, block)

    def _take_away(self, cache: _Cache, block: _Block, places: int) -> None:
        block.gpu -= places
        cache.gpu -= places

    def _bound(self, cache: _Cache, places: int) -> None:
        """Count no more than the engine has room for.

        vLLM names blocks that it only uses again as if it had stored them once more, if a request asks for it
        (``kv_cache_report_mode``), and says only once that they are gone. Which of them these were nobody can tell, so
        all count once; and if that is still too much, the oldest are forgotten, some more than need be.
        """
        for block in cache.blocks.values():
            self._take_away(cache, block, max(0, block.gpu - 1))
        if cache.gpu <= places:
            return
        enough = places - places // 16
        for number, block in list(cache.blocks.items()):
            if cache.gpu <= enough:
                return
            self._take_away(cache, block, block.gpu)
            self._forget(cache, number, block)

    def _forget(self, cache: _Cache, number: int, block: _Block) -> None:
        """Forget a block wherever it is not stored any more."""
        for key in block.keys:
            if not block.gpu:
                _clear(self._gpu, key, cache.bit)
            if not block.elsewhere:
                _clear(self._elsewhere, key, cache.bit)
        if not block.gpu and not block.elsewhere:
            del cache.blocks[number]
            self._size -= 1
            self.counts.evicted += 1

    def _trim(self, cache: _Cache) -> None:
        """Forget the oldest blocks of an endpoint, a part at a time: an engine that says so much loses its own."""
        for number in list(islice(cache.blocks, max(1, len(cache.blocks) // 16))):
            block = cache.blocks[number]
            self._take_away(cache, block, block.gpu)
            block.elsewhere = 0
            self._forget(cache, number, block)

    def _resize(self, block_tokens: int) -> None:
        """Begin again with smaller blocks: an engine's cannot be divided into those that were expected."""
        self.block_tokens = block_tokens
        for endpoint in self._caches:
            self.clear(endpoint)
        self._expected.clear()


def _clear(holders: dict[int, int], key: int, bit: int) -> None:
    bits = holders.get(key)
    if bits is None:
        return
    if bits & ~bit:
        holders[key] = bits & ~bit
    else:
        del holders[key]
