# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory of a process and of those that it has started, as the kernel counts it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from conformance.kit.picker import Process


def resident(process: Process) -> int:
    """Bytes in memory now."""
    return sum(_status(pid, "VmRSS") for pid in _family(process.popen.pid))


def peak(process: Process) -> int:
    """The most bytes that each of them has had in memory, added up."""
    return sum(_status(pid, "VmHWM") for pid in _family(process.popen.pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _status(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
