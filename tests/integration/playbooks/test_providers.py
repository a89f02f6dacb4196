# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects of the gateways, and of what the roles work with but do not install: KServe, Istio, the Prometheus Operator.
Every one is judged by an API server that has its real definition.

Server-side apply with strict field validation refuses fields that a definition does not know, and values that it does
not allow. Definitions that the cluster has not are there as long as the tests of this file; no controller acts on them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from unit.roles import rendering, value_cases
from waiting import until

from ansible_collections.inferops.cluster.plugins.module_utils.access import resolve
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError
from ansible_collections.inferops.cluster.plugins.module_utils.load import load_set
from lab import manifests
from lab.errors import LabError
from lab.progress import Progress

from .conftest import Json, Playbook, Run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

KINDS = {
    "Backend",
    "BackendTrafficPolicy",
    "ClientTrafficPolicy",
    "ClusterServingRuntime",
    "DestinationRule",
    "EnvoyExtensionPolicy",
    "EnvoyProxy",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "InferencePool",
    "InferenceService",
    "ServiceMonitor",
}
# Google publishes their definitions only inside of GKE.
GOOGLE = {"ClusterPodMonitoring", "GCPBackendPolicy", "HealthCheckPolicy"}
ROLES = ("litellm", "epp", "inference_pool", "kserve_runtimes")
RUNTIMES = ("vllm", "llamacpp", "ollama")
OLD = "inference.networking.x-k8s.io/v1alpha2"
# By this a run knows the definitions of an earlier one that was killed.
OURS = "inferops.cluster/test"

POD: Json = {
    "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "16Gi"}},
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
    "node_selector": {"disk": "fast"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoExecute"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
            }
        }
    },
    "priority_class": "high",
    "service_account": "models",
    "args": ["--more", "1"],
    "env": {"A": "1", "B": {"fieldRef": {"fieldPath": "status.podIP"}}},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
}


def models(workload: str) -> list[Json]:
    """For each runtime a model with little and one with much; names tell them apart."""
    found: list[Json] = []
    for runtime in RUNTIMES:
        base: Json = {"model": f"org/{runtime}", "runtime": runtime, "workload": workload}
        found.append({**base, "name": f"{runtime}-plain", "replicas": 0})
        full = {**base, **POD, "name": f"{runtime}-full", "served_name": f"{runtime}/full", "gpus": 2}
        full |= {"tensor_parallel_size": 2, "replicas": 1, "max_replicas": 3, "image": "registry.example.com/server:1"}
        full |= {"command": ["/server"], "port": 9000}
        full |= {"storage_uri": "pvc://models/full"} if workload == "inference_service" else {"cache_claim": "models"}
        found.append(full)
    found[1]["loras"] = [{"name": "poet", "path": "org/poet"}, {"name": "lawyer", "path": "/data/lawyer"}]
    found[0]["canary"] = {"name": found[1]["name"], "weight": 10}
    return found


def variables(provider: str, workload: str) -> Json:
    """The platform behind this gateway."""
    return {
        "inferops_models": models(workload),
        "inferops_model_name": "vllm-plain",  # it has no pods, so nobody asks it
        "kserve_runtimes_serving_runtimes": list(RUNTIMES) if workload == "inference_service" else [],
        "kserve_runtimes_scale_metrics": [value_cases.WAITING],
        "kserve_runtimes_hf_token_secret": "token",
        "kserve_runtimes_image_pull_secrets": ["registry"],
        "inference_pool_provider": provider,
        # The older version for one of them.
        **({"inference_pool_api_version": OLD, "epp_pool_group": OLD.partition("/")[0]} if provider == "istio" else {}),
        "epp_provider": provider,
        "epp_replicas": 2,
        "epp_monitoring": True,
        "epp_monitoring_labels": {"release": "prometheus"},
        "epp_destination_rule_connection_pool": {
            "tcp": {"maxConnections": 500, "connectTimeout": "5s"},
            "http": {"http2MaxRequests": 40000, "maxRequestsPerConnection": 0},
        },
    }


@pytest.fixture(scope="module")
def api(kubeconfig: str) -> client.ApiClient:
    """An independent client."""
    found = client.Configuration()
    config.load_kube_config(kubeconfig, client_configuration=found)  # type: ignore[no-untyped-call]
    return client.ApiClient(found)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def definitions(api: client.ApiClient) -> Iterator[None]:
    """The definitions that the cluster has not, as long as the tests run."""
    try:
        files = manifests.definitions(Progress())
    except LabError as error:
        pytest.skip(f"the definitions cannot be had here: {error}")
    crds = [item for item in load_set([], [str(file) for file in files], []) if _defines(item)]
    assert {crd["spec"]["names"]["kind"] for crd in crds} == KINDS
    server = client.ApiextensionsV1Api(api)
    made: list[str] = []
    try:
        for crd in crds:
            if _install(server, crd):
                made.append(crd["metadata"]["name"])
        for name in made:
            until(lambda name=name: _established(server, name), f"{name} is served")
        yield
    finally:
        for name in made:
            server.delete_custom_resource_definition(name)
        for name in made:
            until(lambda name=name: _absent(server, name), f"{name} is gone")


def _defines(item: Json) -> bool:
    return item["kind"] == "CustomResourceDefinition" and item["spec"]["names"]["kind"] in KINDS


def _install(server: client.ApiextensionsV1Api, crd: Json) -> bool:
    """Whether the definition is there by us, and ours to remove."""
    labels = {**crd["metadata"].get("labels", {}), OURS: "providers"}
    body: Any = {**crd, "metadata": {**crd["metadata"], "labels": labels}}
    try:
        server.create_custom_resource_definition(body)
    except ApiException as error:
        if error.status != 409:
            raise
        there: Any = server.read_custom_resource_definition(crd["metadata"]["name"])
        if OURS in (there.metadata.labels or {}):
            return True
        if crd["spec"]["group"] == "serving.kserve.io":
            pytest.skip("the cluster has a KServe of its own, whose ClusterServingRuntimes these tests would write")
        return False
    return True


def _established(server: client.ApiextensionsV1Api, name: str) -> bool:
    found: Any = server.read_custom_resource_definition(name)
    return any(one.type == "Established" and one.status == "True" for one in found.status.conditions or [])


def _absent(server: client.ApiextensionsV1Api, name: str) -> bool:
    try:
        server.read_custom_resource_definition(name)
    except ApiException as error:
        if error.status == 404:
            return True
        raise
    return False


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace that is there, so that the server judges what goes into it."""
    name = f"providers-{secrets.token_hex(4)}"
    core = client.CoreV1Api(api)
    body: Any = {"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
    core.create_namespace(body)
    yield name
    core.delete_namespace(name)


def unjudged(run: Run) -> list[Json]:
    """Objects that no server has looked at, with the reason."""
    entries = [entry for task in run.tasks for entry in task["result"].get("objects") or []]
    return [entry for entry in entries if "not checked" in (entry["reason"] or "")]


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize(("provider", "workload"), [("envoy_gateway", "deployment"), ("istio", "inference_service")])
def test_every_object_is_what_its_definition_allows(
    playbook: Playbook, namespace: str, api: client.ApiClient, tmp_path: Path, provider: str, workload: str
) -> None:
    given = variables(provider, workload)
    remove = tmp_path / "remove.yml"
    tasks = [
        {"ansible.builtin.include_role": {"name": f"inferops.cluster.{role}", "tasks_from": "remove"}} for role in ROLES
    ]
    auth = {"group/inferops.cluster.k8s": {"kubeconfig": "{{ inferops_kubeconfig }}"}}
    play = {"hosts": "localhost", "gather_facts": False, "module_defaults": auth, "tasks": tasks}
    remove.write_text(json.dumps([play]))

    looked = playbook("model_deploy", given)
    assert looked.code == 0, looked.output
    assert unjudged(looked) == []
    created = looked.objects("created")
    expected = {"HTTPRoute", "InferencePool", "ServiceMonitor", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    expected |= (
        {"DestinationRule"} if provider == "istio" else {"Backend", "BackendTrafficPolicy", "EnvoyExtensionPolicy"}
    )
    expected |= {"ClusterServingRuntime", "InferenceService"} if workload == "inference_service" else set()
    assert expected <= {kind for kind, _ in created}

    try:
        done = playbook("model_deploy", given, check=False)
        assert done.code == 0, done.output
        assert done.objects("created") == created
        again = playbook("model_deploy", given, check=False)
        assert again.code == 0, again.output
        assert again.objects("created", "updated", "deleted") == set()
    finally:
        removed = playbook(remove, {}, check=False)
    assert removed.code == 0, removed.output
    assert removed.objects("deleted") == created
    custom = client.CustomObjectsApi(api)
    left: Any = custom.list_cluster_custom_object("serving.kserve.io", "v1alpha1", "clusterservingruntimes")
    assert left["items"] == []


def with_nonsense(entry: Json) -> Json:
    """The same with a field that nobody knows."""
    item = entry["item"]
    return {**entry, "item": {**item, "spec": {**item["spec"], "nonsense": True}}}


@pytest.mark.usefixtures("definitions")
def test_every_variable_makes_objects_that_their_definitions_allow(kubeconfig: str, namespace: str) -> None:
    wanted = [{"role": rendering.role_of(case.variable), "given": case.given} for case in value_cases.CASES]
    items: dict[str, Json] = {}
    for case, answer in zip(value_cases.CASES, rendering.render(wanted), strict=True):
        assert answer["problems"] == []
        for item in answer["objects"]:
            items.setdefault(json.dumps(item, sort_keys=True), {"case": case.variable, "item": item})
    server = Client(resolve({"kubeconfig": kubeconfig}))
    discovery = Discovery(server)

    def refusal(entry: Json) -> str:
        """What the server says against an object that is new in this namespace; nothing where it takes it."""
        item: Json = entry["item"]
        resource = discovery.resource(item["apiVersion"], item["kind"])
        if resource is None:
            return "" if item["kind"] in GOOGLE else f"{item['kind']} is not served"
        metadata = {**item["metadata"], **({"namespace": namespace} if resource.namespaced else {})}
        path = resource.path(metadata.get("namespace"), metadata["name"])
        try:
            server.apply(path, {**item, "metadata": metadata}, "test", force=True, dry_run=True)
        except ApiError as error:
            return f"{entry['case']}: {item['kind']} {metadata['name']}: {error.message}"
        return ""

    try:
        discovery.load({entry["item"]["apiVersion"] for entry in items.values()})
        assert {entry["item"]["kind"] for entry in items.values()} > KINDS | GOOGLE
        assert [told for told in server.map(refusal, items.values()) if told] == []
        # The definitions are no empty shells: what they do not know is refused, whatever the kind.
        wrong = {entry["item"]["kind"]: with_nonsense(entry) for entry in items.values() if "spec" in entry["item"]}
        told = server.map(refusal, [wrong[kind] for kind in sorted(KINDS)])
        assert [kind for kind, reason in zip(sorted(KINDS), told, strict=True) if "nonsense" not in reason] == []
    finally:
        server.close()
