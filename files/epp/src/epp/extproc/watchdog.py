# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends a decision that hangs in synchronous code.

Decisions are made in the event loop, because they take microseconds and share state. A plugin that loops or blocks
would so stop everything, and no timer of the loop could help. So a thread watches how long the decision at work takes;
when it takes too long, it sends this process a signal, whose handler raises :class:`Hung` out of whatever code the main
thread is in, be it a loop or a blocking call. Only C code that never comes back cannot be ended so; then the health
service stops answering, and the kubelet restarts the container.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType

log = logging.getLogger(__name__)

SECONDS = 2.0
"""How long the synchronous part of a decision may take. It takes milliseconds even for the largest prompts."""


class Hung(BaseException):
    """A decision took too long. No Exception, so that a plugin's own ``except Exception`` does not swallow it."""


class Watchdog:
    """Watches one decision at a time; a context manager around each."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._began = 0.0
        """When the decision at work began (monotonic), 0.0 while there is none."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch; call it in the main thread, the only one that signals reach."""
        signal.signal(signal.SIGUSR2, self._interrupt)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._began = 0.0

    def _late(self) -> bool:
        began = self._began
        return began > 0.0 and time.monotonic() - began >= self._seconds

    def _watch(self) -> None:
        main = threading.main_thread().ident
        while not self._stop.wait(self._seconds / 4):
            if self._late() and main is not None:
                signal.pthread_kill(main, signal.SIGUSR2)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler. The decision may have ended while the signal was on its way."""
        if self._late():
            self._began = 0.0
            raise Hung(f"the decision took more than {self._seconds:g} s")
