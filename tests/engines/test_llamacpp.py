# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp's real server: its page is what we take it for, and the EPP reads its load."""

from __future__ import annotations

import pytest
from conformance.kit.pages import Figures
from conformance.kit.pages import llamacpp as ours

from engines.compare import differences, read, read_by_us
from engines.reader import idle, reading, until
from engines.server import Server, load

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

KV = "llamacpp:kv_cache_usage_ratio"
"""Older servers have it."""


def test_the_page(llamas: tuple[Server, Server]) -> None:
    page = llamas[0].page()
    assert differences(ours(Figures()), page) == []
    assert read(page, "llamacpp") == read(ours(Figures()), "llamacpp") == read_by_us("llamacpp") - {KV}


async def test_the_load(llamas: tuple[Server, Server]) -> None:
    """With twice as many requests as slots the EPP sees full slots and a queue, and none of it afterwards."""
    server = llamas[0]
    async with reading(server) as endpoint:
        await until(endpoint, "idle at first", idle)
        with load(server.ask, 2 * server.slots):
            metrics = await until(
                endpoint, "a queue", lambda found: found.running == server.slots and found.waiting > 0
            )
            assert metrics.waiting <= server.slots, "no more wait than there are beyond the slots"
            assert metrics.kv_cache_usage == 0.0, "it says nothing of its KV cache"
        await until(endpoint, "idle again", idle)
