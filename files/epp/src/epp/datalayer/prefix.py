# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint is believed to hold which prompt prefixes in its KV cache.

Believed, because nobody asked the engine: a prompt that was sent to an endpoint is remembered as cached there until
newer ones push it out, as they would in the engine. A prompt is cut into blocks, and each block's hash includes those
before it, so one number stands for a whole prefix.

One dictionary maps a hash to a bit set of endpoints. A look-up walks the prompt's hashes and narrows one integer, so it
costs a dictionary access per block, whatever the number of endpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import xxhash

from epp.model import Endpoint


def block_hashes(model: str, salt: str, prompt: bytes, block_bytes: int, max_blocks: int) -> list[int]:
    """Chained hashes of a prompt's blocks, at most ``max_blocks``; a shorter last block counts.

    h(-1) = xxh3(model, salt, block size); h(i) = xxh3(block i, seed h(i-1)).
    """
    digest = xxhash.xxh3_64_intdigest
    previous = digest(f"{model}\0{salt}\0{block_bytes}".encode())
    end = min(len(prompt), block_bytes * max_blocks)
    hashes: list[int] = []
    for start in range(0, end, block_bytes):
        previous = digest(prompt[start : min(start + block_bytes, end)], previous)
        hashes.append(previous)
    return hashes


class PrefixIndex:
    """Prefixes by endpoint, each endpoint with a least-recently-used bound."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._slots: dict[Endpoint, int] = {}
        self._owners: list[Endpoint | None] = []
        self._held: list[OrderedDict[int, None]] = []
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
        for number in reversed(hashes):
            if number in held:
                held.move_to_end(number)
            else:
                held[number] = None
                holders[number] = holders.get(number, 0) | bit
        while len(held) > capacity:
            self._forget(held.popitem(last=False)[0], bit)
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
        self._held[slot] = OrderedDict()
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
                self._held.append(OrderedDict())
            self._slots[endpoint] = slot
        return slot

    def _forget(self, number: int, bit: int) -> None:
        rest = self._holders[number] & ~bit
        if rest:
            self._holders[number] = rest
        else:
            del self._holders[number]

    def _note(self, bits: int, depth: int, matched: dict[Endpoint, int]) -> None:
        """Write ``depth`` for the endpoint of each bit."""
        while bits:
            low = bits & -bits
            owner = self._owners[low.bit_length() - 1]
            assert owner is not None
            matched[owner] = depth
            bits ^= low
