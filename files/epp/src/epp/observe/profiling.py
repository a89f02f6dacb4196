# SPDX-License-Identifier: GPL-3.0-or-later
"""What this process is doing, for ``/debug/pprof/``: where its time goes, where its tasks and threads stand.

The paths are those of Go's pprof; the content is Python's, as text. ``profile`` is in the collapsed form that flame
graph tools read: one line per stack, outermost frame first, and how often it was seen.
"""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import threading
import time
import traceback
from collections import Counter
from types import FrameType

INTERVAL = 0.01
"""Seconds between two looks at the stacks."""
MAX_SECONDS = 60.0
DEFAULT_SECONDS = 10.0

INDEX = """\
/debug/pprof/profile?seconds=N  where the time goes: stacks, sampled every 10 ms, in collapsed form (flame graphs)
/debug/pprof/goroutine          stacks of all tasks and threads now
/debug/pprof/heap               number of objects by type
"""


def profile(seconds: float) -> str:
    """Sample all threads but this one for so many seconds. Blocks: call it in a thread."""
    me, seen = threading.get_ident(), Counter[str]()
    end = time.monotonic() + min(max(seconds, INTERVAL), MAX_SECONDS)
    while time.monotonic() < end:
        for thread, frame in sys._current_frames().items():
            if thread != me:
                seen[_collapsed(frame)] += 1
        time.sleep(INTERVAL)
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common())


def stacks() -> str:
    """The stacks of all tasks of the running loop, and of all threads."""
    out = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        out.write(f"task {task.get_name()}\n")
        task.print_stack(file=out)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {names.get(ident, ident)}\n")
        traceback.print_stack(frame, file=out)
    return out.getvalue()


def objects(most: int = 100) -> str:
    """The commonest types among the objects that the garbage collector follows."""
    counts = Counter(type(each).__qualname__ for each in gc.get_objects())
    return "".join(f"{count}\t{name}\n" for name, count in counts.most_common(most))


def _collapsed(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "?")
        names.append(f"{module}.{code.co_qualname}:{frame.f_lineno}".replace(";", ","))
        frame = frame.f_back
    return ";".join(reversed(names))
