# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parent hears of what workers tell each other: less, and the same in the end."""

from __future__ import annotations

import asyncio

from epp.datalayer import Datastore
from epp.model import Endpoint
from epp.statesync import Ledger
from epp.statesync.messages import VERSION, News, PoolNews
from epp.workers import digest
from epp.workers.digest import Digest

HERE, THERE = "10.0.0.1:8000", "10.0.0.2:8000"


def news(serial: int, load: dict[str, tuple[int, int]], *sent: str, whole: bool = False) -> News:
    pool = PoolNews(load, whole, [(where, 7) for where in sent], [("prefix", where, b"12345678") for where in sent])
    return News(VERSION, "worker", {"pool": pool}, serial=serial)


class Parent:
    """Takes over what it hears, and notes which endpoints had traffic."""

    def __init__(self) -> None:
        self.heard: list[News] = []
        self.store = Datastore("pool")
        self.ledger = Ledger("parent", {"pool": self.store})
        self.store.replace([Endpoint(f"e{n}", "ns", f"p{n}", f"10.0.0.{n}", 8000) for n in (1, 2)])
        self.busy: list[str] = []
        self.store.on_acquired(lambda endpoint: self.busy.append(endpoint.hostport))

    def hear(self, said: News) -> None:
        self.heard.append(said)
        self.ledger.hear(said, 0.0)

    def loads(self) -> list[int]:
        return [endpoint.inflight for endpoint in self.store.endpoints()]


async def test_many_become_one() -> None:
    parent = Parent()
    gathered = Digest(parent.hear)
    gathered.add(news(1, {HERE: (1, 10)}, HERE))
    gathered.add(news(2, {HERE: (3, 30), THERE: (1, 5)}, HERE, HERE, THERE))
    gathered.add(news(3, {HERE: (2, 20)}))
    assert parent.heard == []
    await asyncio.sleep(2 * digest.DELAY_SECONDS)
    (said,) = parent.heard
    assert said.serial == 3
    assert said.pools["pool"].prefixes == []
    assert parent.loads() == [2, 1]
    gathered.add(news(4, {HERE: (0, 0)}))
    gathered.tell()
    assert parent.loads() == [0, 1]
    await asyncio.sleep(2 * digest.DELAY_SECONDS)
    assert len(parent.heard) == 2, "what was handed over is not said again"


async def test_traffic_that_was_over_in_between() -> None:
    parent = Parent()
    gathered = Digest(parent.hear)
    gathered.add(news(1, {THERE: (0, 0)}, THERE))
    gathered.tell()
    assert parent.loads() == [0, 0]
    assert set(parent.busy) == {THERE}


async def test_whole_counts_replace_what_came_before() -> None:
    parent = Parent()
    gathered = Digest(parent.hear)
    gathered.add(news(1, {HERE: (4, 4)}, HERE))
    gathered.tell()
    gathered.add(news(2, {HERE: (5, 5)}, HERE))
    gathered.add(news(3, {THERE: (1, 1)}, whole=True))
    gathered.add(news(4, {THERE: (2, 2)}))
    gathered.tell()
    assert parent.loads() == [0, 2], "whoever is not named in whole counts has nothing"


async def test_goodbye_is_the_last_word() -> None:
    parent = Parent()
    gathered = Digest(parent.hear)
    gathered.add(news(1, {HERE: (4, 4)}))
    gathered.tell()
    gathered.add(news(2, {HERE: (5, 5)}))
    gathered.add(News(VERSION, "worker", {}, goodbye=True))
    assert parent.loads() == [0, 0]
    await asyncio.sleep(2 * digest.DELAY_SECONDS)
    assert parent.ledger.peers == {}
    assert parent.loads() == [0, 0]
