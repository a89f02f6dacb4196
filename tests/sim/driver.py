# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs an engine in real time on an asyncio event loop, and hands each sequence's tokens to whoever waits for them.

Model time is loop time multiplied by `time_scale`. Steps that are due are completed in order, each at its own model
time, even when the loop wakes late: a busy machine delays tokens but does not change what the modelled server does.
While the engine is idle, nothing runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sim.engine import Engine, Output, Sequence

# uvloop's timers count milliseconds and fire early: a shorter wait would keep the loop spinning until the time comes.
_TIMER_RESOLUTION: Final = 0.001

Sink = Callable[[Output], None]


class Driver:
    """The clock of one engine."""

    def __init__(self, engine: Engine, time_scale: float = 1.0) -> None:
        """`time_scale`: seconds of model time per second, greater than 0. Call inside a running event loop."""
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._scale = time_scale
        self._origin = self._loop.time()
        self._wall_origin = time.time()
        self._timer: asyncio.Handle | None = None
        self._due: float | None = None  # loop time the timer is for
        self._sinks: dict[Sequence, Sink] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def now(self) -> float:
        """Return the present model time."""
        return (self._loop.time() - self._origin) * self._scale

    def wall_time(self, model_time: float) -> float:
        """Return the time since the epoch, in seconds, at which the model time is or was `model_time`."""
        return self._wall_origin + model_time / self._scale

    def submit(self, sequence: Sequence, sink: Sink) -> None:
        """Queue a sequence; `sink` is called, on the event loop, with each of its tokens. Raises QueueFull."""
        now = self.now()
        self._advance(now)
        self.engine.submit(sequence, now)
        self._sinks[sequence] = sink
        self._idle.clear()
        self._arm()

    def abort(self, sequence: Sequence) -> None:
        """End a sequence early; its sink is not called again. Does nothing if it has ended."""
        if self._sinks.pop(sequence, None) is None:
            return
        now = self.now()
        self._advance(now)
        self.engine.abort(sequence, now)
        self._settle()
        self._arm()

    async def wait_idle(self) -> None:
        """Wait until no sequence runs or waits."""
        await self._idle.wait()

    def close(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._due = None

    def _advance(self, now: float) -> None:
        """Complete the steps that are due, and deliver their tokens."""
        for output in self.engine.advance(now):
            sequence = output.sequence
            sink = self._sinks.get(sequence) if output.finish_reason is None else self._sinks.pop(sequence, None)
            if sink is not None:
                sink(output)
        self._settle()

    def _settle(self) -> None:
        """Note whether any sequence is left."""
        if not self._sinks:
            self._idle.set()

    def _arm(self) -> None:
        """Set the timer for the engine's next event, unless it is set for that already."""
        event = self.engine.next_event
        due = None if event is None else self._origin + event / self._scale
        if due == self._due:
            return
        self.close()
        if due is not None:
            self._due = due
            self._timer = self._loop.call_later(max(due - self._loop.time(), _TIMER_RESOLUTION), self._tick)

    def _tick(self) -> None:
        """Do what is due, and wait for the next event."""
        self._timer = self._due = None
        self._advance(self.now())
        self._arm()
