# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounds on what a peer can make this process do for nothing.

Two things are counted per connection, and both limits are far beyond what any gateway does:

* frames that bring no message closer (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA, CONTINUATION, unknown ones):
  all floods that were ever found in HTTP/2 are made of these. The count begins anew every second.
* streams that the peer resets before they were answered ("rapid reset"): as many as it may have open at once, and
  further ones only as fast as calls end well, or slowly.
"""

from __future__ import annotations

from typing import Final

from epp.transport.h2 import frames as f

IDLE_FRAMES: Final = 10_000
"""Frames without a purpose per second."""

RESETS_PER_SECOND: Final = 100


class Guard:
    """The counts of one connection."""

    __slots__ = ("_burst", "_idle", "_resets")

    def __init__(self, streams: int) -> None:
        """``streams`` is how many streams the peer may have open."""
        self._idle = 0
        self._burst = self._resets = max(streams, RESETS_PER_SECOND)

    def idle_frame(self) -> None:
        """A frame without a message. Raises ConnectionFailed when there are too many."""
        self._idle += 1
        if self._idle > IDLE_FRAMES:
            raise f.ConnectionFailed(f.ENHANCE_YOUR_CALM, f"more than {IDLE_FRAMES} frames to no purpose in a second")

    def reset(self) -> None:
        """The peer has reset a stream that was not answered. Raises ConnectionFailed when it does little else."""
        self._resets -= 1
        if self._resets < 0:
            raise f.ConnectionFailed(f.ENHANCE_YOUR_CALM, "most streams are reset before they are answered")

    def ended_well(self) -> None:
        """A call has ended as calls should."""
        if self._resets < self._burst:
            self._resets += 1

    def second(self) -> None:
        """A second has passed."""
        self._idle = 0
        self._resets = min(self._burst, self._resets + RESETS_PER_SECOND)
