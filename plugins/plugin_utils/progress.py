# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long waits that show what they wait for, in a terminal as in a job log of AWX.

A module cannot print while it runs. So the action plugin runs it for a part of the time, prints what the module returns
as ``waited``, and has it wait on. A wait that ends within the first part costs nothing more than without this.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Protocol

from ansible.utils.display import Display

from ansible_collections.inferops.cluster.plugins.module_utils.errors import named, waited_in_vain

Json = Dict[str, Any]

FIRST, LATER = 10.0, 15.0  # seconds to the first line of progress, and between later ones
SHOWN = 3  # objects that a line of progress tells about
WIDTH = 200  # characters about one object; the failure at the end tells all
DEFAULT_TIMEOUT = 300  # seconds; the default of the modules' wait_timeout


class Run(Protocol):
    """Run the module once: with these options, which end in ``wait_timeout`` in seconds."""

    def __call__(self, wait_timeout: int) -> Json: ...


class Clock:
    """The whole time that a task has to wait, in parts."""

    def __init__(self, timeout: int) -> None:
        self._timeout = timeout
        self._started = time.monotonic()
        self._parts = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self._started

    def left(self) -> bool:
        """True when there is time for another part."""
        return self._timeout - self.elapsed >= 1

    def part(self) -> int:
        """The seconds of the next part; the last one gets what is left."""
        length = FIRST if not self._parts else LATER
        self._parts += 1
        rest = max(0, round(self._timeout - self.elapsed))
        return rest if rest < length * 1.5 else int(length)


def seconds(args: Json) -> Optional[int]:
    """The ``wait_timeout`` of a task; None when it is no number, which the module itself will say better."""
    given = args.get("wait_timeout")
    if given is None:
        return DEFAULT_TIMEOUT
    try:
        return int(given)
    except (TypeError, ValueError):
        return None


def unmet(result: Json) -> List[Json]:
    """What a result still waits for; empty when it has all, or when waiting longer cannot help."""
    waited = result.get("waited") or {}
    entries: List[Json] = waited.get("unmet") or []
    return [] if any(entry.get("final") for entry in entries) else entries


def tell(subject: str, result: Json, total: int, elapsed: float) -> None:
    """Print one line of progress."""
    waited = result["waited"]
    entries = waited["unmet"]
    what = "objects still exist" if waited["for"] == "gone" else f"of {total} objects not ready"
    shown = "; ".join(_summary(entry) for entry in entries[:SHOWN])
    more = f"; and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    Display().display(f"{subject}: {len(entries)} {what} after {elapsed:.0f} s: {shown}{more}")


def _summary(entry: Json) -> str:
    """The object, why it is not ready, and the first thing that is wrong with its pods."""
    detail = f" ({entry['details'][0]})" if entry.get("details") else ""
    text = f"{named(entry)}: {entry['reason']}{detail}"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def retold(result: Json, total: int, elapsed: float, prefix: str = "") -> None:
    """Make a failed result speak of the whole wait instead of its last part."""
    result["waited"] = {**result["waited"], "total": total, "seconds": round(elapsed, 1)}
    result.pop("exception", None)  # ansible-core's own note of the message that is replaced here
    result["msg"] = prefix + waited_in_vain(result["waited"])


def identity(entry: Json) -> tuple[Any, ...]:
    """What makes two entries of results the same object, and its place in the API."""
    return tuple(entry.get(part) for part in ("api_version", "kind", "namespace", "name"))
