# SPDX-License-Identifier: GPL-3.0-or-later
"""Event loops on threads of their own, for everything asynchronous; the cases themselves are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine


class Loop:
    """Runs coroutines for other threads."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name=name, daemon=True).start()

    def run[T](self, work: Coroutine[object, object, T], seconds: float = 90.0) -> T:
        """Run to the end and return the result; raises what the coroutine raises, or TimeoutError."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise


CLIENT = Loop("client")
ENGINES = Loop("engines")
"""Apart from the client's, so that a large body in one does not hold up the other."""
