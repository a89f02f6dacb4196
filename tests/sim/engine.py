# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler of one simulated server: continuous batching over a paged KV cache, in steps, as vLLM's V1 engine
works.

It has no clock and no input or output of its own. Its owner tells it the time: `submit` and `abort` change what there
is to do, `advance(now)` completes the steps that end by `now` and returns the tokens they produced, and `next_event`
says when to call again. The same engine therefore runs in real time behind HTTP and in virtual time in a test.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sim.kvcache import BlockHash, BlockId, BlockPool, extend_hashes, root_hash
from sim.settings import EngineSettings
from sim.stats import FinishReason, RequestTimes, Stats
from sim.tokens import BYTES_PER_TOKEN, TextGenerator


class QueueFull(Exception):
    """The waiting queue is at its limit; nothing was submitted."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and the tokens generated for it. Lengths in tokens."""

    prompt: bytes
    """Token bytes (see `sim.tokens`), not empty."""
    max_tokens: int
    generator: TextGenerator
    natural_length: int | None = None
    """Length of the answer after which the model stops by itself; None: only `max_tokens` ends it."""
    adapter: str | None = None
    cache_salt: str | None = None

    # The engine's own state.
    data: bytearray = field(init=False)
    root: BlockHash = field(init=False)
    hashes: list[BlockHash] = field(default_factory=list, init=False)
    blocks: list[BlockId] = field(default_factory=list, init=False)
    computed: int = field(default=0, init=False)
    published: int = field(default=0, init=False)
    generated: int = field(default=0, init=False)
    cached_tokens: int | None = field(default=None, init=False)
    preemptions: int = field(default=0, init=False)
    finished: bool = field(default=False, init=False)
    times: RequestTimes = field(init=False)

    def __post_init__(self) -> None:
        """Start with the prompt as the whole sequence."""
        if not self.prompt:
            raise ValueError("a prompt must have at least one token")
        self.data = bytearray(self.prompt)
        self.root = root_hash(self.adapter, self.cache_salt)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt) // BYTES_PER_TOKEN

    @property
    def total(self) -> int:
        """Length of the prompt and the tokens generated so far."""
        return len(self.data) // BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Output:
    """One generated token; `finish_reason` is set on the last one of its sequence."""

    sequence: Sequence
    token: bytes
    finish_reason: FinishReason | None


class Engine:
    """A batch of running sequences, a first-come-first-served queue of waiting ones, and the blocks they share."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.pool = BlockPool(settings.num_gpu_blocks, settings.enable_prefix_caching)
        self.stats = Stats(settings.context_length)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.revision = 0
        """Changes whenever anything that the metrics show may have changed."""
        self._scheduled: list[tuple[Sequence, int]] = []
        self._step_end: float | None = None
        self._lora_slots: dict[str, None] = {}  # adapters on the device, the least recently scheduled first
        if settings.max_loras:
            self.stats.record_lora("", "", 0.0)

    @property
    def next_event(self) -> float | None:
        """Model time at which `advance` has something to do; None while idle."""
        return self._step_end

    def submit(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence; it starts at once if the engine is idle. Call `advance(now)` first.

        Raises QueueFull when `max_waiting` sequences wait already. The sequence must fit the context length.
        """
        limit = self.settings.max_waiting
        if limit is not None and len(self.waiting) >= limit:
            raise QueueFull(f"{len(self.waiting)} requests wait already")
        sequence.times = RequestTimes(arrival=now)
        extend_hashes(sequence.hashes, sequence.root, sequence.data, self.settings.block_size)
        self.waiting.append(sequence)
        if self._step_end is None:
            self._begin_step(now)
        else:
            self._changed(now)

    def abort(self, sequence: Sequence, now: float) -> None:
        """End a sequence early and free its blocks; does nothing if it has ended. Call `advance(now)` first."""
        if sequence.finished:
            return
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
        self._finish(sequence, "abort")
        self._changed(now)

    def advance(self, now: float) -> list[Output]:
        """Complete all steps that end by `now`, starting each next step when the last one ended, and return their
        tokens in order.
        """
        outputs: list[Output] = []
        while self._step_end is not None and self._step_end <= now:
            end = self._step_end
            self._complete_step(end, outputs)
            self._begin_step(end)
        return outputs

    def _changed(self, now: float) -> None:
        """Note a change of state, and which adapters run and wait since it."""
        self.revision += 1
        if self.settings.max_loras:
            running = dict.fromkeys(s.adapter for s in self.running if s.adapter)
            waiting = dict.fromkeys(s.adapter for s in self.waiting if s.adapter)
            self.stats.record_lora(",".join(running), ",".join(waiting), now)

    def _begin_step(self, now: float) -> None:
        """Choose what the next step computes, running sequences first, and when it ends; go idle if there is nothing
        to do.
        """
        self._scheduled = []
        preempted, budget = self._schedule_running(self.settings.max_num_batched_tokens)
        admitted = loads = 0
        if not preempted:
            admitted, loads = self._schedule_waiting(budget, now)
        self._step_end = now + self._duration(admitted, loads) if self._scheduled else None
        self._changed(now)

    def _duration(self, admitted: int, lora_loads: int) -> float:
        """Return the seconds that the scheduled step takes, in which `admitted` sequences start their prefill."""
        prefill_tokens = decodes = 0
        for sequence, tokens in self._scheduled:
            if sequence.generated and sequence.computed == sequence.total - 1:
                decodes += 1
            else:
                prefill_tokens += tokens
        self.stats.iteration_tokens.observe(prefill_tokens + decodes)
        return self.settings.timing.step_duration(
            prefill_tokens, admitted > 0, decodes, self.settings.max_num_seqs, lora_loads
        )

    def _schedule_running(self, budget: int) -> tuple[bool, int]:
        """Give each running sequence its next tokens; when blocks run out, preempt from the end of the batch.

        Returns whether anything was preempted, and the tokens left of `budget`.
        """
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            tokens = min(sequence.total - sequence.computed, budget)
            while not self._grow(sequence, tokens):
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    return preempted, budget
            self._scheduled.append((sequence, tokens))
            budget -= tokens
            index += 1
        return preempted, budget

    def _schedule_waiting(self, budget: int, now: float) -> tuple[int, int]:
        """Admit waiting sequences in order while places, tokens of `budget` and blocks last.

        Returns how many were admitted, and how many adapters had to be brought into a slot for them. A sequence whose
        adapter finds no free slot lets others pass, and keeps its place in the queue.
        """
        active = {s.adapter for s in self.running if s.adapter}
        skipped: list[Sequence] = []
        admitted = loads = 0
        while self.waiting and budget > 0 and len(self.running) < self.settings.max_num_seqs:
            sequence = self.waiting[0]
            adapter = sequence.adapter
            if adapter and adapter not in active and len(active) >= self.settings.max_loras:
                skipped.append(self.waiting.popleft())
                continue
            tokens = self._admit(sequence, budget, now)
            if not tokens:
                break
            self.running.append(self.waiting.popleft())
            admitted += 1
            budget -= tokens
            if adapter:
                active.add(adapter)
                loads += self._use_slot(adapter, active)
        self.waiting.extendleft(reversed(skipped))
        return admitted, loads

    def _admit(self, sequence: Sequence, budget: int, now: float) -> int:
        """Find the cached prefix of a waiting sequence, take its first blocks and schedule it; return its tokens, 0
        for no room.
        """
        size = self.settings.block_size
        # The last token is always computed: its result is the first token of the answer.
        found = self.pool.find(sequence.hashes, (sequence.total - 1) // size)
        computed = len(found) * size
        tokens = min(sequence.total - computed, budget)
        blocks = self.pool.allocate(found, -(-(computed + tokens) // size) - len(found))
        if blocks is None:
            return 0
        if sequence.cached_tokens is None:
            sequence.cached_tokens = computed
            sequence.times.first_scheduled = now
            if self.settings.enable_prefix_caching:
                self.stats.prefix_cache_queries += sequence.total
                self.stats.prefix_cache_hits += computed
        sequence.blocks = found + blocks
        sequence.computed = computed
        sequence.published = len(found)
        self._publish(sequence, computed + tokens)
        self._scheduled.append((sequence, tokens))
        return tokens

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Take the blocks that `tokens` more tokens need; False if there are not enough."""
        size = self.settings.block_size
        missing = -(-(sequence.computed + tokens) // size) - len(sequence.blocks)
        if missing > 0:
            blocks = self.pool.allocate((), missing)
            if blocks is None:
                return False
            sequence.blocks += blocks
        self._publish(sequence, sequence.computed + tokens)
        return True

    def _publish(self, sequence: Sequence, length: int) -> None:
        """Make the blocks that are full at `length` tokens known. Like vLLM, as soon as they are scheduled: a
        sequence of the same step can share them already.
        """
        full = length // self.settings.block_size
        if full <= sequence.published:
            return
        extend_hashes(sequence.hashes, sequence.root, sequence.data, self.settings.block_size)
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = full

    def _use_slot(self, adapter: str, active: set[str]) -> int:
        """Bring an adapter into a slot, evicting the least recently scheduled one that no running sequence uses; 1 if
        it was loaded.
        """
        loaded = adapter not in self._lora_slots
        if loaded and len(self._lora_slots) >= self.settings.max_loras:
            del self._lora_slots[next(name for name in self._lora_slots if name not in active)]
        self._lora_slots.pop(adapter, None)
        self._lora_slots[adapter] = None
        return int(loaded)

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back at the head of the queue; what it computed is recomputed, or found in the
        cache, later.
        """
        self._free(sequence)
        sequence.preemptions += 1
        self.stats.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        """Give back the blocks of a sequence."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0

    def _complete_step(self, now: float, outputs: list[Output]) -> None:
        """Apply the results of the scheduled step; sequences whose whole content is computed get their next token."""
        ended = False
        for sequence, tokens in self._scheduled:
            if sequence.finished:
                continue  # aborted during the step
            sequence.computed += tokens
            if sequence.computed < sequence.total:
                continue  # a chunk of its prefill
            token = sequence.generator.next()
            sequence.data += token
            sequence.generated += 1
            self.stats.record_token(sequence.times, now, sequence.prompt_tokens)
            reason = self._finish_reason(sequence)
            outputs.append(Output(sequence, token, reason))
            if reason:
                self._finish(sequence, reason)
                ended = True
        if ended:
            self.running = [s for s in self.running if not s.finished]

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        """Return why a sequence ends with the token that it just got, or None if it goes on."""
        if sequence.natural_length is not None and sequence.generated >= sequence.natural_length:
            return "stop"
        if sequence.generated >= sequence.max_tokens or sequence.total >= self.settings.context_length:
            return "length"
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence: free its blocks and count it."""
        sequence.finished = True
        self._free(sequence)
        self.stats.record_finished(
            sequence.times, reason, sequence.prompt_tokens, sequence.generated, sequence.max_tokens
        )
