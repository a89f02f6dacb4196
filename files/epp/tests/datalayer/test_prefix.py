# SPDX-License-Identifier: GPL-3.0-or-later
"""The prefix index, also against a model that is slow and obvious."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.datalayer.prefix import (
    PERIOD_SECONDS,
    PERIODS,
    RUNG,
    TIDY,
    PrefixIndex,
    block_hashes,
    is_whole,
    plain_blocks,
)
from epp.datalayer.slots import MANY
from epp.model import Endpoint

PODS = [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(3)]


def test_hashes_are_chained() -> None:
    one = block_hashes("m", "", b"aaaabbbbcc", 4, 100)
    assert len(one) == 3
    assert block_hashes("m", "", b"aaaabbbbcc", 4, 2) == one[:2]
    assert block_hashes("m", "", b"aaaabbbbccdd", 4, 100)[:2] == one[:2]
    assert block_hashes("m", "", b"aaaabbbbccdd", 4, 100)[2] != one[2], "a short block is another block"
    other = block_hashes("m", "", b"xaaabbbbcc", 4, 100)
    assert not set(one) & set(other), "what follows a difference differs"
    for model, salt, size in (("n", "", 4), ("m", "s", 4), ("m", "", 5)):
        assert not set(one) & set(block_hashes(model, salt, b"aaaabbbbcc", size, 100))
    assert block_hashes("m", "", b"", 4, 100) == []


def test_blocks_of_a_growing_chain_double() -> None:
    prompt = bytes(range(256)) * 40
    growing = block_hashes("m", "", prompt, 4, 10_000, growing=True)
    assert growing[:RUNG] == block_hashes("m", "", prompt, 4, 10_000)[:RUNG], "short prompts know no difference"
    # 32 plain blocks, 32 of two, 32 of four, and the rest of the 2560 in blocks of eight.
    assert RUNG == 32
    assert len(growing) == 3 * 32 + (2560 - 224) // 8
    assert [number >> 62 for number in growing] == [0] * 32 + [1] * 32 + [2] * 32 + [3] * 292
    assert [plain_blocks(depth) for depth in (0, 1, 32, 33, 64, 96, 97, 388)] == [0, 1, 32, 34, 96, 224, 232, 2560]


@given(st.integers(1, 4000), st.integers(1, 900), st.integers(1, 9))
def test_equal_beginnings_have_equal_growing_chains(size: int, same: int, block: int) -> None:
    one = bytes(size)
    other = one[:same] + b"x" * max(0, size - same)
    left, right = (block_hashes("m", "", each, block, 10_000, growing=True) for each in (one, other))
    common = next((depth for depth, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), len(left))
    matched = min(plain_blocks(common), -(-size // block))
    least = min(same, size) // block
    assert matched <= -(-min(same, size) // block)
    assert least - matched <= max(1, least // 16), "the measure is exact to a small part"
    shorter = block_hashes("m", "", one[:same], block, 10_000, growing=True)
    assert left[: len(shorter) - 1] == shorter[:-1], "what follows changes no whole block"


@given(st.integers(1, 4000), st.integers(1, 9))
def test_a_last_block_is_whole_if_nothing_that_follows_changes_it(size: int, block: int) -> None:
    hashes = block_hashes("m", "", bytes(size), block, 10_000, growing=True)
    longer = block_hashes("m", "", bytes(2 * size + 100), block, 10_000, growing=True)
    assert is_whole(hashes, size, block) == (longer[: len(hashes)] == hashes)


def test_large_blocks_fill_more_of_an_endpoint() -> None:
    index, pod = PrefixIndex(), PODS[0]
    large = [3 << 62 | number for number in range(4)]
    index.add(pod, large, 40)
    index.add(pod, [1, 2, 3], 40)
    assert index.match(large, PODS) == {pod: 4}
    index.add(pod, [1, 2, 3, 4, 5, 6, 7, 8, 9], 40)
    assert index.match(large, PODS) == {pod: 3}, "8 * 4 + 9 plain blocks are more than 40"
    assert index.match([*range(1, 10)], PODS) == {pod: 9}
    index.drop(pod)
    assert len(index) == 0
    assert index._holders == {}


def test_capacity_forgets_the_oldest_and_ends_before_beginnings() -> None:
    index, pod = PrefixIndex(), PODS[0]
    index.add(pod, [1, 2, 3], 4)
    index.add(pod, [1, 8], 4)
    assert index.match([1, 2, 3], PODS) == {pod: 3}
    index.add(pod, [9], 4)
    assert len(index) == 4
    assert index.match([1, 2, 3], PODS) == {pod: 2}
    assert index.match([1, 8], PODS) == {pod: 2}
    index.add(pod, [1, 2, 3, 4, 5, 6], 2)
    assert index.match([1, 2, 3], PODS) == {pod: 2}
    assert len(index) == 2


def test_what_is_used_again_and_again_is_new_once_an_era(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    index, pod, capacity = PrefixIndex(), PODS[0], 16 * PERIODS
    assert index.add(pod, [1, 2], capacity) == [1, 2]
    assert index.add(pod, [1, 2], capacity) == []
    assert index.add(pod, [1, 2, 3], capacity) == [3]
    assert index.add(PODS[1], [1, 3], capacity) == [1, 3], "each endpoint by itself"
    told = []
    for period in range(4 * PERIODS):
        # A sixteenth of what there is room for is new: a period is over.
        first = 100 + 16 * period
        assert index.add(pod, list(range(first, first + 16)), capacity) == list(range(first, first + 16))
        news = index.add(pod, [1, 2, 3], capacity)
        assert news in ([], [1, 2, 3])
        assert index.add(pod, [1, 2, 3], capacity) == []
        told += [period] if news else []
    assert len(told) == PERIODS // 2
    assert {later - before for before, later in pairwise(told)} == {8}
    assert index.match([1, 2, 3], PODS) == {pod: 3, PODS[1]: 1}
    for _ in range(8):
        now += PERIOD_SECONDS
        told += index.add(pod, [1, 2, 3], capacity)
    assert told[PERIODS // 2 :] == [1, 2, 3], "and if nothing is new, after so many seconds"


def test_what_is_used_again_and_again_stays() -> None:
    index, pod, capacity = PrefixIndex(), PODS[0], 64 * PERIODS
    for number in range(100, 100 + 5 * capacity):
        index.add(pod, [1, 2, number], capacity)
        assert index.match([1, 2], PODS) == {pod: 2}
    assert len(index) <= capacity
    oldest = 100 + 4 * capacity + capacity // PERIODS + capacity // 32
    assert index.match([oldest], PODS) == {pod: 1}, "nothing that was used since is forgotten"


def test_dropped_endpoints_leave_nothing_behind() -> None:
    index = PrefixIndex()
    for pod in PODS:
        index.add(pod, [1, 2], 10)
    index.drop(PODS[1])
    index.drop(PODS[1])
    assert index.match([1, 2], PODS) == {PODS[0]: 2, PODS[2]: 2}
    fresh = Endpoint("new", "", "new", "10.0.0.9", 8000)
    index.add(fresh, [1], 10)
    assert index.match([1, 2], [fresh, PODS[1]]) == {fresh: 1}, "the place of the old one is empty when used again"
    for pod in (*PODS, fresh):
        index.drop(pod)
    assert len(index) == 0
    assert index._holders == {}


def test_many_candidates_are_found_like_few() -> None:
    index = PrefixIndex()
    pods = [Endpoint(f"m{i}", "", f"m{i}", f"10.0.{i // 250}.{i % 250 + 1}", 8000) for i in range(3 * MANY)]
    for number, pod in enumerate(pods):
        index.add(pod, [1, 2, 3, 4][: number % 5], 10)
    index.drop(pods[4])
    expected = {pod: number % 5 for number, pod in enumerate(pods) if number % 5 and number != 4}
    for some in (pods, pods[: 2 * MANY], pods[::2], pods[:MANY], pods[:1]):
        found = index.match([1, 2, 3, 4], some)
        assert found == {pod: depth for pod, depth in expected.items() if pod in some}
    assert index.match([9], pods) == {}
    assert index.match([], pods) == {}


def test_what_is_used_all_the_time_takes_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    index, (pod, other, _) = PrefixIndex(), PODS
    hot = list(range(1, 101))
    index.add(other, hot[:50], 1000)
    for period in range(3 * TIDY // len(hot)):
        now += PERIOD_SECONDS
        index.add(pod, hot, 1000)
        index.add(pod, [1000 + period % 20], 1000)
    cache = index._caches[index._slots.number(pod)]
    assert (cache.blocks, cache.filled) == (120, 120)
    assert sum(len(turn.numbers) - turn.at for turn in cache.turns) == cache.entries <= 2 * 120 + TIDY + 100
    assert len(cache.turns) <= cache.entries + 1
    assert index.match(hot, PODS) == {pod: 100, other: 50}
    assert sorted(dict(index.held())[pod]) == sorted([*hot, *range(1000, 1020)])


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.none() | st.lists(st.integers(1, 6), max_size=5, unique=True)), max_size=25
    ),
    st.integers(1, 6),
    st.lists(st.integers(1, 6), max_size=6),
)
def test_agrees_with_the_obvious(adds: list[tuple[int, list[int] | None]], capacity: int, wanted: list[int]) -> None:
    """None for hashes drops the endpoint."""
    index = PrefixIndex()
    held: list[list[int]] = [[], [], []]
    for pod, hashes in adds:
        if hashes is None:
            index.drop(PODS[pod])
            held[pod].clear()
            continue
        index.add(PODS[pod], hashes, capacity)
        for number in reversed(hashes):
            if number in held[pod]:
                held[pod].remove(number)
            held[pod].append(number)
        del held[pod][: max(0, len(held[pod]) - capacity)]
    expected = {}
    for pod, endpoint in enumerate(PODS):
        depth = 0
        while depth < len(wanted) and wanted[depth] in held[pod]:
            depth += 1
        if depth:
            expected[endpoint] = depth
    assert index.match(wanted, PODS) == expected
    assert len(index) == sum(map(len, held))
    known = dict(index.held())
    assert [known.get(pod, []) for pod in PODS] == held, "the oldest first"
