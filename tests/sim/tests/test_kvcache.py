# SPDX-License-Identifier: GPL-3.0-or-later
"""The block pool: reuse, eviction order, and books that always balance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kvcache import BlockPool, extend_hashes, root_hash
from sim.tests.virtual import check_pool
from sim.tokens import encode_ids


def hashes(ids: list[int], adapter: str | None = None, salt: str | None = None) -> list[int]:
    """Return the hashes of blocks of 2 tokens."""
    result: list[int] = []
    extend_hashes(result, root_hash(adapter, salt), encode_ids(ids), 2)
    return result


def store(pool: BlockPool, names: list[int]) -> list[int]:
    """Allocate and publish one block for each hash."""
    blocks = pool.allocate((), len(names))
    assert blocks is not None
    for block, name in zip(blocks, names, strict=True):
        pool.publish(block, name)
    return blocks


def test_hashes_are_chained_and_can_be_extended() -> None:
    whole = hashes([1, 2, 3, 4, 5])
    assert len(whole) == 2
    assert hashes([1, 2, 3, 9])[0] == whole[0]
    assert hashes([1, 2, 3, 9])[1] != whole[1]
    assert hashes([9, 2, 3, 4])[1] != whole[1], "an equal block after another prefix is another block"
    step = hashes([1, 2, 3])
    extend_hashes(step, root_hash(None, None), encode_ids([1, 2, 3, 4, 5]), 2)
    assert step == whole


def test_adapters_and_salts_do_not_share_blocks() -> None:
    variants = [hashes([1, 2]), hashes([1, 2], adapter="a"), hashes([1, 2], salt="s"), hashes([1, 2], adapter="s")]
    assert len({names[0] for names in variants}) == 4


def test_a_released_block_is_found_until_its_place_is_needed() -> None:
    pool = BlockPool(3)
    names = hashes([1, 2, 3, 4])
    first = store(pool, names)
    pool.release(first)
    assert pool.usage() == 0
    assert pool.find(names, 2) == first
    assert pool.find(names, 1) == first[:1]
    assert pool.allocate((), 1) is not None  # the block that was never used
    assert pool.find(names, 2) == first
    assert pool.allocate((), 1) is not None  # the end of the released sequence goes first
    assert pool.find(names, 2) == first[:1]


def test_the_least_recently_released_block_is_evicted_first() -> None:
    pool = BlockPool(2)
    one, two = hashes([1, 2]), hashes([3, 4])
    old, new = store(pool, one), store(pool, two)
    pool.release(old)
    pool.release(new)
    assert pool.allocate(old, 0) == []  # used again: now the newest
    pool.release(old)
    store(pool, hashes([5, 6]))
    assert pool.find(two, 1) == []
    assert pool.find(one, 1) == old


def test_an_allocation_that_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(2)
    names = hashes([1, 2])
    cached = store(pool, names)
    pool.release(cached)
    assert pool.allocate(cached, 2) is None, "the cached block cannot be both kept and evicted"
    assert pool.in_use == 0
    assert pool.find(names, 1) == cached
    check_pool(pool)


def test_the_newest_of_two_equal_blocks_is_found() -> None:
    pool = BlockPool(4)
    names = hashes([1, 2])
    store(pool, names)
    second = store(pool, names)
    assert pool.find(names, 1) == second
    assert pool.cached == 1
    check_pool(pool)


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(4, enable_caching=False)
    names = hashes([1, 2])
    store(pool, names)
    assert pool.find(names, 1) == []


def test_reset_forgets_everything_but_only_when_idle() -> None:
    pool = BlockPool(4)
    names = hashes([1, 2])
    blocks = store(pool, names)
    assert not pool.reset()
    assert pool.find(names, 1) == blocks
    pool.release(blocks)
    assert pool.reset()
    assert pool.find(names, 1) == []
    check_pool(pool)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.booleans()), max_size=60))
def test_blocks_never_leak(actions: list[tuple[int, int, bool]]) -> None:
    """Any sequence of reuse, allocation and release keeps the books, and giving all back frees the whole pool."""
    pool = BlockPool(8)
    held: list[list[int]] = []
    for kind, length, release_first in actions:
        names = hashes([kind] * length * 2)
        reuse = pool.find(names, length)
        new = pool.allocate(reuse, length - len(reuse))
        if new is not None:
            blocks = reuse + new
            for block, name in zip(blocks, names, strict=True):
                pool.publish(block, name)
            held.append(blocks)
        if held and (release_first or new is None):
            pool.release(held.pop(0))
        check_pool(pool)
    for blocks in held:
        pool.release(blocks)
    check_pool(pool)
    assert pool.in_use == 0
    assert pool.allocate((), pool.total) is not None
