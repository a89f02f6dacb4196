# SPDX-License-Identifier: GPL-3.0-or-later
"""What waiting costs, within twice the memory and ten times the CPU time that are promised: 20 000 requests in 200 MB,
100 µs per dispatch. ``python -m benchmarks.flowcontrol`` tells the figures themselves."""

from __future__ import annotations

from benchmarks.flowcontrol import STRICT, TURNS, UTILIZATION, dispatch, memory


async def test_memory() -> None:
    found = await memory(4000, 2000)
    assert found.total / found.requests < 2 * 200e6 / 20_000


async def test_dispatch() -> None:
    for fairness in (STRICT, TURNS):
        assert await dispatch(fairness, UTILIZATION, endpoints=10, flows=1000, requests=2000) < 10 * 100
