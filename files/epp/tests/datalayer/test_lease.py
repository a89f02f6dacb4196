# SPDX-License-Identifier: GPL-3.0-or-later
"""Leader election against an HTTP server with an API server's optimistic concurrency; the real one is in the cluster
tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from epp.datalayer import lease as lease_module
from epp.datalayer.kubeconfig import Credentials
from epp.datalayer.kubernetes import KubeClient
from epp.datalayer.lease import Election, LeaseName

COLLECTION = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


class Leases:
    """Stores one lease; refuses a write that was made for another version."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.status = 0
        """Answer everything with this status; 0 for no trouble."""
        self.steal = False
        """Somebody else writes between reading and writing."""

    async def handle(self, request: web.Request) -> web.Response:
        if self.status:
            return web.json_response({"message": "trouble"}, status=self.status)
        if request.method == "GET":
            found = self.lease
            if self.steal and found is not None:
                self.version += 1
                self.lease = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}
            return web.json_response(found) if found else web.json_response({"message": "not found"}, status=404)
        body = await request.json()
        if request.method == "PUT":
            assert self.lease is not None
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                return web.json_response({"message": "changed meanwhile"}, status=409)
        elif self.lease is not None:
            return web.json_response({"message": "exists"}, status=409)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.lease = body
        return web.json_response(body, status=201 if request.method == "POST" else 200)

    @property
    def holder(self) -> str:
        return "" if self.lease is None else self.lease["spec"]["holderIdentity"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RETRY", 0.02)
    monkeypatch.setattr(lease_module, "RENEW_DEADLINE", 0.2)
    monkeypatch.setattr(lease_module, "DURATION", 1)


@pytest.fixture
async def leases() -> AsyncIterator[tuple[Leases, str]]:
    store = Leases()
    app = web.Application()
    app.router.add_route("*", COLLECTION, store.handle)
    app.router.add_route("*", COLLECTION + "/l", store.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield store, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class Competitor:
    def __init__(self, server: str, identity: str) -> None:
        self.changes: list[bool] = []
        self.client = KubeClient(Credentials(server))
        self.election = Election(self.client, LeaseName("ns", "l", identity), self.changes.append)
        self.task = asyncio.create_task(self.election.run())

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.client.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_one_leads_and_hands_over(leases: tuple[Leases, str]) -> None:
    store, server = leases
    first = Competitor(server, "first")
    await eventually(lambda: first.election.leader)
    assert store.holder == "first"
    renewed = store.lease["spec"]["renewTime"] if store.lease else ""
    second = Competitor(server, "second")
    await eventually(lambda: store.lease is not None and store.lease["spec"]["renewTime"] != renewed)
    await asyncio.sleep(0.1)
    assert not second.election.leader
    await first.stop()
    assert first.changes == [True, False]
    await eventually(lambda: second.election.leader)
    assert store.lease is not None
    assert (store.holder, store.lease["spec"]["leaseTransitions"]) == ("second", 1)
    await second.stop()
    assert store.holder == ""


async def test_a_leader_that_vanished_is_replaced_when_its_lease_lapses(leases: tuple[Leases, str]) -> None:
    store, server = leases
    store.lease = {
        "metadata": {"name": "l", "namespace": "ns", "resourceVersion": "0"},
        "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "2020-01-01T00:00:00.000000Z"},
    }
    began = asyncio.get_running_loop().time()
    heir = Competitor(server, "heir")
    await eventually(lambda: heir.election.leader)
    # However old its time looks by another clock: only a lease that stands still for its duration has lapsed.
    assert asyncio.get_running_loop().time() - began >= 1.0
    await heir.stop()


async def test_a_leader_without_api_server_steps_down_and_comes_back(leases: tuple[Leases, str]) -> None:
    store, server = leases
    only = Competitor(server, "only")
    await eventually(lambda: only.election.leader)
    store.status = 503
    await eventually(lambda: bool(only.election.problem))
    await eventually(lambda: not only.election.leader)
    assert "503 trouble" in only.election.problem
    store.status = 0
    await eventually(lambda: only.election.leader)
    assert only.election.problem == ""
    store.status = 500
    await only.stop()
    assert only.changes == [True, False, True, False]


async def test_a_lost_race_is_no_trouble(leases: tuple[Leases, str]) -> None:
    store, server = leases
    store.lease = {"metadata": {"name": "l", "resourceVersion": "0"}, "spec": {}}
    store.steal = True
    loser = Competitor(server, "loser")
    await asyncio.sleep(0.2)
    assert not loser.election.leader
    assert loser.election.problem == ""
    store.steal = False
    await eventually(lambda: loser.election.leader)
    await loser.stop()
