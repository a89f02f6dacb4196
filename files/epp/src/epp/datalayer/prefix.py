# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint is believed to hold which prompt prefixes in its KV cache.

Believed, because nobody asked the engine: a prompt that was sent to an endpoint is remembered as cached there until
newer ones push it out, as they would in the engine. A prompt is cut into blocks, and each block's hash includes those
before it, so one number stands for a whole prefix.

One dictionary maps a hash to a bit set of endpoints. A look-up walks the prompt's hashes and narrows one integer, so it
costs a dictionary access per block, whatever the number of endpoints.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import xxhash

from epp.model import Endpoint


@lru_cache(maxsize=64)
def _blocks(block_bytes: int) -> struct.Struct:
    """Cuts bytes into blocks without a step of Python's for each."""
    return struct.Struct(f"{block_bytes}s")


def block_hashes(model: str, salt: str, prompt: bytes, block_bytes: int, max_blocks: int) -> list[int]:
    """Chained hashes of a prompt's blocks, at most ``max_blocks``; a shorter last block counts.

    h(-1) = xxh3(model, salt, block size); h(i) = xxh3(block i, seed h(i-1)).
    """
    digest = xxhash.xxh3_64_intdigest
    previous = digest(f"{model}\0{salt}\0{block_bytes}".encode())
    end = min(len(prompt), block_bytes * max_blocks)
    whole = end - end % block_bytes
    blocks = _blocks(block_bytes).iter_unpack(memoryview(prompt)[:whole])
    hashes = [previous := digest(block, previous) for (block,) in blocks]
    if whole < end:
        hashes.append(digest(prompt[whole:end], previous))
    return hashes


class PrefixIndex:
    """Prefixes by endpoint, each endpoint with a least-recently-used bound."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._slots: dict[Endpoint, int] = {}
        self._owners: list[Endpoint | None] = []
        self._held: list[dict[int, None]] = []
        """The blocks of each endpoint, the oldest first: a dictionary keeps the order of insertion."""
        self._size = 0

    def __len__(self) -> int:
        """Entries: pairs of block and endpoint."""
        return self._size

    def match(self, hashes: Sequence[int], endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
        """Consecutive blocks from the start that each of ``endpoints`` holds; those that hold none are absent."""
        slots = self._slots
        alive = 0
        for endpoint in endpoints:
            slot = slots.get(endpoint)
            if slot is not None:
                alive |= 1 << slot
        matched: dict[Endpoint, int] = {}
        holders = self._holders
        depth = 0
        for number in hashes:
            if not alive:
                break
            still = alive & holders.get(number, 0)
            if still != alive:
                if depth:
                    self._note(alive & ~still, depth, matched)
                alive = still
            depth += 1
        if alive and depth:
            self._note(alive, depth, matched)
        return matched

    def add(self, endpoint: Endpoint, hashes: Sequence[int], capacity: int) -> None:
        """The endpoint has been sent a prompt with these hashes; it remembers ``capacity`` blocks at most.

        The prompt's end becomes older than its beginning: without its beginning, an end could never match.
        """
        slot = self._slot(endpoint)
        held, holders, bit = self._held[slot], self._holders, 1 << slot
        before = len(held)
        # Whole dictionaries at once: a prompt has up to thousands of blocks, and most are new or most are known.
        known = [number for number in hashes if number in held]
        for number in known:
            del held[number]
        held.update(dict.fromkeys(reversed(hashes)))
        fresh = [number for number in hashes if number not in holders]
        holders.update(dict.fromkeys(fresh, bit))
        if len(fresh) + len(known) < len(hashes):  # others hold some of it
            for number in hashes:
                holders[number] |= bit
        if len(held) > capacity:
            for number in list(islice(held, len(held) - capacity)):
                del held[number]
                self._forget(number, bit)
        self._size += len(held) - before

    def held(self) -> Iterator[tuple[Endpoint, list[int]]]:
        """Every endpoint and the blocks that it holds, the oldest first."""
        for endpoint, slot in list(self._slots.items()):
            yield endpoint, list(self._held[slot])

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and its cache with it."""
        slot = self._slots.pop(endpoint, None)
        if slot is None:
            return
        bit = 1 << slot
        held = self._held[slot]
        for number in held:
            self._forget(number, bit)
        self._size -= len(held)
        self._held[slot] = {}
        self._owners[slot] = None

    def _slot(self, endpoint: Endpoint) -> int:
        """The endpoint's bit; those of endpoints that are gone are used again."""
        slot = self._slots.get(endpoint)
        if slot is None:
            if None in self._owners:
                slot = self._owners.index(None)
                self._owners[slot] = endpoint
            else:
                slot = len(self._owners)
                self._owners.append(endpoint)
                self._held.append({})
            self._slots[endpoint] = slot
        return slot

    def _forget(self, number: int, bit: int) -> None:
        holders = self._holders
        rest = holders[number] & ~bit
        if rest:
            holders[number] = rest
        else:
            del holders[number]

    def _note(self, bits: int, depth: int, matched: dict[Endpoint, int]) -> None:
        """Write ``depth`` for the endpoint of each bit."""
        while bits:
            low = bits & -bits
            owner = self._owners[low.bit_length() - 1]
            assert owner is not None
            matched[owner] = depth
            bits ^= low
