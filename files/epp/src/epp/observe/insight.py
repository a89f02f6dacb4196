# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person may ask of the processes that decide: their last decisions, and what they are doing."""

from __future__ import annotations

import asyncio
from typing import Any

from epp.observe import profiling
from epp.observe.decisions import KEPT, DecisionLog


class Insight:
    """Of this process. Belongs to one event loop."""

    def __init__(self, decisions: DecisionLog | None = None) -> None:
        self._decisions = DecisionLog() if decisions is None else decisions

    async def decisions(self, limit: int = KEPT, model: str = "") -> list[dict[str, Any]]:
        """As :meth:`DecisionLog.newest`."""
        return self._decisions.newest(limit, model)

    async def profile(self, seconds: float) -> str:
        """As :func:`epp.observe.profiling.profile`; the event loop goes on meanwhile."""
        return await asyncio.to_thread(profiling.profile, seconds)

    async def stacks(self) -> str:
        """As :func:`epp.observe.profiling.stacks`."""
        return profiling.stacks()

    async def objects(self) -> str:
        """As :func:`epp.observe.profiling.objects`."""
        return profiling.objects()
