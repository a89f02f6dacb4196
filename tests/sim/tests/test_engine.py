# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler in virtual time: every figure below follows from `virtual.TIMING` and blocks of 4 tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import Engine, QueueFull
from sim.settings import EngineSettings, SettingsError, TimingModel
from sim.tests.virtual import check, engine, run, sequence


def test_one_request_takes_prefill_and_one_step_per_token() -> None:
    target = engine()
    job = sequence(range(20), max_tokens=3)
    target.submit(job, 5.0)
    outputs = run(target)
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert job.times.first_token == pytest.approx(5.0 + 0.010 + 20 * 0.001)
    assert job.times.last_token == pytest.approx(5.0 + 0.030 + 2 * 0.100)
    assert target.next_event is None
    assert target.pool.in_use == 0
    assert b"".join(output.token for output in outputs) == bytes(job.data[80:])


def test_a_cached_prefix_is_not_computed_again() -> None:
    target = engine()
    target.submit(sequence(range(20)), 0.0)
    run(target)
    again = sequence([*range(16), 90, 91, 92, 93, 94])
    target.submit(again, 10.0)
    run(target)
    assert again.cached_tokens == 16
    assert again.times.first_token == pytest.approx(10.0 + 0.010 + 5 * 0.001)
    assert target.stats.prefix_cache_queries == 20 + 21
    assert target.stats.prefix_cache_hits == 16


def test_the_last_token_of_a_fully_cached_prompt_is_computed() -> None:
    target = engine()
    for now in (0.0, 10.0):
        job = sequence(range(16))
        target.submit(job, now)
        run(target)
    assert job.cached_tokens == 12
    check(target)


def test_sequences_of_one_step_share_their_prefix() -> None:
    target = engine(seqs=8)
    target.submit(sequence(range(500, 504)), 0.0)  # keeps the engine busy while the others arrive
    jobs = [sequence([*range(16), 100 + number]) for number in range(3)]
    for job in jobs:
        target.submit(job, 0.0)
    run(target)
    assert [job.cached_tokens for job in jobs] == [0, 16, 16]


def test_without_prefix_caching_nothing_is_counted_or_reused() -> None:
    target = engine(caching=False)
    for now in (0.0, 10.0):
        job = sequence(range(20))
        target.submit(job, now)
        run(target)
    assert job.cached_tokens == 0
    assert target.stats.prefix_cache_queries == target.stats.prefix_cache_hits == 0


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    target = engine()
    first = sequence(range(8), max_tokens=9)
    target.submit(first, 0.0)
    run(target)
    history = [int.from_bytes(first.data[at : at + 4], "little") for at in range(0, len(first.data), 4)]
    following = sequence([*history, 1, 2, 3])
    target.submit(following, 10.0)
    run(target)
    assert following.cached_tokens == 16  # 8 + 9 tokens; the 17th was never fed back, and fills no block


def test_old_prefixes_are_evicted_when_the_cache_is_full() -> None:
    target = engine(blocks=10)
    for start in (0, 100, 200):  # 5 blocks each
        target.submit(sequence(range(start, start + 20)), float(start))
        run(target)
    recent, old = sequence(range(200, 220)), sequence(range(20))
    target.submit(recent, 1000.0)
    run(target)
    target.submit(old, 2000.0)
    run(target)
    assert recent.cached_tokens == 16
    assert old.cached_tokens == 0


def test_requests_wait_for_a_place_in_the_batch_in_their_order() -> None:
    target = engine(seqs=2)
    jobs = [sequence(range(start, start + 4), max_tokens=2) for start in (0, 10, 20, 30)]
    for job in jobs:
        target.submit(job, 0.0)
    assert (len(target.running), len(target.waiting)) == (1, 3)
    first_step = target.next_event
    assert first_step is not None
    target.advance(first_step)
    assert (len(target.running), len(target.waiting)) == (2, 2)
    ends = [output.sequence for output in run(target) if output.finish_reason]
    assert ends == jobs
    starts = [job.times.first_scheduled for job in jobs]
    assert starts == sorted(starts, key=lambda value: value or 0.0)
    assert target.stats.queue_time.count == 4


def test_decode_slows_down_with_the_batch() -> None:
    timing = TimingModel(0.0, 0.0, 0.100, time_factor_under_load=3.0)
    assert timing.step_duration(0, False, 1, 5, 0) == pytest.approx(0.100)
    assert timing.step_duration(0, False, 3, 5, 0) == pytest.approx(0.200)
    assert timing.step_duration(0, False, 5, 5, 0) == pytest.approx(0.300)
    assert timing.step_duration(0, False, 1, 1, 0) == pytest.approx(0.100)


def test_a_long_prompt_is_computed_in_chunks_beside_running_sequences() -> None:
    target = engine(batched=10)
    running = sequence(range(500, 504), max_tokens=100)
    target.submit(running, 0.0)
    target.submit(job := sequence(range(25)), 0.0)
    while job.times.first_token is None:
        event = target.next_event
        assert event is not None
        target.advance(event)
    # The first step had no room for it; then 9 + 9 + 7 tokens, each step with one decode.
    assert job.times.first_token == pytest.approx(0.014 + (0.010 + 0.025) + 3 * 0.100)
    assert running.generated == 4


def test_preemption_takes_the_newest_sequence_and_it_still_finishes() -> None:
    target = engine(blocks=6)
    older, newer = sequence(range(8), max_tokens=12), sequence(range(50, 58), max_tokens=12)
    target.submit(older, 0.0)
    target.submit(newer, 0.0)
    outputs = run(target)
    assert older.preemptions == 0
    assert newer.preemptions >= 1
    assert target.stats.num_preemptions == newer.preemptions
    assert [output.sequence for output in outputs if output.finish_reason] == [older, newer]
    assert newer.generated == 12
    assert target.stats.generation_tokens == 24
    assert target.stats.prompt_tokens == 16
    check(target)


def test_an_adapter_waits_for_a_slot_while_others_pass() -> None:
    target = engine(loras=1)
    first = sequence(range(4), max_tokens=3, adapter="a")
    blocked = sequence(range(4), max_tokens=1, adapter="b")
    same = sequence(range(4), max_tokens=1, adapter="a")
    base = sequence(range(4), max_tokens=1)
    for job in (first, blocked, same, base):
        target.submit(job, 0.0)
    event = target.next_event
    assert event is not None
    target.advance(event)
    assert target.running == [first, same, base]
    assert list(target.waiting) == [blocked]
    assert list(target.stats.lora_info)[-1] == ("a", "b")
    run(target)
    assert blocked.times.first_scheduled == first.times.last_token
    assert list(target.stats.lora_info)[-1] == ("", "")


def test_a_sequence_that_lets_others_pass_keeps_its_place() -> None:
    target = engine(seqs=2, loras=1)
    first, blocked, passing, behind = (
        sequence(range(4), max_tokens=3, adapter=adapter) for adapter in ("a", "b", None, None)
    )
    for job in (first, blocked, passing, behind):
        target.submit(job, 0.0)
    event = target.next_event
    assert event is not None
    target.advance(event)
    assert target.running == [first, passing]
    assert list(target.waiting) == [blocked, behind]


def test_bringing_an_adapter_into_a_slot_takes_time_once() -> None:
    timing = TimingModel(0.0, 0.001, 0.0, lora_load_time=1.0)
    target = engine(loras=2, timing=timing)
    times: list[float] = []
    for now, adapter in ((0.0, "a"), (10.0, "b"), (20.0, "a"), (30.0, "c"), (40.0, "a"), (50.0, "b")):
        job = sequence([int(now) + 1], adapter=adapter)
        target.submit(job, now)
        run(target)
        times.append((job.times.first_token or 0.0) - now)
    # c takes the slot of b, which was used least recently.
    assert times == pytest.approx([1.001, 1.001, 0.001, 1.001, 0.001, 1.001])


def test_a_model_that_stops_by_itself() -> None:
    target = engine()
    target.submit(sequence(range(4), max_tokens=50, natural=3), 0.0)
    assert [output.finish_reason for output in run(target)] == [None, None, "stop"]
    assert target.stats.request_success["stop"] == 1


def test_an_answer_ends_at_the_context_length() -> None:
    target = Engine(EngineSettings(block_size=4, num_gpu_blocks=8, max_model_len=10))
    target.submit(job := sequence(range(8), max_tokens=100), 0.0)
    assert run(target)[-1].finish_reason == "length"
    assert job.total == 10


def test_abort_frees_blocks_at_once_and_the_rest_goes_on() -> None:
    target = engine(seqs=1)
    running, waiting, last = (sequence(range(start, start + 8), max_tokens=5) for start in (0, 20, 40))
    for job in (running, waiting, last):
        target.submit(job, 0.0)
    target.abort(waiting, 0.0)
    target.abort(running, 0.0)
    target.abort(running, 0.0)
    assert target.pool.in_use == 0
    outputs = run(target)
    assert {output.sequence for output in outputs} == {last}
    assert target.stats.request_success["abort"] == 2
    check(target)


def test_a_full_queue_refuses() -> None:
    target = engine(seqs=1, waiting=1)
    target.submit(sequence(range(4)), 0.0)
    target.submit(sequence(range(4)), 0.0)
    with pytest.raises(QueueFull):
        target.submit(sequence(range(4)), 0.0)
    assert len(target.waiting) == 1


def test_late_calls_do_not_change_what_happens() -> None:
    prompt = engine()
    late = engine()
    for target in (prompt, late):
        target.submit(sequence(range(10), max_tokens=5), 0.0)
        target.submit(sequence(range(100, 110), max_tokens=5), 0.0)
    steps = run(prompt)
    at_once = late.advance(1e6)
    assert [output.token for output in steps] == [output.token for output in at_once]
    assert prompt.stats.inter_token_latency.total == late.stats.inter_token_latency.total


def test_a_context_that_the_cache_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match="--num-gpu-blocks-override"):
        EngineSettings(block_size=4, num_gpu_blocks=2, max_model_len=9)
    assert EngineSettings(block_size=4, num_gpu_blocks=2).context_length == 8


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which shared prefix
        st.integers(1, 20),  # prompt length
        st.integers(1, 8),  # tokens to generate
        st.sampled_from([None, "a", "b", "c"]),
        st.floats(0, 0.3),  # time until the next action
        st.integers(0, 9),  # abort one when 0
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(ACTIONS, st.integers(7, 20), st.integers(1, 5), st.integers(3, 30))
def test_blocks_never_leak_and_every_request_ends(
    actions: list[tuple[int, int, int, str | None, float, int]], blocks: int, seqs: int, batched: int
) -> None:
    """Whatever comes, and however small the cache: the books balance, nothing stalls, and all is free at the end."""
    target = engine(blocks=blocks, seqs=seqs, batched=batched, loras=2)
    now = 0.0
    jobs = []
    for prefix, length, wanted, adapter, pause, chance in actions:
        job = sequence([prefix] * length, max_tokens=wanted, adapter=adapter)
        target.submit(job, now)
        jobs.append(job)
        check(target)
        if chance == 0:
            target.abort(jobs[len(jobs) // 2], now)
            check(target)
        now += pause
        target.advance(now)
        check(target)
    run(target)
    check(target)
    assert all(job.finished for job in jobs)
    assert not target.running
    assert not target.waiting
    assert target.pool.in_use == 0
    stats = target.stats
    assert sum(stats.request_success.values()) == len(jobs)
    assert stats.generation_tokens == sum(job.generated for job in jobs)
    assert stats.time_to_first_token.count == sum(1 for job in jobs if job.generated)
    assert stats.inter_token_latency.count == stats.generation_tokens - stats.time_to_first_token.count
    assert stats.num_preemptions == sum(job.preemptions for job in jobs)
    assert stats.prefix_cache_hits == sum(job.cached_tokens or 0 for job in jobs)
    assert stats.e2e_request_latency.total == pytest.approx(
        stats.queue_time.total + stats.prefill_time.total + stats.decode_time.total
    )
