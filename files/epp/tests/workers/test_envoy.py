# SPDX-License-Identifier: GPL-3.0-or-later
"""One thread of the real Envoy, before several workers: it opens as many connections as they want."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from benchmarks import rig

from epp.workers.crew import BALANCE_SECONDS
from epp.workers.worker import STREAMS

from .conftest import Picker, Start

pytestmark = pytest.mark.envoy

HELD = 3 * STREAMS
"""Requests at the same time."""


@pytest.fixture
def pods(endpoints: Path) -> tuple[str, ...]:
    return tuple(f"{each['address']}:{each['port']}" for each in json.loads(endpoints.read_text())["endpoints"])


@pytest.mark.parametrize("tls", [False, True])
async def test_one_thread_is_served_by_all(start: Start, pods: tuple[str, ...], tls: bool) -> None:
    with start(f"--secure-serving={str(tls).lower()}") as picker:
        with rig.envoy(rig.EnvoyOptions(pods, picker.epp.grpc_port, tls=tls)) as url:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                for _ in range(2):  # the first burst opens connections, the second one finds them
                    statuses = await asyncio.gather(*(ask(session, url, number) for number in range(HELD)))
                    assert Counter(statuses) == {200: HELD}
                found = picker.per_worker()
        assert min(found[0], found[1]) >= sum(found.values()) / 5
        assert "ends, for it broke" not in picker.process.tail(100_000)


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> int:
    """A streamed answer, which keeps the request in flight for a while; returns the status."""
    body = {"model": "llama", "prompt": f"{number}", "stream": True}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def test_what_a_worker_sheds_is_no_error(start: Start, pods: tuple[str, ...]) -> None:
    """Envoy connects anew when it is asked to, and no request fails for it."""
    with start() as picker, rig.envoy(rig.EnvoyOptions(pods, picker.epp.grpc_port, tls=False)) as url:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(ask(session, url, number) for number in range(HELD)))
            kill(picker)
            failed = Counter[int]()
            while not picker.whole() or sum(failed.values()) < 2 * HELD:
                failed.update(await asyncio.gather(*(ask(session, url, number) for number in range(HELD))))
            assert picker.whole()
            assert failed[200] >= sum(failed.values()) - HELD, "only what the dead one had may fail"
            await asyncio.sleep(3 * BALANCE_SECONDS)
            for _ in range(2):
                assert set(await asyncio.gather(*(ask(session, url, number) for number in range(HELD)))) == {200}
            found = picker.per_worker()
            assert min(found[0], found[1]) > 0


def kill(picker: Picker) -> None:
    """End the first worker."""
    os.kill(picker.workers()[0], signal.SIGKILL)
