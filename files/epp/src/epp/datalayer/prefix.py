# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint is believed to hold which prompt prefixes in its KV cache.

Believed, because nobody asked the engine: a prompt that was sent to an endpoint is remembered as cached there until
newer ones push it out, as they would in the engine. A prompt is cut into blocks, and each block's hash includes those
before it, so one number stands for a whole prefix. In a *growing* chain the blocks double in size as they lie deeper
in the prompt, so that a long prompt has hundreds of them and not thousands, and is still measured to a thirtieth; the
two highest bits of a hash say how many plain blocks it stands for.

One dictionary maps a hash to who holds the block: a bit set of endpoints, and for each the period in which it was used
there last. A look-up walks the prompt's hashes and narrows one integer, so it costs a dictionary access per block,
whatever the number of endpoints. Most of the time goes to memory that is in no cache, so there is no second dictionary
by endpoint: what an endpoint forgets first says a list of what was used in each period, from which nothing is ever
taken out but at the front; an entry of it counts if the block's own period is still that one.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import xxhash

from epp.datalayer.slots import Slots
from epp.model import Endpoint

RUNG: Final = 32
"""Hashes of a growing chain between two doublings."""
TOP: Final = 3
"""How often blocks double: the largest are eight plain ones."""
PERIODS: Final = 16
"""An endpoint's blocks are of as many ages: what was used in the same sixteenth of them counts as equally old."""
PERIOD_SECONDS: Final = 1.25
"""No period is longer, so that an era ends after ten seconds, and peers which missed something hear of it again."""
_ERA: Final = 3
"""Periods whose numbers differ in no more than so many lowest bits are one era: peers hear of what is used again and
again once in each, twice in the life of a block. To learn it costs them as much as a new one."""
TIDY: Final = 4096
"""Entries of blocks that were used again since that an endpoint may have, and as many as it holds blocks."""
_LEVEL_AT: Final = 62
_LARGE: Final = 1 << _LEVEL_AT
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


class _Holding:
    """Who holds a block. Blocks that one endpoint alone holds, and used last in the same period, share one of these."""

    def __init__(self, bits: Any, slot: int, period: int) -> None:
        self.bits: Any = bits
        """A bit for each endpoint that holds it. Any where a number is only handed on: compiled code would make a new
        one each time."""
        self.slot = slot
        self.period = period
        """When the one of ``slot`` used it last; both mean nothing where ``periods`` is there."""
        self.periods: dict[int, int] | None = None
        """The same by slot, for several."""


class _Turn:
    """What an endpoint used in one period."""

    def __init__(self, holding: _Holding) -> None:
        self.holding = holding
        """Of the blocks that it alone holds."""
        self.numbers: list[Any] = []
        """Hashes, the oldest first; some have been used again since."""
        self.at = 0
        """Where those begin that are not forgotten yet."""


class _Cache:
    """What one endpoint holds."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.turns: deque[_Turn] = deque()
        """The oldest first; the last one is that of this period."""
        self.entries = 0
        """Hashes in all turns."""
        self.blocks = 0
        """Those of them that count."""
        self.filled = 0
        """Plain blocks that these are."""
        self.period = 0
        self.fresh = 0
        """Plain blocks that have come in this period."""
        self.ends = 0.0
        """When the period ends at the latest, monotonic seconds."""

    def begin(self, now: float) -> None:
        """A new period."""
        self.period += 1
        self.fresh = 0
        self.ends = now + PERIOD_SECONDS
        self.turns.append(_Turn(_Holding(1 << self.slot, self.slot, self.period)))


class PrefixIndex:
    """Prefixes by endpoint, each with a bound: what was used least recently goes first, to a sixteenth of the bound."""

    def __init__(self) -> None:
        self._holders: dict[Any, _Holding] = {}
        self._slots = Slots()
        self._caches: list[_Cache] = []
        self._size = 0

    def __len__(self) -> int:
        """Entries: pairs of block and endpoint."""
        return self._size

    def match(self, hashes: Sequence[int], endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
        """Consecutive blocks from the start that each of ``endpoints`` holds; those that hold none are absent."""
        slots = self._slots
        alive: Any = slots.mask(endpoints)
        matched: dict[Endpoint, int] = {}
        depth = 0
        for found in map(self._holders.get, hashes):
            if found is None:
                break
            still: Any = alive & found.bits
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

        The prompt's end becomes older than its beginning: without its beginning, an end could never match. Returns
        those that peers should hear of: new there, or not used in this era before.
        """
        slot = self._slots.number(endpoint)
        if slot == len(self._caches):
            self._caches.append(_Cache(slot))
        cache, holders = self._caches[slot], self._holders
        now = time.monotonic()
        if cache.fresh >= capacity // PERIODS or now >= cache.ends:
            cache.begin(now)
        turn = cache.turns[-1]
        mine, used, period = turn.holding, turn.numbers, cache.period
        era = period >> _ERA
        fresh: list[Any] = []
        news: list[Any] = []
        numbers: list[Any] = hashes if isinstance(hashes, list) else list(hashes)
        before = len(used)
        blocks = len(holders)
        at = len(numbers)
        while at:
            at -= 1
            number: Any = numbers[at]
            known = holders.setdefault(number, mine)
            if known is mine:
                if len(holders) == blocks:
                    continue  # used in this period before
                blocks += 1
                fresh.append(number)
                news.append(number)
            elif (periods := known.periods) is not None:
                last = periods.get(slot, -1)
                if last == period:
                    continue
                periods[slot] = period
                if last < 0:
                    known.bits |= mine.bits
                    fresh.append(number)
                if last >> _ERA != era:
                    news.append(number)
            elif known.slot == slot:
                if known.period == period:
                    continue
                holders[number] = mine
                if known.period >> _ERA != era:
                    news.append(number)
            else:
                both = _Holding(known.bits | mine.bits, -1, -1)
                both.periods = {known.slot: known.period, slot: period}
                holders[number] = both
                fresh.append(number)
                news.append(number)
            used.append(number)
        cache.entries += len(used) - before
        if fresh:
            plain = _all_plain(fresh)
            self._size += len(fresh)
            cache.blocks += len(fresh)
            cache.filled += plain
            cache.fresh += plain
            if cache.filled > capacity:
                self._shrink(cache, capacity)
        if cache.entries > 2 * cache.blocks + TIDY:
            self._tidy(cache)
        news.reverse()
        return news

    def _shrink(self, cache: _Cache, capacity: int) -> None:
        """Forget the oldest blocks of an endpoint."""
        holders, slot, turns = self._holders, cache.slot, cache.turns
        large: Any = _LARGE
        filled = cache.filled
        gone = entries = 0
        while filled > capacity:
            turn = turns[0]
            numbers, period = turn.numbers, turn.holding.period
            first = at = turn.at
            end = len(numbers)
            while at < end and filled > capacity:
                number: Any = numbers[at]
                at += 1
                known = holders.get(number)
                if known is None:
                    continue
                if (periods := known.periods) is None:
                    if known.slot != slot or known.period != period:
                        continue
                    del holders[number]
                elif periods.get(slot, -1) == period:
                    self._leave(number, known, periods, slot)
                else:
                    continue
                filled -= 1 if number < large else 1 << (number >> _LEVEL_AT)
                gone += 1
            entries += at - first
            turn.at = at
            if at == end:
                if len(turns) == 1:
                    break
                turns.popleft()
        cache.filled = filled
        cache.blocks -= gone
        cache.entries -= entries
        self._size -= gone

    def _leave(self, number: Any, known: _Holding, periods: dict[int, int], slot: int) -> None:
        """One of several does not hold this block any more."""
        del periods[slot]
        known.bits ^= 1 << slot
        if len(periods) == 1:
            for other, period in periods.items():
                self._holders[number] = _Holding(known.bits, other, period)

    def _counting(self, cache: _Cache, turn: _Turn) -> list[Any]:
        """What an endpoint holds of what it used in a period, and has not used since."""
        holders, slot, period = self._holders, cache.slot, turn.holding.period
        found: list[Any] = []
        for number in turn.numbers[turn.at :]:
            known = holders.get(number)
            if known is None:
                continue
            if (periods := known.periods) is None:
                if known.slot == slot and known.period == period:
                    found.append(number)
            elif periods.get(slot, -1) == period:
                found.append(number)
        return found

    def _tidy(self, cache: _Cache) -> None:
        """Take out what has been used again since: what is used all the time would be in every turn."""
        kept: deque[_Turn] = deque()
        cache.entries = 0
        current = cache.turns[-1]
        for turn in cache.turns:
            turn.numbers, turn.at = self._counting(cache, turn), 0
            cache.entries += len(turn.numbers)
            if turn.numbers or turn is current:
                kept.append(turn)
        cache.turns = kept

    def held(self) -> Iterator[tuple[Endpoint, list[int]]]:
        """Every endpoint and the blocks that it holds, the oldest first."""
        for endpoint, slot in self._slots.items():
            cache = self._caches[slot]
            yield endpoint, [number for turn in cache.turns for number in self._counting(cache, turn)]

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and its cache with it."""
        slot = self._slots.drop(endpoint)
        if slot is None:
            return
        self._shrink(self._caches[slot], 0)
        self._caches[slot] = _Cache(slot)
