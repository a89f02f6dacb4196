# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines that publish over real sockets, and what is heard of them: in order, after gaps, after they begin again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from ports import free_port

from epp.datalayer import Datastore, kvlisten
from epp.datalayer.kvevents import Batch
from epp.datalayer.kvlisten import Listener, ListenOptions
from epp.model import Endpoint


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


class Engine:
    """Publishes as vLLM does, and repeats what it has said, with topics or without."""

    def __init__(self, address: str, port: int, replay_port: int = 0, topics: bool = False) -> None:
        self.context = zmq.asyncio.Context()
        self.publisher = self.context.socket(zmq.PUB)
        self.topic = f"kv@{address}@m".encode()
        self.number = 0
        self.kept: list[tuple[int, bytes]] = []
        self.topics = topics
        self.asked: list[int] = []
        self.task: asyncio.Task[None] | None = None
        if port > 0:
            self.publisher.bind(f"tcp://{address}:{port}")
        if replay_port:
            self.router = self.context.socket(zmq.ROUTER)
            self.router.bind(f"tcp://{address}:{replay_port}")
            self.task = asyncio.create_task(self.repeat())

    def connect(self, port: int) -> None:
        self.publisher.connect(f"tcp://127.0.0.1:{port}")

    async def say(self, *hashes: int, lost: bool = False, rank: int | None = None, ts: float = 0.0) -> None:
        payload = msgspec.msgpack.encode([ts, [["BlockRemoved", list(hashes)]], rank])
        self.kept.append((self.number, payload))
        if not lost:
            await self.publisher.send_multipart((self.topic, self.number.to_bytes(8, "big"), payload))
        self.number += 1

    async def raw(self, *frames: bytes) -> None:
        await self.publisher.send_multipart(frames)

    async def repeat(self) -> None:
        while True:
            client, _, first = await self.router.recv_multipart()
            self.asked.append(int.from_bytes(first, "big"))
            topic = [self.topic] if self.topics else []
            for number, payload in self.kept:
                if number >= self.asked[-1]:
                    await self.router.send_multipart([client, b"", *topic, number.to_bytes(8, "big"), payload])
            await self.router.send_multipart([client, b"", *[b"" for _ in topic], b"\xff" * 8, b""])

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.context.destroy(linger=0)


class Ears:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.hashes: list[int] = []
        self.by: list[tuple[str, str]] = []
        self.forgot: list[str] = []

    def heard(self, endpoint: Endpoint, model: str, batch: Batch) -> None:
        found = [number for event in batch.events for number in event.hashes]  # type: ignore[union-attr]
        if 666 in found:
            raise ValueError("of all numbers")
        self.hashes += found
        self.by.append((endpoint.name, model))

    def forgotten(self, endpoint: Endpoint) -> None:
        self.forgot.append(endpoint.name)


class World:
    """A pool, somebody who listens, and engines."""

    def __init__(self, *addresses: str, **options: Any) -> None:
        self.pool = Datastore("pool")
        self.pool.replace([Endpoint(f"p{i}-rank-0", "", f"p{i}", at, 8000) for i, at in enumerate(addresses)])
        self.ears = Ears()
        self.listener = Listener(self.pool, ListenOptions(**options), self.ears)
        self.pool.on_added(self.listener.changed)
        self.pool.on_removed(self.listener.changed)
        self.engines: list[Engine] = []

    def engine(self, *arguments: Any, **options: Any) -> Engine:
        self.engines.append(Engine(*arguments, **options))
        return self.engines[-1]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.listener.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for each in self.engines:
                each.close()

    async def subscribed(self, engine: Engine) -> None:
        """Say things until one of them is heard: a publisher does not say when somebody subscribes."""
        async with asyncio.timeout(10):
            while not self.ears.hashes:
                await engine.say(0)
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        self.ears.hashes.clear()
        self.ears.by.clear()


async def test_each_endpoint_by_its_own_connection() -> None:
    port = free_port()
    world = World("127.0.0.1", "127.0.0.2", port=port)
    first, second = world.engine("127.0.0.1", port), world.engine("127.0.0.2", port)
    second.topic = b"kv@somebody@n"
    async with world.listening():
        await world.subscribed(first)
        await world.subscribed(second)
        await first.say(1)
        await second.say(2)
        await eventually(lambda: sorted(world.ears.hashes) == [1, 2])
        assert set(world.ears.by) == {("p0-rank-0", "m"), ("p1-rank-0", "n")}


async def test_endpoints_come_and_go() -> None:
    port = free_port()
    world = World(port=port)
    engine = world.engine("127.0.0.1", port)
    async with world.listening():
        await asyncio.sleep(0.02)
        world.pool.replace([Endpoint("late", "", "p", "127.0.0.1", 8000)])
        await world.subscribed(engine)
        world.pool.replace([])
        await asyncio.sleep(0.05)
        await engine.say(5)
        await asyncio.sleep(0.1)
        assert world.ears.hashes == []


async def test_ranks_publish_at_successive_ports() -> None:
    port = free_port()
    world = World(port=port)
    world.pool.replace([Endpoint("p-rank-1", "", "p", "127.0.0.1", 8001)])
    engine = world.engine("127.0.0.1", port + 1)
    async with world.listening():
        await world.subscribed(engine)


async def test_an_engine_that_begins_again() -> None:
    port = free_port()
    world = World("127.0.0.1", port=port)
    engine = world.engine("127.0.0.1", port)
    async with world.listening():
        await world.subscribed(engine)
        await engine.say(1)
        await eventually(lambda: world.ears.hashes == [1])
        engine.number = 0
        await engine.say(2)
        await eventually(lambda: world.ears.hashes == [1, 2])
        assert world.ears.forgot == ["p0-rank-0"]
        engine.number = 0
        await engine.say(3)  # the number of the last one: it has been heard
        await engine.say(4)
        await eventually(lambda: world.ears.hashes == [1, 2, 4])


async def test_an_engine_that_begins_again_with_the_number_that_it_said_last() -> None:
    port = free_port()
    world = World("127.0.0.1", port=port)
    engine = world.engine("127.0.0.1", port)
    async with world.listening():
        await world.subscribed(engine)
        await engine.say(1, ts=5.0)
        await eventually(lambda: world.ears.hashes == [1])
        engine.number -= 1
        await engine.say(2, ts=6.0)  # written at another time, so it is another message
        await eventually(lambda: world.ears.hashes == [1, 2])
        assert world.ears.forgot == ["p0-rank-0"]


@pytest.mark.parametrize("topics", [False, True])
async def test_what_was_said_before_anybody_listened(topics: bool) -> None:
    port, replay = free_port(), free_port()
    world = World("127.0.0.1", port=port, replay_port=replay)
    engine = world.engine("127.0.0.1", port, replay, topics)
    for number in range(1, 4):
        await engine.say(number, lost=True)
    async with world.listening():
        if not topics:  # nobody knows of which model it speaks until it says something
            await eventually(lambda: engine.asked == [0])
            while not world.ears.hashes:
                await engine.say(4)
                await asyncio.sleep(0.02)
        await eventually(lambda: world.ears.hashes[:3] == [1, 2, 3])
        assert world.ears.by[0] == ("p0-rank-0", "m")
        assert set(world.ears.hashes[3:]) <= {4}


async def test_gaps_are_filled() -> None:
    port, replay = free_port(), free_port()
    world = World("127.0.0.1", port=port, replay_port=replay)
    engine = world.engine("127.0.0.1", port, replay)
    async with world.listening():
        await world.subscribed(engine)
        await engine.say(1, lost=True)
        await engine.say(2, lost=True)
        await engine.say(3)
        await engine.say(4)
        await eventually(lambda: world.ears.hashes == [1, 2, 3, 4])
        assert world.ears.forgot == []
        await engine.say(5, lost=True)
        await engine.say(6, lost=True)
        del engine.kept[:-1]
        await engine.say(7)
        await eventually(lambda: world.ears.hashes[4:] == [6, 7])
        assert world.ears.forgot == ["p0-rank-0"]


async def test_nobody_repeats_anything(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kvlisten, "REPLAY_SECONDS", 0.05)
    port = free_port()
    world = World("127.0.0.1", port=port, replay_port=free_port())
    engine = world.engine("127.0.0.1", port)
    async with world.listening():
        await world.subscribed(engine)
        await engine.say(1, lost=True)
        await engine.say(2)
        await eventually(lambda: world.ears.hashes == [2])
    assert [record.message for record in caplog.records if "does not repeat" in record.message] == [
        "p0-rank-0 does not repeat its KV cache events: no answer"
    ]


@pytest.mark.parametrize(
    ("pod", "rank", "speaker"),
    [
        ("127.0.0.1:8000", None, "p-rank-0"),
        ("127.0.0.1:8001", None, "p-rank-1"),
        ("127.0.0.1", 1, "p-rank-1"),
        ("127.0.0.1", None, "p-rank-0"),
        ("p", 1, "p-rank-1"),
        ("p-rank-1", 0, "p-rank-1"),
    ],
)
async def test_engines_that_connect_with_us(pod: str, rank: int | None, speaker: str) -> None:
    port = free_port()
    world = World(bind=f"tcp://*:{port}")
    world.pool.replace([Endpoint(f"p-rank-{i}", "", "p", "127.0.0.1", 8000 + i) for i in range(2)])
    async with world.listening():
        await asyncio.sleep(0.02)
        engine = world.engine("x", 0)
        engine.connect(port)
        engine.topic = f"kv@{pod}@m".encode()
        async with asyncio.timeout(10):
            while not world.ears.by:
                await engine.say(1, rank=rank)
                await asyncio.sleep(0.02)
        assert set(world.ears.by) == {(speaker, "m")}


async def test_who_left_is_forgotten() -> None:
    port = free_port()
    world = World("127.0.0.1", bind=f"tcp://127.0.0.1:{port}")
    async with world.listening():
        await asyncio.sleep(0.02)
        engine = world.engine("127.0.0.1", 0)
        engine.connect(port)
        await world.subscribed(engine)
        world.pool.replace([Endpoint("other", "", "q", "127.0.0.2", 8000)])
        await engine.say(1)
        engine.topic = b"kv@127.0.0.2@m"
        await engine.say(2)
        await eventually(lambda: world.ears.hashes == [2])
        assert [each.name for each in world.listener._streams] == ["other"]


async def test_strangers_and_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    world = World("127.0.0.1", bind=f"tcp://127.0.0.1:{port}")
    async with world.listening():
        await asyncio.sleep(0.02)
        engine = world.engine("127.0.0.1", 0)
        engine.connect(port)
        await world.subscribed(engine)
        good = msgspec.msgpack.encode([0.0, [["BlockRemoved", [9]]]])
        await engine.raw(b"kv@10.9.9.9@m", b"\0" * 8, good)
        await engine.raw(b"kv@", b"\0" * 8, good)
        await engine.raw(b"other@127.0.0.1@m", b"\0" * 8, good)
        await engine.raw(engine.topic, b"\0" * 7, good)
        await engine.raw(engine.topic, good)
        await engine.raw(engine.topic, b"\0" * 8, b"\xc1")
        await engine.say(666)
        await engine.say(7)
        await eventually(lambda: world.ears.hashes == [7])
    said = " ".join(record.message for record in caplog.records if record.levelno >= logging.WARNING)
    for part in ("come from 10.9.9.9,", "come from somebody,", "2 frames", "no batch of", "of all numbers"):
        assert part in said or (part == "2 frames" and "3 frames" in said)


async def test_many_messages_leave_turns_to_others() -> None:
    port = free_port()
    world = World("127.0.0.1", port=port)
    engine = world.engine("127.0.0.1", port)
    async with world.listening():
        await world.subscribed(engine)
        for number in range(1, 501):
            await engine.say(number)
        await eventually(lambda: world.ears.hashes == list(range(1, 501)))


async def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = Listener(Datastore(), ListenOptions(bind=f"tcp://127.0.0.1:{taken.getsockname()[1]}"), Ears())
        with pytest.raises(OSError, match="cannot listen for KV cache events"):
            await listener.run()


async def test_an_address_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    world = World("no such host", "127.0.0.1", port=free_port())
    async with world.listening():
        await eventually(lambda: "cannot be read" in caplog.text)


def test_addresses() -> None:
    endpoint = Endpoint("p-rank-2", "", "p", "fd00::1", 8002)
    assert kvlisten._address(endpoint, 5557) == "tcp://[fd00::1]:5559"
