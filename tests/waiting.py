# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting in tests for what somebody else does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Ask again and again until it holds. Raises AssertionError, which says ``what`` did not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
