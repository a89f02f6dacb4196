# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs properties for a given time: ``FUZZ_SECONDS`` over all targets, 30 unless said otherwise.

A target is one hypothesis test; it is run in rounds with fresh seeds until its share of the time is used up. Beside
what each target asserts, no example may take long, and memory must not grow once the caches are full.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))
TARGETS = 10
LONGEST = 5.0
"""Seconds that one example may take, on a machine that is busy."""
GROWTH = 64 * 2**20
"""Bytes by which memory may grow after the first third of the time."""

ROUND = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def resident() -> int:
    """Bytes of this process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/fuzz/" in str(item.path):
            item.add_marker(pytest.mark.timeout(SECONDS / TARGETS * 2 + 120))


class Campaign:
    """Runs one target for its share of the time."""

    def __init__(self) -> None:
        self.examples = 0
        self.slowest = 0.0

    def timed(self, example: Callable[[], None]) -> None:
        """One example; call it inside of the property."""
        started = time.monotonic()
        example()
        self.examples += 1
        self.slowest = max(self.slowest, time.monotonic() - started)
        assert time.monotonic() - started < LONGEST, "an example took too long"

    def run(self, target: Callable[[], None]) -> None:
        """Rounds of the target until its time is over."""
        share = SECONDS / TARGETS
        started = time.monotonic()
        settled = 0
        while (used := time.monotonic() - started) < share or not settled:
            target()
            if not settled and used >= share / 3:
                settled = resident()
        grown = resident() - settled
        print(f"{self.examples} examples, slowest {self.slowest * 1000:.1f} ms, memory {grown / 2**20:+.1f} MiB")
        assert grown < GROWTH, f"memory grew by {grown} bytes"


@pytest.fixture
def campaign() -> Campaign:
    return Campaign()


@pytest.fixture
def one_round() -> settings:
    """Settings of one round."""
    return ROUND
