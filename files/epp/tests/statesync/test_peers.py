# SPDX-License-Identifier: GPL-3.0-or-later
"""Two and more processes' worth of peers over real sockets, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
import zmq
import zmq.asyncio

from epp.datalayer import Datastore
from epp.datalayer.prefix import PrefixIndex
from epp.model import Charge, Endpoint
from epp.statesync import Ledger, PeersOptions, StateSync, peers
from epp.statesync.messages import News

BLOCKS = [11, 12, 13]


class Index:
    """A learner on a real prefix index."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.known = self.index.held

    def learn(self, endpoint: Endpoint, hashes: list[int]) -> None:
        self.index.add(endpoint, hashes, 100)


class Replica:
    """One process."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        self.store = Datastore("pool")
        self.store.replace([Endpoint("e", "ns", "p", "10.0.0.1", 8000)])
        self.prefixes = Index()
        self.store.journal.teach("prefixes", self.prefixes)
        self.peers = 0
        ledger = Ledger(name, {"pool": self.store})
        self.sync = StateSync(ledger, PeersOptions(0, names, "127.0.0.1"), self.count)

    def count(self, peers: int) -> None:
        self.peers = peers

    @property
    def endpoint(self) -> Endpoint:
        return self.store.endpoints()[0]

    def matched(self) -> int:
        """Blocks that are believed to be cached."""
        return self.prefixes.index.match(BLOCKS, [self.endpoint]).get(self.endpoint, 0)


@contextlib.asynccontextmanager
async def running(replica: Replica) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(replica.sync.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        replica.sync.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def first(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Replica, int]]:
    monkeypatch.setattr(peers, "RESOLVE_SECONDS", 0.05)
    replica = Replica("first", ())
    port = replica.sync.start()
    async with running(replica):
        yield replica, port


async def test_a_request_is_known_to_the_peer(first: tuple[Replica, int]) -> None:
    here, port = first
    there = Replica("second", (f"127.0.0.1:{port}",))
    there.sync.start()
    async with running(there):
        hold = here.store.hold([Charge(here.endpoint, 9, 0)])
        await until(lambda: there.endpoint.inflight == 1 and there.peers == 1)
        hold.release()
        await until(lambda: there.endpoint.inflight == 0)


async def test_a_newcomer_is_told_what_is_cached(first: tuple[Replica, int]) -> None:
    here, port = first
    here.prefixes.learn(here.endpoint, BLOCKS)
    there = Replica("second", (f"localhost:{port}", f"127.0.0.1:{port}"))
    there.sync.start()
    async with running(there):
        await until(lambda: there.matched() == 3)


async def test_a_peer_that_ends_says_goodbye(first: tuple[Replica, int]) -> None:
    here, port = first
    there = Replica("second", (f"127.0.0.1:{port}",))
    back = there.sync.start()
    here.sync._options = PeersOptions(0, (f"127.0.0.1:{back}",), "127.0.0.1")
    async with running(there):
        there.store.hold([Charge(there.endpoint, 9, 0)])
        await until(lambda: here.endpoint.inflight == 1)
    await until(lambda: here.endpoint.inflight == 0)
    assert here.sync._ledger.peers == {}


async def test_nonsense_is_ignored_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    context = zmq.asyncio.Context()
    liar = context.socket(zmq.PUB)
    port = liar.bind_to_random_port("tcp://127.0.0.1")
    here = Replica("first", (f"127.0.0.1:{port}",))
    here.sync.start()
    with caplog.at_level(logging.WARNING):
        async with running(here) as task:
            while "not understood" not in caplog.text:
                await liar.send_multipart((peers.EVERYBODY, b"\x93nonsense"))
                await asyncio.sleep(0.01)
            assert not task.done()
    liar.close(linger=0)
    context.term()
    assert caplog.text.count("not understood") == 1


async def test_a_name_that_cannot_be_resolved_is_said(caplog: pytest.LogCaptureFixture) -> None:
    here = Replica("first", ("peers.invalid:9006",))
    here.sync.start()
    with caplog.at_level(logging.WARNING):
        async with running(here) as task:
            await until(lambda: "peers.invalid" in caplog.text)
            assert not task.done()


async def test_a_port_that_is_taken() -> None:
    here = Replica("first", ())
    port = here.sync.start()
    there = StateSync(Ledger("second", {}), PeersOptions(port, (), "127.0.0.1"))
    with pytest.raises(OSError, match=f"--statesync-port={port}"):
        there.start()
    there.close()
    here.sync.close()


async def test_processes_of_one_replica() -> None:
    """They find each other by their own addresses, and are no replicas to be counted."""
    places = [f"ipc://@epp-test-{uuid.uuid4()}" for _ in range(2)]
    here, there = Replica("one/0", ()), Replica("one/1", ())
    for index, each in enumerate((here, there)):
        each.sync._options = PeersOptions(0, (), own=places[index], siblings=[places[1 - index]], index=index, ports=2)
        assert each.sync.start() == 0
    told: list[News] = []
    here.sync.on_news = told.append
    async with running(here), running(there):
        here.store.hold([Charge(here.endpoint, 9, 0)])
        await until(lambda: there.endpoint.inflight == 1)
        assert there.peers == 0
        assert {"10.0.0.1:8000": (1, 9)} in [news.pools["pool"].load for news in told]


async def test_all_processes_of_other_replicas_are_listened_to() -> None:
    here = Replica("one/1", ("127.0.0.1", "127.0.0.1:8000"))
    here.sync._options = PeersOptions(7000, here.sync._options.names, "127.0.0.1", ports=2, index=1)
    found = {address for name in here.sync._options.names for address in await here.sync._addresses(name)}
    assert found == {f"tcp://127.0.0.1:{port}" for port in (7000, 7001, 8000, 8001)}
    here.sync.close()
