# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchers against a real API server: pods and pools as objects, their status written by the test.

The pods are never run: no scheduler takes them, and the test plays the kubelet. Needs ``KUBECONFIG`` or the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from benchmarks import rig
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from epp.datalayer import Datastore, PoolWatcher, SelectorWatcher
from epp.datalayer.kubeconfig import Credentials, from_file
from epp.datalayer.kubernetes import KubeClient
from epp.datalayer.objectives import Objectives

pytestmark = pytest.mark.cluster

NEW, OLD = "inference.networking.k8s.io", "inference.networking.x-k8s.io"
VERSION = {NEW: "v1", OLD: "v1alpha2"}
MERGE = "application/merge-patch+json"


def kubeconfig() -> Path:
    """The cluster to use, or a skip."""
    lab = Path(__file__).parents[4] / ".lab" / "kubeconfig"
    path = Path(os.environ["KUBECONFIG"]) if os.environ.get("KUBECONFIG") else lab
    if not path.is_file():
        pytest.skip("no cluster: set KUBECONFIG or start the lab")
    return path


@dataclass
class Cluster:
    """What the test does to the cluster, in a namespace of its own."""

    session: aiohttp.ClientSession
    credentials: Credentials
    namespace: str

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        headers = {"Content-Type": content_type, **self.credentials.headers()}
        url = self.credentials.server + path
        async with self.session.request(method, url, json=body, headers=headers) as response:
            if response.status >= 400:
                raise LookupError(f"{method} {path}: {response.status} {await response.text()}")
            return await response.json()

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def pools(self, group: str) -> str:
        return f"/apis/{group}/{VERSION[group]}/namespaces/{self.namespace}/inferencepools"

    async def pod(self, name: str, address: str, ready: bool = True, **metadata: Any) -> None:
        """A pod with label ``app: model`` and an address."""
        await self.call(
            "POST",
            self.pods,
            {
                "metadata": {"name": name, "labels": {"app": "model"}, **metadata},
                "spec": {
                    "schedulerName": "nobody",
                    "automountServiceAccountToken": False,
                    "containers": [{"name": "c", "image": "none"}],
                },
            },
        )
        await self.status(name, ready, address)

    async def status(self, name: str, ready: bool, address: str | None = None) -> None:
        """What a kubelet would write."""
        condition = {"type": "Ready", "status": str(ready)}
        addresses = {"podIP": address, "podIPs": [{"ip": address}]} if address else {}
        await self.call(
            "PATCH", f"{self.pods}/{name}/status", {"status": {"conditions": [condition], **addresses}}, MERGE
        )

    async def pool(self, group: str, *ports: int, name: str = "pool", method: str = "POST") -> None:
        """An InferencePool of the pods with ``app: model``."""
        version, reference = f"{group}/{VERSION[group]}", {"name": "picker", "port": {"number": 9002}}
        if group == NEW:
            spec: dict[str, Any] = {
                "selector": {"matchLabels": {"app": "model"}},
                "targetPorts": [{"number": port} for port in ports],
                "endpointPickerRef": reference,
            }
        else:
            spec = {"selector": {"app": "model"}, "targetPortNumber": ports[0], "extensionRef": {"name": "picker"}}
        body = {"apiVersion": version, "kind": "InferencePool", "metadata": {"name": name}, "spec": spec}
        if method == "PATCH":
            await self.call(method, f"{self.pools(group)}/{name}", body, MERGE)
        else:
            await self.call(method, self.pools(group), body)


def definition(group: str) -> dict[str, Any]:
    """The least CRD under which InferencePools of a group can be stored."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": VERSION[group], "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    approved = {"api-approved.kubernetes.io": "unapproved, experimental-only"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"inferencepools.{group}", "annotations": approved},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "InferencePool", "plural": "inferencepools", "singular": "inferencepool"},
            "versions": [version],
        },
    }


DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@contextlib.asynccontextmanager
async def connected(namespace: str) -> AsyncIterator[Cluster]:
    """The cluster, with nothing made in it yet."""
    credentials = from_file(kubeconfig())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=credentials.tls or True)) as session:
        yield Cluster(session, credentials, namespace)


async def define() -> list[str]:
    """Definitions of both pools, where the cluster has none; the groups that were added."""
    added = []
    async with connected("default") as cluster:
        try:
            await cluster.call("GET", "/version")
        except aiohttp.ClientError as error:
            pytest.skip(f"the cluster does not answer: {error}")
        for group in (NEW, OLD):
            with contextlib.suppress(LookupError):
                await cluster.call("POST", DEFINITIONS, definition(group))
                added.append(group)
            await until(functools.partial(cluster.call, "GET", cluster.pools(group)))
    return added


async def forget(groups: list[str]) -> None:
    """Remove definitions, unless somebody has begun to use them."""
    async with connected("default") as cluster:
        for group in groups:
            pools = await cluster.call("GET", f"/apis/{group}/{VERSION[group]}/inferencepools")
            if all(item["metadata"]["namespace"].startswith("epp-test-") for item in pools["items"]):
                await cluster.call("DELETE", f"{DEFINITIONS}/inferencepools.{group}")


@pytest.fixture(scope="module")
def definitions() -> Iterator[None]:
    """Both pools can be stored."""
    added = asyncio.run(define())
    yield
    asyncio.run(forget(added))


@pytest.fixture
async def cluster(definitions: None) -> AsyncIterator[Cluster]:
    """A namespace of the test's own, removed afterwards."""
    async with connected(f"epp-test-{uuid.uuid4().hex[:8]}") as made:
        await made.call("POST", "/api/v1/namespaces", {"metadata": {"name": made.namespace}})
        accounts = f"/api/v1/namespaces/{made.namespace}/serviceaccounts"
        with contextlib.suppress(LookupError):  # the controller may have been quicker, or there is none
            await made.call("POST", accounts, {"metadata": {"name": "default"}})
        try:
            yield made
        finally:
            for name in [item["metadata"]["name"] for item in (await made.call("GET", made.pods))["items"]]:
                await made.call("PATCH", f"{made.pods}/{name}", {"metadata": {"finalizers": None}}, MERGE)
            await made.call("DELETE", f"/api/v1/namespaces/{made.namespace}")


async def until(attempt: Callable[[], Coroutine[Any, Any, Any]], seconds: float = 30.0) -> None:
    """Try until it works."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await attempt()
                return
            except LookupError:
                await asyncio.sleep(0.05)


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


def process(cluster: Cluster, *flags: str) -> contextlib.AbstractContextManager[rig.Epp]:
    """The EPP as a process, with the test's cluster."""
    os.environ["KUBECONFIG"] = str(kubeconfig())
    return rig.epp("--pool-name=pool", f"--pool-namespace={cluster.namespace}", "--drain-timeout=2s", *flags)


async def health(epp: rig.Epp, service: str = "readiness") -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{epp.health_port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        return int((await check(HealthCheckRequest(service=service))).status)


async def becomes(epp: rig.Epp, status: int) -> None:
    async with asyncio.timeout(30):
        while await health(epp) != status:
            await asyncio.sleep(0.05)


async def test_metrics_are_for_those_who_may_read_them(cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/default/token"
    token = (await cluster.call("POST", path, {"spec": {"expirationSeconds": 600}}))["status"]["token"]
    rbac, name = "/apis/rbac.authorization.k8s.io/v1", cluster.namespace
    rules = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subjects = [{"kind": "ServiceAccount", "name": "default", "namespace": cluster.namespace}]
    await cluster.pool(NEW, 8000)

    async def status(url: str, *tokens: str) -> int:
        headers = {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
            return response.status

    with process(cluster) as epp:
        url = f"http://127.0.0.1:{epp.metrics_port}"
        assert await status(f"{url}/metrics") == 401
        assert await status(f"{url}/metrics", "nobody's") == 401
        assert await status(f"{url}/metrics", token) == 403
        assert await status(f"{url}/healthz") == 200
    try:
        await cluster.call("POST", f"{rbac}/clusterroles", {"metadata": {"name": name}, "rules": rules})
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}
        await cluster.call("POST", f"{rbac}/clusterrolebindings", binding)
        with process(cluster) as epp:
            url = f"http://127.0.0.1:{epp.metrics_port}"
            assert await status(f"{url}/metrics", token) == 200
            assert await status(f"{url}/debug/endpoints", token) == 403
        with process(cluster, "--metrics-endpoint-auth=false") as epp:
            assert "inference_pool_ready_pods" in epp.metrics()
    finally:
        await cluster.call("DELETE", f"{rbac}/clusterrolebindings/{name}")
        await cluster.call("DELETE", f"{rbac}/clusterroles/{name}")


async def test_leader_election(cluster: Cluster) -> None:
    await cluster.pool(NEW, 8000)
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases"
    elects = ("--ha-enable-leader-election", "--metrics-endpoint-auth=false")
    with process(cluster, *elects) as first:
        await becomes(first, 1)
        name = f"epp-{cluster.namespace}-pool.gateway-api-inference-extension.sigs.k8s.io"
        assert (await cluster.call("GET", f"{leases}/{name}"))["spec"]["leaseDurationSeconds"] == 15
        with process(cluster, *elects) as second:
            await becomes(second, 2)
            assert await health(second, "liveness") == 1
            assert await health(second, "nobody") == 3
            assert "llm_d_epp_leader 0.0" in second.metrics()
            first.process.popen.terminate()
            await becomes(second, 1)
            assert first.process.stop() == 0
            assert "llm_d_epp_leader 1.0" in second.metrics()
            assert second.process.stop() == 0
        assert (await cluster.call("GET", f"{leases}/{name}"))["spec"]["holderIdentity"] == ""


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
        await eventually(lambda: objectives.priority("pool", "batch") == -1)
        assert objectives.priority("other", "batch") == 0
        assert objectives.priority("pool", "unknown") == 0
        await cluster.call("PATCH", f"{path}/batch", {"spec": {"priority": 7}}, MERGE)
        await eventually(lambda: objectives.priority("pool", "batch") == 7)
        await cluster.call("DELETE", f"{path}/batch")
        await eventually(lambda: objectives.priority("pool", "batch") == 0)
