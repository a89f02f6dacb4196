# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of slow steps, with elapsed time: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

_TERMINAL_TICK_S = 1.0
_LOG_TICK_S = 20.0


def elapsed(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s"


class Step:
    """One running step. `note` replaces the remark that is shown behind its title."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title = title
        self._stream = stream
        self._note = ""
        self._live = stream.isatty()
        self._start = time.monotonic()
        self._finished = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name=f"progress {title}", daemon=True)

    def note(self, text: str) -> None:
        """Say what the step is doing now; shown with the next tick, and in the last line."""
        self._note = text

    def __enter__(self) -> Step:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._ticker.join()
        self._write("failed after " if kind else "", final=True)

    def _tick(self) -> None:
        interval = _TERMINAL_TICK_S if self._live else _LOG_TICK_S
        while not self._finished.wait(interval):
            self._write("... ", final=False)

    def _write(self, state: str, *, final: bool) -> None:
        note = f" ({self._note})" if self._note else ""
        line = f"{self._title}{note}: {state}{elapsed(time.monotonic() - self._start)}"
        if self._live:
            if not final:
                # A wrapped line could not be overwritten by the next tick.
                line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if final else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


class Progress:
    """Where the lab reports to. `stream` defaults to standard error, so that standard output stays for results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    def say(self, text: str) -> None:
        """One line, now."""
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show `title` with its elapsed time until the block ends."""
        with Step(title, self._stream) as step:
            yield step
