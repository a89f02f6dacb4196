# SPDX-License-Identifier: GPL-3.0-or-later
"""What engines publish, byte by byte, and the index that is made of it."""

from __future__ import annotations

import random
from array import array
from typing import Any

import msgspec
import pytest

from epp.datalayer.kvblocks import BlockIndex, block_keys, first_key
from epp.datalayer.kvevents import AllBlocksCleared, BlockRemoved, BlockStored, read_batch, topic_of
from epp.model import Endpoint

pack = msgspec.msgpack.encode
STORED: dict[str, Any] = {"block_hashes": [1, 2], "parent_block_hash": None, "token_ids": [5, 6, 7, 8], "block_size": 2}


def endpoint(number: int = 0) -> Endpoint:
    return Endpoint(f"e{number}", "ns", f"p{number}", f"10.0.0.{number + 1}", 8000)


def ids(*tokens: int) -> bytes:
    return array("I", tokens).tobytes()


def stored(hashes: list[int], tokens: list[int], parent: int | None = None, size: int = 2, **more: Any) -> BlockStored:
    return BlockStored(hashes, parent, tokens, size, **more)


class TestMessages:
    @pytest.mark.parametrize(
        ("topic", "pod", "model"),
        [
            (b"kv@10.0.0.1:8000@org/model", "10.0.0.1:8000", "org/model"),
            (b"kv@pod@a@b", "pod", "a@b"),
            (b"kv@pod", "pod", ""),
            (b"", "", ""),
            (b"kv@\xff@m", "\ufffd", "m"),
        ],
    )
    def test_topics(self, topic: bytes, pod: str, model: str) -> None:
        assert topic_of(topic) == (pod, model)

    def test_arrays(self) -> None:
        """Older engines write arrays, as long as they need to be."""
        extra_keys = [["adapter", "salt", ["pic", 3], 9]]
        events = [
            ["BlockStored", [1, b"\0" * 24 + b"\0\0\0\0\0\0\1\0"], 7, [5, 6, 7, 8], 2],
            ["BlockStored", [3], None, [1, 2], 2, 4, "CPU", "adapter", extra_keys, 0, "mla_attention", 5, 6],
            ["BlockRemoved", [1], "GPU"],
            ["BlockRemoved", [2]],
            ["AllBlocksCleared"],
        ]
        batch = read_batch(pack([1.5, events, 3]))
        assert batch.rank == 3
        assert batch.events == [
            BlockStored([1, 256], 7, [5, 6, 7, 8], 2),
            BlockStored([3], None, [1, 2], 2, "cpu", "adapter", [("salt", "pic")], 0, "mla_attention"),
            BlockRemoved([1]),
            BlockRemoved([2]),
            AllBlocksCleared(),
        ]
        assert read_batch(pack([1.5, []])).rank is None

    def test_maps(self) -> None:
        """Newer ones write maps, with fields that nobody here knows."""
        events = [
            {"type": "BlockStored", **STORED, "lora_id": None, "medium": "GPU", "lora_name": None, "new": 1},
            {"type": "BlockRemoved", "block_hashes": [b"\1"], "medium": "CPU", "group_idx": 2},
            {"type": "AllBlocksCleared"},
        ]
        for payload in ({"ts": 1.0, "events": events, "data_parallel_rank": 1}, [1.0, events, 1]):
            batch = read_batch(pack(payload))
            assert batch.rank == 1
            assert batch.events == [
                BlockStored([1, 2], None, [5, 6, 7, 8], 2),
                BlockRemoved([1], "cpu", 2),
                AllBlocksCleared(),
            ]

    def test_extra_keys(self) -> None:
        """Only texts count, and the adapter's name is no extra."""
        event = {"type": "BlockStored", **STORED, "lora_name": "a", "extra_keys": [["a", "salt"], None]}
        (found,) = read_batch(pack([0.0, [event]])).events
        assert isinstance(found, BlockStored)
        assert found.extras == [("salt",), ()]
        event["extra_keys"] = [["a"], [1, None]]
        (found,) = read_batch(pack([0.0, [event]])).events
        assert isinstance(found, BlockStored)
        assert found.extras == ()

    def test_unknown_types_are_left_out(self) -> None:
        events = [["BlockMoved", 1], {"type": "Grown", "by": 2}, ["BlockRemoved", [4]]]
        assert read_batch(pack([0.0, events])).events == [BlockRemoved([4])]

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xc1",
            pack(5),
            pack([1.0]),
            pack({"ts": 1}),
            pack([1.0, [["BlockStored", [1]]]]),
            pack([1.0, [["BlockStored", ["x"], None, [1], 1]]]),
            pack([1.0, [[]]]),
            pack([1.0, [3]]),
            pack([1.0, [{"block_hashes": [1]}]]),
        ],
    )
    def test_nonsense(self, payload: bytes) -> None:
        with pytest.raises(ValueError, match="no batch of KV cache events"):
            read_batch(payload)


class TestKeys:
    def test_whole_blocks_each_with_what_is_before(self) -> None:
        first = first_key("m")
        keys = block_keys(first, ids(1, 2, 3, 4, 5), 2)
        assert len(keys) == 2
        assert block_keys(first, ids(1, 2, 3, 4), 2) == keys
        assert block_keys(keys[0], ids(3, 4), 2) == keys[1:]
        assert block_keys(first, ids(9, 2, 3, 4), 2)[1] != keys[1]
        assert block_keys(first_key("n"), ids(1, 2), 2) != keys[:1]
        assert block_keys(first, ids(1), 2) == []

    def test_extras(self) -> None:
        first = first_key("m")
        plain = block_keys(first, ids(1, 2, 3, 4), 2)
        salted = block_keys(first, ids(1, 2, 3, 4), 2, {0: ("salt",)})
        pictured = block_keys(first, ids(1, 2, 3, 4), 2, {1: ("a", "b")})
        assert not set(salted) & set(plain)
        assert pictured[0] == plain[0]
        assert pictured[1] != plain[1]
        assert block_keys(first, ids(1, 2, 3, 4), 2, {1: ("ab",)})[1] != pictured[1]


class TestIndex:
    def keys(self, *tokens: int, model: str = "m", size: int = 2) -> list[int]:
        return block_keys(first_key(model), ids(*tokens), size)

    def held(self, index: BlockIndex, where: Endpoint, *tokens: int, model: str = "m") -> int:
        keys = self.keys(*tokens, model=model, size=index.block_tokens)
        return index.match(keys, [where], 0.8)[0].get(where, 0)

    def test_blocks_come_and_go(self) -> None:
        index, here, there = BlockIndex(2), endpoint(0), endpoint(1)
        index.take(here, "m", stored([1, 2], [1, 2, 3, 4]))
        index.take(here, "m", stored([3], [5, 6], parent=2))
        index.take(there, "m", stored([901], [1, 2]))
        keys = self.keys(1, 2, 3, 4, 5, 6)
        assert index.match(keys, [here, there, endpoint(2)], 0.8)[0] == {here: 3, there: 1}
        assert index.match(keys, [there], 0.8)[0] == {there: 1}
        assert index.match(self.keys(9, 9), [here, there], 0.8) == ({}, {})
        assert len(index) == 4
        assert index.knows(here)
        assert not index.knows(endpoint(2))
        index.take(here, "m", BlockRemoved([2, 77]))
        assert index.match(keys, [here, there], 0.8)[0] == {here: 1, there: 1}
        index.take(here, "m", stored([2], [3, 4], parent=1))
        assert self.held(index, here, 1, 2, 3, 4, 5, 6) == 3
        index.take(here, "m", AllBlocksCleared())
        assert index.match(keys, [here, there], 0.8)[0] == {there: 1}
        assert (index.counts.admitted, index.counts.evicted) == (5, 4)

    def test_models_and_adapters(self) -> None:
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([1], [1, 2]))
        index.take(here, "m", stored([2], [1, 2], lora="adapter"))
        assert self.held(index, here, 1, 2) == 1
        assert self.held(index, here, 1, 2, model="adapter") == 1
        assert self.held(index, here, 1, 2, model="other") == 0

    def test_twice_is_gone_only_after_twice(self) -> None:
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([1], [1, 2]))
        index.take(here, "m", stored([1], [1, 2]))
        index.take(here, "m", BlockRemoved([1]))
        assert self.held(index, here, 1, 2) == 1
        index.take(here, "m", BlockRemoved([1]))
        assert self.held(index, here, 1, 2) == 0
        index.take(here, "m", BlockRemoved([1]))
        assert len(index) == 0

    def test_no_more_than_there_is_room_for(self) -> None:
        """Blocks that are named again without being stored again (vLLM's kv_cache_report_mode) do not stay for ever."""
        index, here = BlockIndex(2), endpoint()
        here.metrics.num_blocks = 32
        tokens = list(range(100, 132))
        index.take(here, "m", stored(list(range(16)), tokens))
        for _ in range(3):
            index.take(here, "m", stored(list(range(16)), tokens))
        assert self.held(index, here, *tokens) == 16, "what is there is not forgotten"
        index.take(here, "m", BlockRemoved(list(range(16))))
        index.take(here, "m", BlockRemoved(list(range(16))))
        assert self.held(index, here, *tokens) == 0
        assert index._caches[here].gpu == len(index) == 0

    def test_the_oldest_are_forgotten_when_there_is_no_room(self) -> None:
        index, here = BlockIndex(2), endpoint()
        here.metrics.num_blocks = 16
        for number in range(20):
            index.take(here, "m", stored([number], [number, number]))
        assert 15 <= len(index) <= 16
        assert self.held(index, here, 0, 0) == 0
        assert self.held(index, here, 19, 19) == 1
        assert index._caches[here].gpu == len(index)

    def test_media(self) -> None:
        """What was moved out of the GPU's memory counts for less, and is not lost."""
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([1, 2], [1, 2, 3, 4]))
        index.take(here, "m", stored([1, 2, 55], [], medium="cpu"))
        keys = self.keys(1, 2, 3, 4)
        assert index.match(keys, [here], 0.5) == ({here: 2}, {here: 2.0})
        index.take(here, "m", BlockRemoved([2]))
        assert index.match(keys, [here], 0.5) == ({here: 2}, {here: 1.5})
        index.take(here, "m", BlockRemoved([1]))
        index.take(here, "m", BlockRemoved([2], "cpu"))
        assert index.match(keys, [here], 0.5) == ({here: 1}, {here: 0.5})

    def test_unknown_parents(self) -> None:
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([3], [5, 6], parent=2))
        assert index.counts.skipped == 1
        assert len(index) == 0

    def test_larger_blocks(self) -> None:
        """An engine's block of four tokens is two of ours."""
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([1, 2], [1, 2, 3, 4, 5, 6, 7, 8], size=4, extras=[("pic",), ()]))
        keys = block_keys(first_key("m"), ids(1, 2, 3, 4, 5, 6, 7, 8), 2, {0: ("pic",), 1: ("pic",)})
        assert index.match(keys, [here], 1.0)[0] == {here: 4}
        index.take(here, "m", BlockRemoved([2]))
        assert index.match(keys, [here], 1.0)[0] == {here: 2}

    def test_smaller_blocks(self) -> None:
        """Blocks that ours are not made of make ours smaller, and what was known is forgotten."""
        index, here = BlockIndex(6), endpoint()
        index.take(here, "m", stored([1], [1, 2, 3, 4, 5, 6], size=6))
        index.expect(here, [4])
        index.take(here, "m", stored([2], [1, 2, 3, 4], size=4))
        assert index.block_tokens == 2
        assert self.held(index, here, 1, 2, 3, 4, 5, 6) == 2
        assert len(index) == 1

    @pytest.mark.parametrize(
        ("kind", "counts"), [("full_attention", 1), ("mla_attention", 1), ("sliding_window", 0), ("mamba", 0)]
    )
    def test_groups(self, kind: str, counts: int) -> None:
        """Only layers that look at the whole prompt say that its beginning is there."""
        index, here = BlockIndex(2), endpoint()
        index.take(here, "m", stored([1], [1, 2], group=1))
        assert len(index) == 0
        index.take(here, "m", stored([1], [1, 2], group=1, kind=kind))
        assert self.held(index, here, 1, 2) == counts
        index.take(here, "m", BlockRemoved([1], group=7))
        assert self.held(index, here, 1, 2) == counts
        index.take(here, "m", BlockRemoved([1], group=1))
        assert len(index) == 0

    @pytest.mark.parametrize(
        "event",
        [stored([1], [1, 2], size=0), stored([1], [1, 2, 3]), stored([1], [-1, 2]), stored([1], [2**40, 2])],
    )
    def test_nonsense(self, event: BlockStored) -> None:
        index = BlockIndex(2)
        with pytest.raises(ValueError, match=r"blocks|number"):
            index.take(endpoint(), "m", event)
        assert len(index) == 0

    def test_expectations(self) -> None:
        index, here = BlockIndex(2), endpoint()
        keys = self.keys(1, 2, 3, 4)
        fresh = index.expect(here, keys)
        assert fresh == keys
        assert index.expect(here, keys) == []
        assert index.match(keys, [here], 0.5) == ({here: 2}, {here: 2.0})
        index.take(here, "m", stored([1], [1, 2]))
        index.give_up(here, fresh)
        assert index.match(keys, [here], 0.8)[0] == {here: 1}
        index.give_up(endpoint(9), fresh)

    def test_endpoints_that_leave(self) -> None:
        index, here, there = BlockIndex(2), endpoint(0), endpoint(1)
        index.take(here, "m", stored([1], [1, 2]))
        index.expect(here, self.keys(1, 2, 3, 4))
        index.drop(here)
        index.drop(here)
        index.clear(here)
        index.take(there, "m", stored([5], [7, 8]))
        assert self.held(index, there, 1, 2, 3, 4) == 0  # though it may have the same bit now
        assert self.held(index, there, 7, 8) == 1
        assert not index.knows(here)

    def test_the_limit(self) -> None:
        """What is too much is forgotten, the oldest first."""
        index, here = BlockIndex(1, limit=64), endpoint()
        for number in range(80):
            index.take(here, "m", stored([number], [number], size=1))
        assert len(index) <= 64
        assert self.held(index, here, 79) == 1
        assert self.held(index, here, 0) == 0

    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_what_the_engines_hold(self, seed: int) -> None:
        """Against engines that store and throw away at random: the index says what their caches are."""
        rng = random.Random(seed)
        index, pods = BlockIndex(2), [endpoint(number) for number in range(3)]
        prompts = [[rng.randrange(3) for _ in range(8)] for _ in range(12)]
        caches: list[dict[tuple[int, ...], int]] = [{} for _ in pods]
        for _ in range(400):
            which = rng.randrange(3)
            cache, prompt = caches[which], rng.choice(prompts)
            if rng.random() < 0.02:
                cache.clear()
                index.take(pods[which], "m", AllBlocksCleared())
            elif cache and rng.random() < 0.5:
                gone = rng.choice(list(cache))
                index.take(pods[which], "m", BlockRemoved([cache.pop(gone)]))
            else:
                parent = None
                for end in range(2, 10, 2):
                    block = tuple(prompt[:end])
                    if block not in cache:
                        cache[block] = hash((which, block)) & (2**64 - 1)
                        tokens = prompt[end - 2 : end]
                        index.take(pods[which], "m", stored([cache[block]], tokens, parent=parent))
                    parent = cache[block]
            for each in prompts:
                keys = self.keys(*each)
                expected = {}
                for pod, held in zip(pods, caches, strict=True):
                    depth = 0
                    while depth < 4 and tuple(each[: 2 * depth + 2]) in held:
                        depth += 1
                    if depth:
                        expected[pod] = depth
                assert index.match(keys, pods, 1.0)[0] == expected
        assert len(index) == sum(map(len, caches))
