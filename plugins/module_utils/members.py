# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of a set: each wanted object with its place in the API and what is there now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.conflicts import Conflict
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import (
    Discovery,
    Resource,
    group_of,
    promised_by_crds,
)
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, InputError
from ansible_collections.inferops.cluster.plugins.module_utils.load import refuse_duplicates, title
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import State

Json = Dict[str, Any]

LIST_FROM = 10  # as many objects of one kind and namespace are read with one LIST instead of a GET each
LIST_LIMIT = 500  # objects of that page, or twice the members if that is more; the rest is read one by one


@dataclass(eq=False)
class Member:
    """One object of the set.

    ``resource`` is None when the server does not know the kind; ``served`` is False as long as the kind is only
    promised by a CRD of the same set, or in check mode of an earlier one. ``after`` is the object as it is, or would
    be, once the set is applied. ``shared`` objects are applied with the set, but do not belong to it: others need them,
    too.
    """

    wanted: Json
    resource: Optional[Resource]
    served: bool = True
    shared: bool = False
    live: Optional[Json] = None
    after: Optional[Json] = None
    action: str = ""  # created, updated, unchanged, deleted, absent; empty while undecided or refused
    note: str = ""
    written: bool = False
    state: Optional[State] = None
    taken: List[Conflict] = field(default_factory=list)  # fields of others that get our values

    @property
    def title(self) -> str:
        """``Kind namespace/name``."""
        return title(self.wanted)

    @property
    def namespace(self) -> Optional[str]:
        """None for cluster-wide objects."""
        namespace: Optional[str] = self.wanted["metadata"].get("namespace")
        return namespace

    @property
    def path(self) -> str:
        """The URL path of the object. Only for members whose kind is known."""
        if self.resource is None:
            raise InputError(f"{self.title}: the server does not know this kind")
        return self.resource.path(self.namespace, self.wanted["metadata"]["name"])

    @property
    def changed(self) -> bool:
        """True when this member makes the task changed."""
        return self.action in ("created", "updated", "deleted")

    def result(self) -> Dict[str, Any]:
        """The entry of the module's ``objects``."""
        return {
            "api_version": self.wanted["apiVersion"],
            "kind": self.wanted["kind"],
            "namespace": self.namespace,
            "name": self.wanted["metadata"]["name"],
            "action": self.action or "skipped",
            "changed": self.changed,
            "ready": self.state.ready if self.state else None,
            "reason": (self.state.reason if self.state else "") or self.note,
            "taken_over": [{"field": one.field, "manager": one.manager} for one in self.taken],
        }


def resolve(
    discovery: Discovery,
    items: Iterable[Json],
    default_namespace: Optional[str],
    unknown_allowed: bool,
    foreseen: Iterable[Resource] = (),
) -> List[Member]:
    """Members with their resource and namespace. Raises InputError naming every unknown kind and missing namespace.

    ``unknown_allowed``: take custom kinds that the server does not know as they are (check mode, and removal).
    ``foreseen``: kinds that will be served, or will have changed, by the time that the set is applied for real.
    """
    wanted = list(items)
    promised = {(resource.api_version, resource.kind): resource for resource in foreseen}
    promised.update(promised_by_crds(wanted))
    discovery.load({item["apiVersion"] for item in wanted})
    members, problems = [], []
    for item in wanted:
        kind = (item["apiVersion"], item["kind"])
        resource = discovery.resource(*kind)
        served = resource is not None
        resource = resource or promised.get(kind)
        if resource is None and not (unknown_allowed and _may_come(item)):
            problems.append(f"{title(item)}: {discovery.why_unknown(*kind)}")
            continue
        try:
            placed = _placed(item, resource, default_namespace)
        except InputError as error:
            problems.append(str(error))
            continue
        members.append(Member(placed, resource, served))
    if problems:
        raise InputError("\n".join(problems))
    refuse_duplicates(member.wanted for member in members)
    return members


def _may_come(item: Json) -> bool:
    """Can a CustomResourceDefinition bring this kind? Groups without a dot are Kubernetes' own."""
    return "." in group_of(item["apiVersion"])


def _placed(item: Json, resource: Optional[Resource], default_namespace: Optional[str]) -> Json:
    """The object in its namespace: its own, else the default one; none for cluster-wide kinds."""
    metadata = item["metadata"]
    if resource is None:
        return item
    if not resource.namespaced:
        if "namespace" not in metadata:
            return item
        return {**item, "metadata": {name: value for name, value in metadata.items() if name != "namespace"}}
    if metadata.get("namespace"):
        return item
    if not default_namespace:
        raise InputError(f"{title(item)} names no namespace: give it one, or set `namespace` for the whole set")
    return {**item, "metadata": {**metadata, "namespace": default_namespace}}


def read_live(client: Client, members: Iterable[Member]) -> None:
    """Fill ``live`` of every member whose kind is served, with as few requests as that takes."""
    groups: Dict[Tuple[Resource, Optional[str]], List[Member]] = {}
    for member in members:
        member.live = None
        if member.resource is not None and member.served:
            groups.setdefault((member.resource, member.namespace), []).append(member)
    listed = [group for group in groups.items() if _worth_listing(group[0][0], group[1])]
    single = [member for group in groups.items() if group not in listed for member in group[1]]
    leftovers = client.map(lambda group: _list(client, *group), listed)
    for part in leftovers:
        single.extend(part)
    for member, live in zip(single, client.map(lambda member: client.find(member.path), single), strict=True):
        member.live = live


def read_other_versions(client: Client, discovery: Discovery, members: Iterable[Member]) -> None:
    """Fill ``live`` of members whose version is only promised, where the server has their kind in another version."""
    for member in members:
        if member.served or member.resource is None:
            continue
        other = discovery.preferred(group_of(member.resource.api_version), member.resource.kind)
        if other is not None:
            member.live = client.find(other.path(member.namespace, member.wanted["metadata"]["name"]))


def _worth_listing(resource: Resource, members: List[Member]) -> bool:
    # A cluster may hold megabytes of other people's CRDs.
    return len(members) >= LIST_FROM and resource.kind != "CustomResourceDefinition"


def _list(client: Client, place: Tuple[Resource, Optional[str]], members: List[Member]) -> List[Member]:
    """Fill ``live`` from one page of a LIST; the members that this page cannot speak for."""
    resource, namespace = place
    try:
        page = client.get(resource.path(namespace), limit=str(max(LIST_LIMIT, 2 * len(members))))
    except ApiError as error:
        if error.status in (403, 404):  # may read its objects but not list them; a 404 speaks for nobody
            return members
        raise
    found = {}
    for item in page.get("items") or []:
        # The items of a list of built-in kinds do not repeat what they are.
        item.setdefault("apiVersion", resource.api_version)
        item.setdefault("kind", resource.kind)
        found[item["metadata"]["name"]] = item
    for member in members:
        member.live = found.get(member.wanted["metadata"]["name"])
    complete = not (page.get("metadata") or {}).get("continue")
    return [] if complete else [member for member in members if member.live is None]


def crd_groups(members: Iterable[Member]) -> Dict[Tuple[str, str], Member]:
    """The CRDs among the members, by the API group and kind that they define."""
    found = {}
    for member in members:
        if member.wanted["kind"] == "CustomResourceDefinition":
            spec = member.wanted.get("spec") or {}
            found[(str(spec.get("group")), str((spec.get("names") or {}).get("kind")))] = member
    return found


def defined_by(member: Member, crds: Dict[Tuple[str, str], Member]) -> Optional[Member]:
    """The CRD of the set that defines this member's kind."""
    return crds.get((group_of(member.wanted["apiVersion"]), member.wanted["kind"]))
