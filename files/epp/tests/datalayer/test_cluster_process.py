# SPDX-License-Identifier: GPL-3.0-or-later
"""The EPP as a process in front of a real API server: who may read its metrics, who leads, several pools at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import grpc
import pytest
from benchmarks import rig
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpHeaders, ProcessingRequest, ProcessingResponse
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

pytestmark = pytest.mark.cluster

Cluster = Any
NEW = "inference.networking.k8s.io"
MERGE = "application/merge-patch+json"


@pytest.fixture(autouse=True)
def same_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The EPP finds the cluster of the test."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))


def process(cluster: Cluster, *flags: str) -> contextlib.AbstractContextManager[rig.Epp]:
    """The EPP with this namespace's pool."""
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
        async with asyncio.timeout(10):  # until the pool has been read
            while await status(f"{url}/healthz") != 200:
                await asyncio.sleep(0.05)
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
            assert first.process.popen.wait(30) == 0  # without a second signal, which may come while it is ending
            assert "llm_d_epp_leader 1.0" in second.metrics()
            assert second.process.stop() == 0
        assert (await cluster.call("GET", f"{leases}/{name}"))["spec"]["holderIdentity"] == ""


async def destination(epp: rig.Epp, headers: dict[str, str], metadata: dict[str, str]) -> str:
    """Where a request without a body is sent; the status if it is refused."""
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in {":path": "/", **headers}.items()]
    message = ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=True))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{epp.grpc_port}") as channel:
        process = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        call = process(metadata=tuple(metadata.items()))
        await call.write(message)
        answer = await call.read()
        call.cancel()
    if answer.HasField("immediate_response"):
        return str(answer.immediate_response.status.code)
    found: str = answer.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
    return found


async def test_several_pools_in_one_process(cluster: Cluster) -> None:
    for name, app, address in (("red", "model", "10.1.0.1"), ("blue", "other", "10.1.0.2")):
        await cluster.pool(NEW, 8000, name=name)
        selector = {"spec": {"selector": {"matchLabels": {"app": app}}}}
        await cluster.call("PATCH", f"{cluster.pools(NEW)}/{name}", selector, MERGE)
        await cluster.pod(name, address, labels={"app": app})
    hint = "x-gateway-inference-pool"
    flags = ("--pool-name=red", "--pool-name=blue", "--pool-name=green", "--secure-serving=false")
    namespace = f"--pool-namespace={cluster.namespace}"
    with rig.epp(namespace, "--metrics-endpoint-auth=false", "--drain-timeout=1s", *flags) as epp:
        async with asyncio.timeout(30):
            while [await health(epp, name) for name in ("red", "blue", "green", "")] != [1, 1, 2, 1]:
                await asyncio.sleep(0.05)
        assert {each["pool"]: each["address"] for each in epp.endpoints()} == {
            "red": "10.1.0.1:8000",
            "blue": "10.1.0.2:8000",
        }
        assert await destination(epp, {}, {hint: "red"}) == "10.1.0.1:8000"
        assert await destination(epp, {hint: "red"}, {hint: "blue"}) == "10.1.0.2:8000"
        assert await destination(epp, {"x-gateway-model-name": "blue"}, {}) == "10.1.0.2:8000"
        assert await destination(epp, {hint: "green"}, {}) == "503"
        assert await destination(epp, {}, {}) == "404"
        page = epp.metrics()
        assert [f'ready_pods{{name="{name}"}} {count}' in page for name, count in POOLS_READY.items()] == [True] * 3
        assert "green does not exist" in rig.fetch(f"http://127.0.0.1:{epp.metrics_port}/healthz").decode()
        assert 'llm_d_epp_datalayer_source_up{name="green"} 0.0' in page


POOLS_READY = {"red": "1.0", "blue": "1.0", "green": "0.0"}
