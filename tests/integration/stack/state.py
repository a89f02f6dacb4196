# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a cluster, seen with another client than the collection's, without what changes by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from kubernetes import client, config

Json = dict[str, Any]

# Records of what happened or who is alive, and what controllers make of other objects.
PASSING = {
    "events",
    "leases",
    "endpoints",
    "endpointslices",
    "pods",
    "replicasets",
    "controllerrevisions",
    "componentstatuses",
    "apiservices",
    "csinodes",
    "ipaddresses",
}
BOOKKEEPING = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
# Chosen by the server once, anew for an object that was made anew.
CHOSEN = (
    ("metadata", "annotations", "deployment.kubernetes.io/revision"),
    ("metadata", "annotations", "deprecated.daemonset.template.generation"),
    ("metadata", "ownerReferences"),
    ("spec", "clusterIP"),
    ("spec", "clusterIPs"),
    ("spec", "finalizers"),
)
MANAGER = "inferops.cluster"


class State:
    """Looks at everything that the API server of KUBECONFIG can list."""

    def __init__(self) -> None:
        found = client.Configuration()
        config.load_kube_config(os.environ["KUBECONFIG"], client_configuration=found)  # type: ignore[no-untyped-call]
        self._server = found.host
        self._session = requests.Session()
        self._session.trust_env = False  # proxies and authorities for the web are none of the cluster
        self._session.verify = found.ssl_ca_cert or True
        if found.cert_file:
            self._session.cert = (found.cert_file, found.key_file)
        token = found.get_api_key_with_prefix("authorization", alias="BearerToken")
        if token:
            self._session.headers["Authorization"] = token

    def get(self, path: str) -> Json:
        """The document at ``path``."""
        return self.request("GET", path)

    def request(self, verb: str, path: str, body: Json | None = None, kind: str = "application/json") -> Json:
        """Look, or change something as somebody else."""
        answer = self._session.request(
            verb, f"{self._server}{path}", json=body, headers={"Content-Type": kind}, timeout=60
        )
        assert answer.ok, f"{verb} {path}: {answer.status_code} {answer.text}"
        found: Json = answer.json()
        return found

    def edit(self, path: str, patch: Json, manager: str = "kubectl-edit") -> None:
        """Change an object by hand."""
        self.request("PATCH", f"{path}?fieldManager={manager}", patch, "application/merge-patch+json")

    def installed(self) -> bool:
        """Is anything of the platform there?"""
        selector = "applyset.kubernetes.io/id"
        return bool(self.get(f"/api/v1/configmaps?labelSelector={selector}")["items"])

    def names(self) -> set[str]:
        """Kind, namespace and name of every object that is there for itself."""
        return {_name(item) for item in self._all() if not _made_by_a_controller(item)}

    def applied(self) -> dict[str, Json]:
        """The content of every object that the collection has applied, by name."""
        return {_name(item): _content(item) for item in self._all() if _is_ours(item)}

    def _all(self) -> Iterator[Json]:
        with ThreadPoolExecutor(4) as pool:
            for items in pool.map(self._list, list(self._paths())):
                yield from items

    def _paths(self) -> Iterator[tuple[str, str, str]]:
        versions = [("/api/v1", "v1")]
        for group in self.get("/apis")["groups"]:
            version = group["preferredVersion"]["groupVersion"]
            versions.append((f"/apis/{version}", version))
        for path, version in versions:
            for resource in self.get(path)["resources"]:
                if "list" in resource["verbs"] and "/" not in resource["name"] and resource["name"] not in PASSING:
                    yield f"{path}/{resource['name']}", version, resource["kind"]

    def _list(self, place: tuple[str, str, str]) -> list[Json]:
        path, version, kind = place
        return [{"apiVersion": version, "kind": kind, **item} for item in self.get(path).get("items") or []]


def _name(item: Json) -> str:
    group = item["apiVersion"].rpartition("/")[0]
    metadata = item["metadata"]
    return f"{item['kind']}.{group} {metadata.get('namespace', '')}/{metadata['name']}"


def _made_by_a_controller(item: Json) -> bool:
    return any(owner.get("controller") for owner in item["metadata"].get("ownerReferences") or [])


def _is_ours(item: Json) -> bool:
    entries = item["metadata"].get("managedFields") or []
    return any(entry.get("manager") == MANAGER and entry.get("operation") == "Apply" for entry in entries)


def _content(item: Json) -> Json:
    kept = {name: value for name, value in item.items() if name != "status"}
    kept["metadata"] = {name: value for name, value in item["metadata"].items() if name not in BOOKKEEPING}
    if item["kind"] == "Job":
        # Labels and selector carry the Job's uid.
        kept["spec"] = {"template": item["spec"]["template"]["spec"]}
    if item["kind"] == "Node":
        kept = {"labels": item["metadata"]["labels"]}
    for webhook in kept.get("webhooks") or []:
        webhook["clientConfig"].pop("caBundle", None)  # a Job's, of the certificate that it has made
    for path in CHOSEN:
        _drop(kept, path)
    return kept


def _drop(item: Json, path: tuple[str, ...]) -> None:
    """Take away one field, and the map that is empty without it."""
    name, *rest = path
    if not rest:
        item.pop(name, None)
    elif isinstance(item.get(name), dict):
        item[name] = dict(item[name])
        _drop(item[name], tuple(rest))
        if not item[name]:
            del item[name]
