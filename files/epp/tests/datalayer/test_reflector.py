# SPDX-License-Identifier: GPL-3.0-or-later
"""Following collections through every kind of trouble, against an HTTP server that plays the API server's part.

What a real API server does is in the cluster tests; here it does what a real one does on bad days only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import pytest
from aiohttp import web

from epp.datalayer import Datastore, PoolWatcher, SelectorWatcher
from epp.datalayer import kubernetes as kubernetes_module
from epp.datalayer.kubeconfig import Credentials
from epp.datalayer.kubernetes import KubeClient, KubeError, _socket
from epp.datalayer.resources import Resource

NEW = "inference.networking.k8s.io"
PODS = "/api/v1/namespaces/ns/pods"
POOLS = f"/apis/{NEW}/v1/namespaces/ns/inferencepools"


class Api:
    """Lists and watches; ``answers`` by path take the place of the ordinary answer, once each."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.answers: dict[str, list[web.Response]] = defaultdict(list)
        self.watches: dict[str, list[asyncio.Queue[bytes | None]]] = defaultdict(list)
        self.missing: set[str] = set()
        self.resources: dict[str, list[dict[str, str]] | None] = {}
        """What a group has, for those that are asked for it; None for a group that does not exist."""
        self.lists: dict[str, int] = defaultdict(int)
        self.page = 500
        self.server = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if self.answers[path]:
            return self.answers[path].pop(0)
        if self.resources.get(path):
            return web.json_response({"resources": self.resources[path]})
        if path in self.missing or path in self.resources:
            return web.json_response({"message": "not found"}, status=404)
        if "watch" in request.query:
            return await self.watch(request)
        self.lists[path] += 1
        start = int(request.query.get("continue", "0"))
        items = self.items[path][start : start + self.page]
        more = start + self.page < len(self.items[path])
        metadata = {"resourceVersion": "1", "continue": str(start + self.page) if more else ""}
        return web.json_response({"items": items, "metadata": metadata})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watches[request.path].append(queue)
        while (line := await queue.get()) is not None:
            await response.write(line)
        return response

    async def send(self, path: str, kind: str, item: dict[str, Any]) -> None:
        await self.raw(path, json.dumps({"type": kind, "object": item}).encode() + b"\n")

    async def raw(self, path: str, line: bytes | None) -> None:
        await eventually(lambda: self.watches[path])
        queue = self.watches[path][-1]
        if line is None:
            self.watches[path].clear()
        await queue.put(line)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_module, "MAX_BACKOFF", 0.02)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    made = Api()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.server = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


class Worker(Protocol):
    async def run(self) -> None: ...


@contextlib.asynccontextmanager
async def running(worker: Worker, client: KubeClient) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()


def pod(name: str, address: str, ready: bool = True, version: str = "2") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version, "labels": {"app": "m"}},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def pool(*ports: int, app: str = "m", name: str = "pool", spec: Any = None) -> dict[str, Any]:
    default = {"selector": {"matchLabels": {"app": app}}, "targetPorts": [{"number": port} for port in ports]}
    return {"metadata": {"name": name, "resourceVersion": "2"}, "spec": default if spec is None else spec}


def names(store: Datastore) -> list[str]:
    return [endpoint.name for endpoint in store.endpoints()]


class Pods:
    """The ready pods, by selector."""

    def __init__(self, api: Api) -> None:
        self.failures: list[str] = []
        self.client = KubeClient(Credentials(api.server), self.failures.append)
        self.store = Datastore("pods")
        self.watcher = SelectorWatcher(self.store, self.client, "ns", "app=m", [8000])


async def test_lists_come_in_pages_and_events_follow(api: Api) -> None:
    api.page = 2
    api.items[PODS] = [pod(f"p{i}", f"10.0.0.{i}") for i in range(1, 6)]
    pods = Pods(api)
    async with running(pods.watcher, pods.client):
        await eventually(lambda: len(names(pods.store)) == 5)
        await api.send(PODS, "BOOKMARK", {"metadata": {"resourceVersion": "9"}})
        await api.send(PODS, "MODIFIED", pod("p1", "10.0.0.1", ready=False))
        await api.send(PODS, "DELETED", pod("p2", "10.0.0.2"))
        await eventually(lambda: names(pods.store) == ["p3-rank-0", "p4-rank-0", "p5-rank-0"])
        await api.raw(PODS, None)
        await api.send(PODS, "ADDED", pod("p6", "10.0.0.6"))
        await eventually(lambda: "p6-rank-0" in names(pods.store))
        assert (api.lists[PODS], pods.failures, pods.watcher.problem()) == (3, [], "")


async def test_a_version_that_is_too_old_is_listed_again_without_complaint(api: Api) -> None:
    api.items[PODS] = [pod("a", "10.0.0.1")]
    pods = Pods(api)
    async with running(pods.watcher, pods.client):
        await eventually(lambda: names(pods.store) == ["a-rank-0"])
        api.items[PODS].append(pod("b", "10.0.0.2"))
        await api.send(PODS, "ERROR", {"code": 410, "message": "too old"})
        await eventually(lambda: len(names(pods.store)) == 2)
        assert pods.failures == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"type":"ERROR","object":{"message":"bad luck"}}\n', "bad luck"),
        (b'{"type":"ERROR","object":{"code":500}}\n', "the watch ended in an error"),
        (b"no json\n", "the answer is not a JSON object"),
        (b'{"type":"ADDED","object":{"metadata":"x"}}\n', "AttributeError"),
    ],
)
async def test_a_watch_that_goes_wrong_is_told_and_begun_again(api: Api, line: bytes, told: str) -> None:
    api.items[PODS] = [pod("a", "10.0.0.1")]
    pods = Pods(api)
    async with running(pods.watcher, pods.client):
        await eventually(lambda: names(pods.store) == ["a-rank-0"])
        await api.raw(PODS, line)
        await eventually(lambda: pods.failures)
        assert told in pods.failures[0]
        await eventually(lambda: not pods.watcher.problem())
        assert names(pods.store) == ["a-rank-0"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (web.json_response({"message": "no"}, status=403), "403 no; grant get, list and watch to the service account"),
        (web.json_response({"message": "who?"}, status=401), "401 who?; check the credentials"),
        (web.Response(text="<html>", status=502), "502 <html>"),
        (web.Response(text="", status=503), "503 no reason given"),
        (web.Response(text="[]"), "the answer is not a JSON object"),
    ],
)
async def test_lists_that_fail(api: Api, answer: web.Response, told: str) -> None:
    api.answers[PODS] = [answer]
    pods = Pods(api)
    async with running(pods.watcher, pods.client):
        await eventually(lambda: pods.failures)
        assert told in pods.failures[0]
        await eventually(lambda: pods.store.synced)
        await eventually(lambda: not pods.watcher.problem())


async def test_a_server_that_is_not_there() -> None:
    client = KubeClient(Credentials("http://127.0.0.1:9"))
    assert client.server == "http://127.0.0.1:9"
    with pytest.raises(KubeError, match="does not answer"):
        await client.get("/x")
    await client.close()
    await client.close()


def test_a_connection_notices_a_peer_that_vanished() -> None:
    with _socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, count = socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT
        assert made.getsockopt(socket.IPPROTO_TCP, idle) + made.getsockopt(socket.IPPROTO_TCP, count) <= 7
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


async def test_a_pool_that_changes(api: Api) -> None:
    api.items[POOLS] = [pool(8000)]
    api.items[PODS] = [pod("a", "10.0.0.1")]
    client, store = KubeClient(Credentials(api.server)), Datastore("pool")
    watcher = PoolWatcher(store, client, "ns", "pool", NEW)
    async with running(watcher, client):
        await eventually(lambda: names(store) == ["a-rank-0"])
        await api.send(POOLS, "MODIFIED", pool(1, name="another"))
        await api.send(POOLS, "MODIFIED", pool(8000, 8001))
        await eventually(lambda: names(store) == ["a-rank-0", "a-rank-1"])
        await api.send(POOLS, "MODIFIED", pool(spec={"selector": {}}))
        await eventually(lambda: "cannot be used: it has no selector" in watcher.problem())
        assert len(names(store)) == 2
        api.items[PODS] = [pod("b", "10.0.0.2")]
        api.watches[PODS].clear()
        await api.send(POOLS, "MODIFIED", pool(8000, app="other"))
        await eventually(lambda: names(store) == ["b-rank-0"])
        assert watcher.problem() == ""
        await api.send(PODS, "MODIFIED", pod("b", "10.0.0.2"))
        await api.send(PODS, "ADDED", pod("c", "10.0.0.3"))
        await eventually(lambda: len(names(store)) == 2)
        await api.send(POOLS, "DELETED", pool(8000))
        await eventually(lambda: not store.synced)
        assert "does not exist; create it, or correct --pool-name" in watcher.problem()


async def test_a_pool_without_its_definition(api: Api) -> None:
    api.missing.add(POOLS)
    client, store = KubeClient(Credentials(api.server)), Datastore("pool")
    watcher = PoolWatcher(store, client, "ns", "pool", NEW)
    async with running(watcher, client):
        await eventually(lambda: "has no InferencePool CRD of this group" in watcher.problem())
        api.missing.clear()
        await eventually(lambda: "does not exist" in watcher.problem())


def test_a_group_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="is not a group of InferencePool"):
        PoolWatcher(Datastore(), KubeClient(Credentials("http://x")), "ns", "pool", "example.com")


@pytest.mark.parametrize("ports", [[], [1, 1], [0], [70000], list(range(1, 10))])
def test_ports_of_a_selector(ports: list[int]) -> None:
    with pytest.raises(ValueError, match="ports"):
        SelectorWatcher(Datastore(), KubeClient(Credentials("http://x")), "ns", "app=m", ports)


NEW_GROUP, OLD_GROUP = "/apis/llm-d.ai/v1alpha2", "/apis/inference.networking.x-k8s.io/v1alpha2"
THINGS = "{}/namespaces/ns/things"


class TestResource:
    """A resource that comes and goes, in two groups."""

    @pytest.fixture
    async def names(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], list[str]]]:
        monkeypatch.setattr("epp.datalayer.resources.LOOK_AGAIN", 0.05)
        monkeypatch.setattr("epp.datalayer.resources.GONE_AFTER", 0.01)
        self.define(api)
        seen: list[list[str]] = [[]]
        client = KubeClient(Credentials(api.server))
        groups = [group.removeprefix("/apis/") for group in (NEW_GROUP, OLD_GROUP)]
        resource = Resource(client, "ns", "things", groups, lambda objects: seen.append(sorted(objects)))
        async with running(resource, client):
            yield lambda: seen[-1]

    def define(self, api: Api, *groups: str) -> None:
        """The cluster has the resource in these groups from now on; the one in ``items`` is named after its group."""
        for group in (NEW_GROUP, OLD_GROUP):
            here = group in groups
            path = THINGS.format(group)
            api.resources[group] = [{"name": "things"}] if here else None
            name = "new" if group == NEW_GROUP else "old"
            api.items[path] = [{"metadata": {"name": name, "resourceVersion": "2"}}]
            (api.missing.discard if here else api.missing.add)(path)
            if not here:
                for queue in api.watches.pop(path, []):
                    queue.put_nowait(None)

    async def test_it_comes(self, api: Api, names: Callable[[], list[str]]) -> None:
        await asyncio.sleep(0.1)
        assert names() == []
        self.define(api, OLD_GROUP)
        await eventually(lambda: names() == ["old"])

    async def test_the_first_group_counts(self, api: Api, names: Callable[[], list[str]]) -> None:
        self.define(api, OLD_GROUP)
        await eventually(lambda: names() == ["old"])
        self.define(api, NEW_GROUP, OLD_GROUP)
        await eventually(lambda: names() == ["new"])

    async def test_it_goes(self, api: Api, names: Callable[[], list[str]]) -> None:
        self.define(api, NEW_GROUP, OLD_GROUP)
        await eventually(lambda: names() == ["new"])
        self.define(api, OLD_GROUP)
        await eventually(lambda: names() == ["old"])
        self.define(api)
        await eventually(lambda: names() == [])

    async def test_changes(self, api: Api, names: Callable[[], list[str]]) -> None:
        self.define(api, NEW_GROUP)
        await eventually(lambda: names() == ["new"])
        path = THINGS.format(NEW_GROUP)
        await api.send(path, "ADDED", {"metadata": {"name": "another", "resourceVersion": "3"}})
        await eventually(lambda: names() == ["another", "new"])
        await api.send(path, "DELETED", {"metadata": {"name": "new", "resourceVersion": "4"}})
        await eventually(lambda: names() == ["another"])

    async def test_an_api_server_that_is_away_changes_nothing(self, api: Api, names: Callable[[], list[str]]) -> None:
        self.define(api, OLD_GROUP)
        await eventually(lambda: names() == ["old"])
        api.answers[NEW_GROUP] = [web.json_response({"message": "overloaded"}, status=503) for _ in range(4)]
        await eventually(lambda: not api.answers[NEW_GROUP])
        assert names() == ["old"]
