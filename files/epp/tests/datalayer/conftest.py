# SPDX-License-Identifier: GPL-3.0-or-later
"""A namespace of the test's own in a real cluster: that of ``KUBECONFIG``, or the lab."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from epp.datalayer.kubeconfig import Credentials, from_file

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
    kubeconfig: Path

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
    path = kubeconfig()
    credentials = from_file(path)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=credentials.tls or True)) as session:
        yield Cluster(session, credentials, namespace, path)


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
                path = f"{DEFINITIONS}/inferencepools.{group}"
                await cluster.call("DELETE", path)
                # It goes with its last object, and until then nobody can make it again.
                await until(functools.partial(_gone, cluster, path), seconds=90)


async def _gone(cluster: Cluster, path: str) -> None:
    """Raises LookupError while something is at ``path``."""
    try:
        await cluster.call("GET", path)
    except LookupError:
        return
    raise LookupError(f"{path} is still there")


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
