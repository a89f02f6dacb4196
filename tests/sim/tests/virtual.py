# SPDX-License-Identifier: GPL-3.0-or-later
"""Helpers of the tests: engines in virtual time, and what must hold for a block pool at any moment."""

from __future__ import annotations

from collections import Counter

from sim.engine import Engine, Output, Sequence
from sim.kvcache import BlockPool
from sim.settings import EngineSettings, TimingModel
from sim.tokens import TextGenerator, encode_ids

# Round figures: a prefill token takes 1 ms, a step that starts a prefill 10 ms more, a decode step 100 ms.
TIMING = TimingModel(prefill_overhead=0.010, prefill_time_per_token=0.001, inter_token_latency=0.100)


def engine(
    blocks: int = 64,
    *,
    seqs: int = 8,
    batched: int = 1024,
    waiting: int | None = None,
    loras: int = 0,
    caching: bool = True,
    timing: TimingModel = TIMING,
) -> Engine:
    """Return an engine with blocks of 4 tokens."""
    return Engine(
        EngineSettings(
            block_size=4,
            num_gpu_blocks=blocks,
            enable_prefix_caching=caching,
            max_num_seqs=seqs,
            max_num_batched_tokens=batched,
            max_waiting=waiting,
            max_loras=loras,
            timing=timing,
        )
    )


def sequence(
    ids: range | list[int],
    max_tokens: int = 1,
    *,
    adapter: str | None = None,
    salt: str | None = None,
    natural: int | None = None,
) -> Sequence:
    """Return a sequence with the token ids `ids` as its prompt."""
    prompt = encode_ids(list(ids))
    generator = TextGenerator(prompt, adapter or "base")
    return Sequence(prompt, max_tokens, generator, natural_length=natural, adapter=adapter, cache_salt=salt)


def run(target: Engine) -> list[Output]:
    """Run an engine until it is idle; return what it produced."""
    outputs: list[Output] = []
    while (event := target.next_event) is not None:
        outputs += target.advance(event)
    return outputs


def check(target: Engine) -> None:
    """Assert that the engine's books agree with each other."""
    pool = target.pool
    held = Counter(block for member in target.running for block in member.blocks)
    assert pool._references == dict(held)
    assert not any(member.blocks for member in target.waiting)
    check_pool(pool)
    settings = target.settings
    assert len(target.running) <= settings.max_num_seqs
    if settings.max_loras:
        assert len({member.adapter for member in target.running} - {None}) <= settings.max_loras
        assert len(target._lora_slots) <= settings.max_loras
    for member in target.running:
        assert len(member.blocks) * settings.block_size >= member.computed


def check_pool(pool: BlockPool) -> None:
    """Assert that every block is in one place, and that the two directions of the hash table agree."""
    assert not pool._references.keys() & pool._free.keys()
    assert pool._references.keys() | pool._free.keys() == set(range(pool._fresh))
    assert all(count > 0 for count in pool._references.values())
    assert {block: name for name, block in pool._by_hash.items()} == pool._hash_of
    assert pool.in_use + pool.available == pool.total
