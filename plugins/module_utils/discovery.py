# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which path and scope a kind has on this server. Only the API groups that are asked for are read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Tuple
from urllib.parse import quote

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError

Json = Dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One kind as the API serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: Optional[str], name: Optional[str] = None) -> str:
        """The URL path of one object, or of the collection when ``name`` is None."""
        base = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        if self.namespaced and namespace:
            base += f"/namespaces/{quote(namespace, safe='')}"
        return f"{base}/{self.plural}" + (f"/{quote(name, safe=':')}" if name else "")


def objects_of(client: Client, resource: Resource, namespace: Optional[str], **query: str) -> Tuple[List[Json], str]:
    """All objects of a kind, each with its apiVersion and kind, and the resourceVersion from which to watch them on.

    A kind that is not served has none, and no version: for a second after its definition has gone, the server still
    names it among its kinds.
    """
    try:
        items, version = client.snapshot(resource.path(namespace), **query)
    except ApiError as error:
        if error.status != 404:
            raise
        return [], ""
    return [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in items], version


def group_of(api_version: str) -> str:
    """The API group of an apiVersion; empty for the core group."""
    return api_version.rpartition("/")[0]


class Discovery:
    """The kinds of one server, read per group and version, and kept until ``forget``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._versions: Dict[str, Dict[str, Resource]] = {}

    def load(self, api_versions: Iterable[str]) -> None:
        """Read the given group-versions that are not known yet, at the same time."""
        missing = sorted({version for version in api_versions if version not in self._versions})
        for version, kinds in zip(missing, self._client.map(self._read, missing), strict=True):
            self._versions[version] = kinds

    def resource(self, api_version: str, kind: str) -> Optional[Resource]:
        """The resource that serves ``kind``, or None when this server has none."""
        self.load([api_version])
        return self._versions[api_version].get(kind)

    def preferred(self, group: str, kind: str) -> Optional[Resource]:
        """The resource of this kind in the version that the server prefers, or None when it has no such kind."""
        if not group:
            return self.resource("v1", kind)
        served = self._client.find(f"/apis/{group}")
        versions = [served["preferredVersion"], *served["versions"]] if served else []
        for version in dict.fromkeys(entry["groupVersion"] for entry in versions):
            resource = self.resource(version, kind)
            if resource is not None:
                return resource
        return None

    def namespaced(self) -> List[Resource]:
        """Every kind of object that can be in a namespace, and can be deleted."""
        groups = self._client.get("/apis").get("groups") or []
        versions = ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]
        self.load(versions)
        return [
            resource for version in versions for resource in self._versions[version].values() if resource.namespaced
        ]

    def forget(self, api_versions: Iterable[str]) -> None:
        """Read these group-versions anew at the next question (their CRDs have changed)."""
        for version in api_versions:
            self._versions.pop(version, None)

    def why_unknown(self, api_version: str, kind: str) -> str:
        """What the server has instead of ``kind``, for an error message."""
        group = group_of(api_version)
        kinds = self._versions.get(api_version) or {}
        if kinds:
            near = difflib.get_close_matches(kind, kinds, n=1)
            return f"{api_version} has no kind {kind}" + (f"; did you mean {near[0]}?" if near else "")
        served = self._client.find(f"/apis/{group}") if group else None
        if served:
            versions = ", ".join(version["version"] for version in served.get("versions", []))
            return f"the server serves the group {group} as {versions}, not as {api_version.rpartition('/')[2]}"
        return f"the server does not serve {api_version}: its CustomResourceDefinition is not installed"

    def _read(self, api_version: str) -> Dict[str, Resource]:
        path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        listing = self._client.find(path) or {}
        return {
            entry["kind"]: Resource(api_version, entry["kind"], entry["name"], entry["namespaced"])
            for entry in listing.get("resources", [])
            if "/" not in entry["name"] and "patch" in entry.get("verbs", [])
        }


def promised_by_crds(objects: Iterable[Json]) -> Dict[Tuple[str, str], Resource]:
    """The kinds that the CustomResourceDefinitions among ``objects`` will bring, by apiVersion and kind."""
    promised: Dict[Tuple[str, str], Resource] = {}
    for item in objects:
        if item.get("kind") != "CustomResourceDefinition":
            continue
        spec = item.get("spec") or {}
        names: Json = spec.get("names") or {}
        for version in _served_versions(spec):
            api_version = f"{spec.get('group')}/{version}"
            kind, plural = str(names.get("kind")), str(names.get("plural"))
            namespaced = spec.get("scope") == "Namespaced"
            promised[(api_version, kind)] = Resource(api_version, kind, plural, namespaced)
    return promised


def _served_versions(spec: Json) -> List[str]:
    versions = spec.get("versions") or []
    return [str(version.get("name")) for version in versions if isinstance(version, dict) and version.get("served")]
