# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for something to become true, with the last answer in the error."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Patience:
    """How long a case waits for an effect before it fails: far more than any picker should need, no case measures.

    Where a picker is known to do something else, there is no point in waiting long for what will not come.
    """

    seconds: float


LONG, SHORT = 30.0, 1.0
PATIENCE = Patience(LONG)


def eventually[T](ask: Callable[[], T], wanted: Callable[[T], bool] = bool) -> T:
    """Ask until the answer is wanted, and return it. AssertionError and OSError from ``ask`` count as not yet."""
    seconds = PATIENCE.seconds
    end = time.monotonic() + seconds
    while True:
        last: object
        try:
            answer = ask()
            if wanted(answer):
                return answer
            last = answer
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() >= end:
            raise AssertionError(f"not within {seconds:g} s; the last answer was: {last!r}")
        time.sleep(0.03)
