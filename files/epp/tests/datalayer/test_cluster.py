# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchers against a real API server: pods and pools as objects, their status written by the test.

The pods are never run: no scheduler takes them, and the test plays the kubelet. Needs ``KUBECONFIG`` or the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from epp.datalayer import Datastore, PoolWatcher, SelectorWatcher
from epp.datalayer.kubeconfig import Credentials
from epp.datalayer.kubernetes import KubeClient
from epp.datalayer.objectives import Objectives

pytestmark = pytest.mark.cluster

Cluster = Any
NEW, OLD = "inference.networking.k8s.io", "inference.networking.x-k8s.io"
MERGE = "application/merge-patch+json"


async def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(watcher: PoolWatcher | SelectorWatcher | Objectives, client: KubeClient) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()


def names(store: Datastore) -> list[str]:
    return [endpoint.name for endpoint in store.endpoints()]


@pytest.mark.parametrize("group", [NEW, OLD])
async def test_a_pool_and_its_pods(cluster: Cluster, group: str) -> None:
    store, client = Datastore("pool"), KubeClient(cluster.credentials)
    watcher = PoolWatcher(store, client, cluster.namespace, "pool", group)
    async with running(watcher, client):
        await eventually(watcher.problem)
        assert "does not exist" in watcher.problem()
        assert not store.synced
        await cluster.pod("a", "10.1.0.1")
        await cluster.pool(group, 8000)
        await eventually(lambda: names(store) == ["a-rank-0"])
        assert store.synced
        assert watcher.problem() == ""
        (first,) = store.endpoints()
        assert (first.hostport, first.namespace, first.pod) == ("10.1.0.1:8000", cluster.namespace, "a")
        await cluster.pod("b", "10.1.0.2", ready=False, finalizers=["example.com/keep"])
        await cluster.pod("c", "10.1.0.3")
        await eventually(lambda: names(store) == ["a-rank-0", "c-rank-0"])
        await cluster.status("b", True)
        await eventually(lambda: names(store) == ["a-rank-0", "b-rank-0", "c-rank-0"])
        assert store.endpoints()[0] is first
        await cluster.status("a", False)
        await eventually(lambda: names(store) == ["b-rank-0", "c-rank-0"])
        await cluster.call("DELETE", f"{cluster.pods}/b")
        await eventually(lambda: names(store) == ["c-rank-0"])
        await cluster.call("PATCH", f"{cluster.pods}/c", {"metadata": {"labels": {"app": "other"}}}, MERGE)
        await eventually(lambda: names(store) == [])
        assert store.synced, "an empty pool is a pool"
        await cluster.call("DELETE", f"{cluster.pools(group)}/pool")
        await eventually(lambda: not store.synced)


async def test_ports_change_with_the_pool(cluster: Cluster) -> None:
    store, client = Datastore("pool"), KubeClient(cluster.credentials)
    await cluster.pod("a", "10.1.0.1")
    await cluster.pod("b", "10.1.0.2", annotations={"llm-d.ai/active-ports": "8001"})
    await cluster.pool(NEW, 8000)
    async with running(PoolWatcher(store, client, cluster.namespace, "pool", NEW), client):
        await eventually(lambda: names(store) == ["a-rank-0"])
        await cluster.pool(NEW, 8000, 8001, method="PATCH")
        await eventually(lambda: names(store) == ["a-rank-0", "a-rank-1", "b-rank-1"])


async def test_a_selector(cluster: Cluster) -> None:
    store, client = Datastore("pods"), KubeClient(cluster.credentials)
    await cluster.pod("a", "10.1.0.1")
    await cluster.pod("b", "10.1.0.2", labels={"app": "model", "old": "yes"})
    watcher = SelectorWatcher(store, client, cluster.namespace, "app in (model),!old", [8000, 8002])
    async with running(watcher, client):
        await eventually(lambda: names(store) == ["a-rank-0", "a-rank-1"])
        await cluster.call("DELETE", f"{cluster.pods}/a")
        await eventually(lambda: names(store) == [])


@dataclass
class Proxy:
    """A TCP proxy in front of the API server that can be cut and mended."""

    host: str
    port: int
    listening: int = 0
    server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.connections: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.listening)
        self.listening = self.server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.connections:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, out = await asyncio.open_connection(self.host, self.port)
        self.connections |= {writer, out}
        await asyncio.gather(self.pump(reader, out), self.pump(upstream, writer))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_an_outage_of_the_api_server_is_survived(cluster: Cluster) -> None:
    address = cluster.credentials.server.removeprefix("https://")
    host, _, port = address.rpartition(":")
    proxy = Proxy(host.strip("[]"), int(port))
    await proxy.mend()
    tls = cluster.credentials.tls
    assert tls is not None
    tls.check_hostname = False
    credentials = replace(cluster.credentials, server=f"https://127.0.0.1:{proxy.listening}")
    store, client = Datastore("pool"), KubeClient(credentials)
    await cluster.pool(NEW, 8000)
    await cluster.pod("a", "10.1.0.1")
    await cluster.pod("b", "10.1.0.2")
    watcher = PoolWatcher(store, client, cluster.namespace, "pool", NEW)
    async with running(watcher, client):
        await eventually(lambda: names(store) == ["a-rank-0", "b-rank-0"])
        before = store.endpoints()
        proxy.cut()
        await eventually(lambda: "does not answer" in watcher.problem())
        assert store.endpoints() == before
        assert store.synced
        await cluster.call("DELETE", f"{cluster.pods}/a")
        await cluster.pod("c", "10.1.0.3")
        await asyncio.sleep(0.5)
        assert store.endpoints() == before
        await proxy.mend()
        await eventually(lambda: names(store) == ["b-rank-0", "c-rank-0"])
        await eventually(lambda: not watcher.problem())
        assert store.endpoints()[0] is before[1]
    proxy.cut()


async def test_missing_rights_are_said(cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/default/token"
    token = (await cluster.call("POST", path, {"spec": {"expirationSeconds": 600}}))["status"]["token"]
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    client = KubeClient(Credentials(cluster.credentials.server, tls, token=token))
    store = Datastore("pool")
    watcher = PoolWatcher(store, client, cluster.namespace, "pool", NEW)
    async with running(watcher, client):
        await eventually(watcher.problem)
        assert "403" in watcher.problem()
        assert "grant get, list and watch" in watcher.problem()
        assert not store.synced


async def test_objectives(cluster: Cluster) -> None:
    group, resource = "inference.networking.x-k8s.io", "inferenceobjectives"
    try:
        await cluster.call("GET", f"/apis/{group}/v1alpha2/namespaces/{cluster.namespace}/{resource}")
    except LookupError:
        pytest.skip("the cluster has no InferenceObjective")
    path = f"/apis/{group}/v1alpha2/namespaces/{cluster.namespace}/{resource}"
    body = {"apiVersion": f"{group}/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": "batch"}}
    client = KubeClient(cluster.credentials)
    objectives = Objectives(client, cluster.namespace)
    async with running(objectives, client):
        await cluster.call("POST", path, {**body, "spec": {"priority": -1, "poolRef": {"name": "pool"}}})
        await eventually(lambda: objectives.priority("pool", "batch", "m") == -1)
        assert objectives.priority("other", "batch", "m") == 0
        assert objectives.priority("pool", "unknown", "m") == 0
        await cluster.call("PATCH", f"{path}/batch", {"spec": {"priority": 7}}, MERGE)
        await eventually(lambda: objectives.priority("pool", "batch", "m") == 7)
        await cluster.call("DELETE", f"{path}/batch")
        await eventually(lambda: objectives.priority("pool", "batch", "m") == 0)
