# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint is believed to hold which prompt prefixes in its KV cache.

Believed, because nobody asked the engine: a prompt that was sent to an endpoint is remembered as cached there until
newer ones push it out, as they would in the engine. A prompt is cut into blocks, and each block's hash includes those
before it, so one number stands for a whole prefix. In a *growing* chain the blocks double in size as they lie deeper
in the prompt, so that a long prompt has hundreds of them and not thousands, and is still measured to a thirtieth; the
two highest bits of a hash say how many plain blocks it stands for.

One dictionary maps a hash to a bit set of endpoints. A look-up walks the prompt's hashes and narrows one integer, so it
costs a dictionary access per block, whatever the number of endpoints.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import xxhash

from epp.datalayer.slots import Slots
from epp.model import Endpoint

RUNG = 64
"""Hashes of a growing chain between two doublings."""
SPARE = 64
"""The part of an endpoint's blocks, a sixty-fourth, that is forgotten at once when there are too many."""
TOP = 3
"""How often blocks double: the largest are eight plain ones."""
PERIODS = 16
"""An endpoint's blocks are of as many ages: what was used in the same sixteenth of them counts as equally old."""
PERIOD_SECONDS = 1.25
"""No period is longer, so that an era ends after ten seconds, and peers which missed something hear of it again."""
_ERA = 3
"""Periods whose numbers differ in no more than so many lowest bits are one era: peers hear of what is used again and
again once in each, twice in the life of a block. To learn it costs them as much as a new one."""
_LEVEL_AT = 62
_LARGE = 1 << _LEVEL_AT
"""Hashes from here on stand for more than one plain block."""


@lru_cache(maxsize=64)
def _blocks(block_bytes: int) -> struct.Struct:
    """Cuts bytes into blocks without a step of Python's for each."""
    return struct.Struct(f"{block_bytes}s")


@lru_cache(maxsize=1024)
def _root(model: str, salt: str, block_bytes: int) -> int:
    """What stands before the first block."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{salt}\0{block_bytes}".encode())


def block_hashes(
    model: str, salt: str, prompt: bytes, block_bytes: int, max_blocks: int, growing: bool = False
) -> list[int]:
    """Chained hashes of a prompt's blocks, of at most ``max_blocks`` plain ones; a shorter last block counts.

    h(-1) = xxh3(model, salt, block size); h(i) = xxh3(block i, seed h(i-1)), shifted to the right by two bits, which a
    ``growing`` chain uses for the block's level.
    """
    digest = xxhash.xxh3_64_intdigest
    previous = _root(model, salt, block_bytes)
    end = min(len(prompt), block_bytes * max_blocks)
    view = memoryview(prompt)
    hashes: list[int] = []
    at = level = mark = 0
    while True:
        size = block_bytes << level
        stop = end - (end - at) % size
        if growing and level < TOP:
            stop = min(stop, at + RUNG * size)
        blocks = _blocks(size).iter_unpack(view[at:stop])
        hashes += [(previous := digest(block, previous)) >> 2 | mark for (block,) in blocks]
        at = stop
        if end - at < size:
            break
        level += 1
        mark = level << _LEVEL_AT
    if at < end:
        hashes.append(digest(view[at:end], previous) >> 2 | mark)
    return hashes


def plain_blocks(depth: int) -> int:
    """How many plain blocks the first ``depth`` hashes of a growing chain stand for."""
    level = blocks = 0
    while depth > RUNG and level < TOP:
        blocks += RUNG << level
        depth -= RUNG
        level += 1
    return blocks + (depth << level)


def is_whole(hashes: Sequence[int], length: int, block_bytes: int) -> bool:
    """Whether the last block of a growing chain over so many bytes is as long as those of its size are."""
    return length == plain_blocks(len(hashes)) * block_bytes


def _all_plain(hashes: Sequence[int]) -> int:
    """How many plain blocks these hashes stand for."""
    if max(hashes) < _LARGE:
        return len(hashes)
    return sum([1 << (number >> _LEVEL_AT) for number in hashes])


class _Cache:
    """What one endpoint holds."""

    def __init__(self) -> None:
        self.blocks: dict[Any, Any] = {}
        """The period in which each was used last; the oldest first: a dictionary keeps the order of insertion."""
        self.filled = 0
        """Plain blocks that these are."""
        self.period = 0
        self.fresh = 0
        """Plain blocks that have come in this period."""
        self.ends = 0.0
        """When the period ends at the latest, monotonic seconds."""


class PrefixIndex:
    """Prefixes by endpoint, each with a bound: what was used least recently goes first, to a sixteenth of the bound."""

    def __init__(self) -> None:
        # Any where a number is only handed on: compiled code would make a new one each time.
        self._holders: dict[Any, Any] = {}
        self._slots = Slots()
        self._caches: list[_Cache] = []
        self._size = 0

    def __len__(self) -> int:
        """Entries: pairs of block and endpoint."""
        return self._size

    def match(self, hashes: Sequence[int], endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
        """Consecutive blocks from the start that each of ``endpoints`` holds; those that hold none are absent."""
        slots = self._slots
        alive = slots.mask(endpoints)
        matched: dict[Endpoint, int] = {}
        depth = 0
        for bits in map(self._holders.get, hashes):
            if bits is None:
                break
            still = alive & bits
            if still != alive:
                slots.note(alive & ~still, depth, matched)
                alive = still
                if not alive:
                    break
            depth += 1
        slots.note(alive, depth, matched)
        return slots.among(matched, endpoints)

    def add(self, endpoint: Endpoint, hashes: Sequence[int], capacity: int) -> list[int]:
        """The endpoint has been sent a prompt with these hashes; it remembers ``capacity`` plain blocks at most.

        The prompt's end becomes older than its beginning: without its beginning, an end could never match. No hash may
        be there twice. Returns those that peers should hear of: new there, or not used in this era before.
        """
        slot = self._slots.number(endpoint)
        if slot == len(self._caches):
            self._caches.append(_Cache())
        cache, holders = self._caches[slot], self._holders
        bit: Any = 1 << slot
        now = time.monotonic()
        if cache.fresh >= capacity // PERIODS or now >= cache.ends:
            cache.period += 1
            cache.fresh = 0
            cache.ends = now + PERIOD_SECONDS
        blocks = cache.blocks
        mark: Any = cache.period
        era: Any = mark >> _ERA
        used: list[Any] = []
        fresh: list[Any] = []
        news: list[Any] = []
        numbers: list[Any] = list(hashes)
        for number in numbers:
            age: Any = blocks.get(number)
            if age is None:
                fresh.append(number)
                news.append(number)
            elif age == mark:
                continue
            else:
                del blocks[number]
                if age >> _ERA != era:
                    news.append(number)
            used.append(number)
        used.reverse()
        for number in used:
            blocks[number] = mark
        if fresh:
            for number in fresh:
                known: Any = holders.setdefault(number, bit)
                if known is not bit:
                    holders[number] = known | bit
            plain = _all_plain(fresh)
            self._size += len(fresh)
            cache.filled += plain
            cache.fresh += plain
            if cache.filled > capacity:
                # Some more than need be: to find the oldest, a dictionary is gone through past all that was there.
                self._shrink(slot, capacity - capacity // SPARE)
        return news

    def _shrink(self, slot: int, capacity: int) -> None:
        """Forget the oldest blocks of an endpoint."""
        cache, holders = self._caches[slot], self._holders
        bit: Any = 1 << slot
        large: Any = _LARGE
        blocks = cache.blocks
        filled = cache.filled
        gone: list[Any] = []
        for number in blocks:
            if filled <= capacity:
                break
            filled -= 1 if number < large else 1 << (number >> _LEVEL_AT)
            gone.append(number)
        for number in gone:
            del blocks[number]
            known: Any = holders[number]
            if known == bit:
                del holders[number]
            else:
                holders[number] = known ^ bit
        cache.filled = filled
        self._size -= len(gone)

    def held(self) -> Iterator[tuple[Endpoint, list[int]]]:
        """Every endpoint and the blocks that it holds, the oldest first."""
        for endpoint, slot in self._slots.items():
            yield endpoint, list(self._caches[slot].blocks)

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and its cache with it."""
        slot = self._slots.drop(endpoint)
        if slot is None:
            return
        self._shrink(slot, 0)
        self._caches[slot] = _Cache()  # the old one is as large as it ever was
