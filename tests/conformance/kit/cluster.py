# SPDX-License-Identifier: GPL-3.0-or-later
"""A Kubernetes API server, as far as a picker looks at it: namespaces, pods whose kubelet is the case, pools.

The pods never run. No scheduler takes them, and their status is written by the kit, so that any API server will do,
even one without controllers.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes import client, config

from conformance.kit import leftovers
from conformance.kit.leftovers import MANAGED, OWNER, Turns
from conformance.kit.wait import eventually

MERGE = "application/merge-patch+json"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
NEW, OLD, LLM_D = "inference.networking.k8s.io", "inference.networking.x-k8s.io", "llm-d.ai"


class ApiError(OSError):
    """The API server refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """Requests to the API server that a kubeconfig names."""

    def __init__(self, kubeconfig: str) -> None:
        self._client: client.ApiClient = config.new_client_from_config(kubeconfig)  # type: ignore[no-untyped-call]
        self.turns = Turns(self._client.configuration.host)

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """One request, JSON in and out. Raises ApiError."""
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self._client.param_serialize(
            method, path, body=body, header_params=headers, auth_settings=["BearerToken"]
        )
        answer = self._client.call_api(*request)
        text = bytes(answer.read()).decode()  # type: ignore[no-untyped-call]
        if answer.status >= 400:
            raise ApiError(answer.status, f"{method} {path}: {answer.status} {text}")
        return json.loads(text)

    def served(self, group: str, version: str, resource: str) -> bool:
        """Whether the API server has this resource."""
        try:
            found = self.call("GET", f"/apis/{group}/{version}")
        except ApiError:
            return False
        return any(each["name"] == resource for each in found["resources"])


class Namespace:
    """A namespace of the kit's own."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    def core(self, resource: str) -> str:
        """The path of a resource of the core group."""
        return f"/api/v1/namespaces/{self.name}/{resource}"

    def of(self, group: str, version: str, resource: str) -> str:
        """The path of any other resource."""
        return f"/apis/{group}/{version}/namespaces/{self.name}/{resource}"

    def create_pod(
        self, name: str, ip: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
    ) -> None:
        """A pod that is Running and Ready at this address."""
        metadata = {"name": name, "labels": dict(labels), "annotations": dict(annotations or {})}
        containers = [{"name": "engine", "image": "none"}]
        spec = {"schedulerName": "conformance", "automountServiceAccountToken": False, "containers": containers}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.api.call("POST", self.core("pods"), pod)
        self.pod_status(name, ip=ip)

    def pod_status(self, name: str, *, ip: str | None = None, ready: bool = True) -> None:
        """Play the kubelet."""
        status: dict[str, Any] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        if ip is not None:
            status |= {"podIP": ip or None, "podIPs": [{"ip": ip}] if ip else None}
        self.api.call("PATCH", self.core(f"pods/{name}/status"), {"status": status}, MERGE)

    def patch_pod(self, name: str, **metadata: Any) -> None:
        """Change labels, annotations or finalizers."""
        self.api.call("PATCH", self.core(f"pods/{name}"), {"metadata": metadata}, MERGE)

    def delete_pod(self, name: str) -> None:
        """Delete a pod; it is gone at once unless a finalizer holds it."""
        self.api.call("DELETE", self.core(f"pods/{name}"), {"gracePeriodSeconds": 0})

    def create_pool(self, name: str, labels: Mapping[str, str], ports: tuple[int, ...]) -> None:
        """An InferencePool v1."""
        spec = {
            "selector": {"matchLabels": dict(labels)},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
        }
        self.create(NEW, "v1", "InferencePool", name, spec)

    def create(self, group: str, version: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        """Any custom resource."""
        body = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.api.call("POST", self.of(group, version, plural(kind)), body)

    def patch(self, group: str, version: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        """Change a custom resource's spec."""
        self.api.call("PATCH", self.of(group, version, f"{plural(kind)}/{name}"), {"spec": spec}, MERGE)

    def delete(self, group: str, version: str, kind: str, name: str) -> None:
        """Delete a custom resource; one that is not there is no error."""
        with contextlib.suppress(ApiError):
            self.api.call("DELETE", self.of(group, version, f"{plural(kind)}/{name}"))


@contextlib.contextmanager
def namespace(api: Api, name: str = "") -> Iterator[Namespace]:
    """A new namespace, deleted afterwards."""
    name = name or f"conformance-{uuid.uuid4().hex[:8]}"
    metadata = {"name": name, "labels": MANAGED, "annotations": {OWNER: leftovers.owner()}}
    api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    found = Namespace(api, name)
    try:
        # Admission refuses pods until the namespace has its service account; an API server alone makes none.
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        with contextlib.suppress(ApiError):
            api.call("POST", found.core("serviceaccounts"), account)
        yield found
    finally:
        _remove(found)


def _remove(space: Namespace) -> None:
    """Delete a namespace, and what would keep it or outlive it."""
    for pod in space.api.call("GET", space.core("pods"))["items"]:
        if pod["metadata"].get("finalizers"):
            space.patch_pod(pod["metadata"]["name"], finalizers=None)
    space.api.call("DELETE", f"/api/v1/namespaces/{space.name}")
    for resource in ("clusterrolebindings", "clusterroles"):
        for each in space.api.call("GET", f"{ROLES}/{resource}")["items"]:
            if each["metadata"]["name"].startswith(f"{space.name}-"):
                space.api.call("DELETE", f"{ROLES}/{resource}/{each['metadata']['name']}")


def sweep(api: Api) -> None:
    """Clear away what killed runs have left; the definitions that stand in for missing ones only when no run is left.

    For those who are alone.
    """
    selector = "labelSelector=" + ",".join(f"{key}={value}" for key, value in MANAGED.items())
    spaces = [each["metadata"] for each in api.call("GET", f"/api/v1/namespaces?{selector}")["items"]]
    at_work = False
    for metadata in spaces:
        if "deletionTimestamp" in metadata:
            continue
        if leftovers.alive(metadata):
            at_work = True
        else:
            _remove(Namespace(api, metadata["name"]))
    for each in api.call("GET", f"{DEFINITIONS}?{selector}")["items"]:
        metadata = each["metadata"]
        if not at_work or (OWNER in metadata["annotations"] and not leftovers.alive(metadata)):
            _undefine(api, each)


@contextlib.contextmanager
def definition(api: Api, group: str, version: str, kind: str) -> Iterator[None]:
    """A resource that most clusters lack, for one case: if so, it is defined, and no other run starts a picker
    meanwhile."""
    with api.turns.alone():
        made = define(api, group, version, kind, owner=leftovers.owner())
        try:
            yield
        finally:
            if made is not None:
                _undefine(api, made)


def define(api: Api, group: str, version: str, kind: str, owner: str = "") -> dict[str, Any] | None:
    """Define a resource, with any content, unless the cluster has it; ``sweep`` removes it. For those who are alone."""
    resource = plural(kind)
    if api.served(group, version, resource):
        return None
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": {"kind": kind, "plural": resource, "singular": kind.lower(), "listKind": f"{kind}List"},
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    annotations = {OWNER: owner} if owner else {}
    if group.endswith("k8s.io"):
        annotations["api-approved.kubernetes.io"] = "unapproved, a conformance test's stand-in"
    metadata = {"name": f"{resource}.{group}", "labels": MANAGED, "annotations": annotations}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    made: dict[str, Any] = api.call("POST", DEFINITIONS, {**body, "metadata": metadata, "spec": spec})
    eventually(lambda: api.served(group, version, resource))
    eventually(lambda: api.call("GET", f"/apis/{group}/{version}/{resource}"))
    return made


def _undefine(api: Api, made: dict[str, Any]) -> None:
    names, group = made["spec"]["names"], made["spec"]["group"]
    version = made["spec"]["versions"][0]["name"]
    with contextlib.suppress(ApiError):
        api.call("DELETE", f"{DEFINITIONS}/{made['metadata']['name']}")
    # Pickers look at their start which resources there are; the next one must not see this one any more.
    eventually(lambda: not api.served(group, version, names["plural"]))


def plural(kind: str) -> str:
    """The resource of a kind."""
    return kind.lower() + "s"
