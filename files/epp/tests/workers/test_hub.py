# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parent knows arrives at a worker, whether it was there from the beginning or came later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from epp.datalayer import Datastore
from epp.datalayer.objectives import OBJECTIVES, Objectives
from epp.model import Endpoint, EndpointMetrics
from epp.workers import hub as hubs
from epp.workers.feed import Feed
from epp.workers.hub import Hub
from epp.workers.messages import LENGTH_BYTES, Endpoints, Models, Objects, Readings, to_worker


def endpoint(number: int, **labels: str) -> Endpoint:
    return Endpoint(f"e{number}", "ns", f"p{number}", f"10.0.0.{number}", 8000, labels)


class Worker:
    """One that takes over what it hears."""

    def __init__(self) -> None:
        self.store = Datastore("pool")
        self.objectives = Objectives(None, "ns")
        self.feed = Feed({"pool": self.store}, self.objectives)
        self.frames = 0

    def hear(self, data: bytes) -> None:
        while data:
            size = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES])
            message = to_worker.decode(data[LENGTH_BYTES:size])
            assert isinstance(message, Endpoints | Readings | Models | Objects)
            self.feed.take(message)
            self.frames += 1
            data = data[size:]

    def known(self) -> list[tuple[object, ...]]:
        return sorted(seen(each) for each in self.store.endpoints())


def seen(each: Endpoint) -> tuple[object, ...]:
    models = sorted((each.models or {}).items())
    return each.hostport, dict(each.labels), each.metrics, each.refused, each.unmetered, models


class House:
    """A parent and a worker."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.store = Datastore("pool")
        self.store.replace(endpoints)
        self.objectives = Objectives(None, "ns")
        self.worker = Worker()
        self.hub = Hub({"pool": self.store}, self.worker.hear)
        self.hub.follow(self.objectives)
        self.worker.hear(self.hub.snapshot())

    async def same(self) -> None:
        """Both know the same, and so would one who comes now."""
        await asyncio.sleep(4 * hubs.DELAY_SECONDS)
        wanted = sorted(seen(each) for each in self.store.endpoints())
        newcomer = Worker()
        newcomer.hear(self.hub.snapshot())
        assert self.worker.known() == newcomer.known() == wanted


async def test_endpoints_come_change_and_go() -> None:
    house = House(endpoint(1), endpoint(2))
    await house.same()
    first = house.worker.store.endpoints()[0]
    house.store.replace([endpoint(1, zone="a"), endpoint(3)])
    await house.same()
    assert house.worker.store.endpoints()[0] is first, "what is known of an endpoint survives a change of its labels"
    house.store.replace([])
    await house.same()
    assert house.worker.store.synced
    house.store.replace([endpoint(1)])
    await house.same()


async def test_readings_arrive_together_and_in_the_parents_time() -> None:
    house = House(endpoint(1), endpoint(2))
    await house.same()
    here, other = house.store.endpoints()
    there = house.worker.store.endpoints()[0]
    house.worker.store.sent(there, 70)
    asked_at = time.monotonic() + 1.0
    metrics = EndpointMetrics(
        waiting=3, running=4, kv_cache_usage=0.5, running_adapters=frozenset({"a"}), custom={"x": 1.5},
        updated_at=asked_at, interval=0.05,
    )  # fmt: skip
    frames = house.worker.frames
    house.store.observed(here, metrics, asked_at)
    house.store.observed(other, replace(metrics, waiting=1), asked_at)
    await house.same()
    assert house.worker.frames == frames + 1
    assert (there.metrics, there.unseen) == (metrics, 0), "what was sent before it was asked is in the reading"


async def test_a_reading_that_failed_is_no_new_one() -> None:
    house = House(endpoint(1))
    await house.same()
    (here,), (there,) = house.store.endpoints(), house.worker.store.endpoints()
    house.worker.store.sent(there, 70)
    here.refused = True
    house.hub.failed("pool", here)
    await house.same()
    assert (there.refused, there.unseen) == (True, 1)


async def test_an_endpoint_that_is_gone_is_not_told_of() -> None:
    house = House(endpoint(1))
    (here,) = house.store.endpoints()
    house.store.replace([])
    house.store.observed(here, EndpointMetrics(), 1.0)
    house.hub.failed("pool", here)
    await house.same()


async def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MODELS_SECONDS", 0.01)
    house = House(endpoint(1))
    looking = asyncio.create_task(house.hub.run())
    house.store.endpoints()[0].models = {"llama": b'{"id":"llama"}'}
    await house.same()
    await asyncio.sleep(0.03)
    frames = house.worker.frames
    await asyncio.sleep(0.03)
    assert house.worker.frames == frames, "what has not changed is not told again"
    looking.cancel()


async def test_objectives() -> None:
    house = House()
    item = {"metadata": {"name": "urgent"}, "spec": {"priority": 7, "poolRef": {"name": "pool"}}}
    house.objectives.take(OBJECTIVES, {"urgent": item})
    assert house.worker.objectives.priority("pool", "urgent", "") == 7
    newcomer = Worker()
    newcomer.hear(house.hub.snapshot())
    assert newcomer.objectives.priority("pool", "urgent", "") == 7
