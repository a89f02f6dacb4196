# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which objects belong to a set, remembered in the cluster itself as an ApplySet (Kubernetes KEP-3659, v1).

Every member carries a label with the id of its set. A ConfigMap, the record of the set, names the kinds and
namespaces that hold members, so that members that are no longer wanted can be found. The record is made wider before
members are written and narrower after others have gone: whenever a run is interrupted, the next one finds them all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import (
    Discovery,
    Resource,
    group_of,
    objects_of,
)
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError, InputError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import refusal
from ansible_collections.inferops.cluster.plugins.module_utils.load import key
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member

Json = Dict[str, Any]
GroupKind = Tuple[str, str]
Place = Tuple[Resource, Optional[str]]

PART_OF = "applyset.kubernetes.io/part-of"
ID = "applyset.kubernetes.io/id"
TOOLING = "applyset.kubernetes.io/tooling"
GROUP_KINDS = "applyset.kubernetes.io/contains-group-kinds"
NAMESPACES = "applyset.kubernetes.io/additional-namespaces"
TOOL, TOOL_VERSION = "inferops.cluster", "v1.0.0"  # the version of this record's format
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps", True)
RECORD_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
RECORD_NAME_MAX = 253
SHOWN = 10


def applyset_id(name: str, namespace: str) -> str:
    """The id of the set whose record is this ConfigMap, computed as KEP-3659 demands."""
    digest = hashlib.sha256(f"{name}.{namespace}.ConfigMap.".encode()).digest()
    return f"applyset-{base64.urlsafe_b64encode(digest).decode().rstrip('=')}-v1"


def label_of(item: Optional[Json]) -> str:
    """The id of the set that an object belongs to; empty when it belongs to none."""
    labels = ((item or {}).get("metadata") or {}).get("labels") or {}
    return str(labels.get(PART_OF) or "")


def labelled(item: Json, identity: str) -> Json:
    """A copy of the object that carries the id of its set."""
    labels = {**(item["metadata"].get("labels") or {}), PART_OF: identity}
    return {**item, "metadata": {**item["metadata"], "labels": labels}}


def carry_over(members: Iterable[Member], manager: str) -> None:
    """For tasks without ``prune``: an object keeps the membership that ``manager`` once gave it."""
    for member in members:
        identity = label_of(member.live)
        if identity and not label_of(member.wanted) and _applied_by(member.live or {}, manager):
            member.wanted = labelled(member.wanted, identity)


def _applied_by(item: Json, manager: Optional[str] = None) -> bool:
    """Was the membership label set by a server-side apply (of ``manager``)?

    Controllers copy labels to what they make: a Service's go to its EndpointSlices. Such copies are written by other
    operations, and do not make an object a member.
    """
    for entry in item["metadata"].get("managedFields") or []:
        if entry.get("operation") == "Apply" and manager in (None, entry.get("manager")):
            fields = ((entry.get("fieldsV1") or {}).get("f:metadata") or {}).get("f:labels") or {}
            if f"f:{PART_OF}" in fields:
                return True
    return False


class Membership:
    """The set as the cluster remembers it. ``action`` tells what becomes of its record."""

    def __init__(self, client: Client, discovery: Discovery, set_name: str, namespace: Optional[str]) -> None:
        self.name = f"applyset-{set_name}"
        if not namespace:
            raise InputError("`prune` needs `namespace`: what belongs to the set is recorded there")
        if not RECORD_NAME.match(self.name) or len(self.name) > RECORD_NAME_MAX:
            raise InputError(
                f"with `prune`, the name of a set must be a valid object name: {set_name!r} may only hold lower-case "
                "letters, digits, '-' and '.'"
            )
        self.namespace = namespace
        self.id = applyset_id(self.name, namespace)
        self.action = ""
        self.written = False
        self.live: Optional[Json] = None
        self._before: Optional[Json] = None
        self._client = client
        self._discovery = discovery

    @property
    def title(self) -> str:
        """The record, as messages name it."""
        return f"ConfigMap {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """The URL path of the record."""
        return CONFIG_MAP.path(self.namespace, self.name)

    def read(self) -> None:
        """Look up the record. Raises ClusterError when another tool, or something else, has that name."""
        self._before = self.live = self._client.find(self.path)
        if self.live is None:
            return
        tool = str(self._annotation(TOOLING)).rpartition("/")[0]
        if tool != TOOL or self.live["metadata"].get("labels", {}).get(ID) != self.id:
            owner = f"the tool {tool}" if tool and tool != TOOL else "something else"
            raise ClusterError(
                f"{self.title} should record what belongs to the set, but it belongs to {owner}: give this set another "
                "name, or delete that object if nothing uses it"
            )

    def join(self, members: Iterable[Member]) -> None:
        """Make every member carry the id. Raises InputError when a manifest names another set."""
        for member in _own(members):
            if label_of(member.wanted) not in ("", self.id):
                raise InputError(f"{member.title}: its manifest sets the label {PART_OF}: remove it there")
            member.wanted = labelled(member.wanted, self.id)

    def survey(self, members: List[Member]) -> List[Member]:
        """Read all objects of the set: fills ``live`` of the members found, and returns those that nobody wants."""
        wanted = {key(member.wanted): member for member in members}
        strays: Dict[str, Member] = {}
        places = self._places(members)
        for place, items in zip(places, self._client.map(self._list, places), strict=True):
            for item in items:
                member = wanted.get(key(item))
                if member is None and _applied_by(item):
                    strays[item["metadata"]["uid"]] = Member(item, place[0], live=item, after=item)
                elif member is not None and member.wanted["apiVersion"] == item["apiVersion"]:
                    member.live = item
        return list(strays.values())

    def refuse_others(self, members: Iterable[Member]) -> None:
        """Raises ClusterError when an object belongs to another set."""
        claimed = [member for member in _own(members) if label_of(member.live) not in ("", self.id)]
        if not claimed:
            return
        lines = [f"{member.title} belongs to the set {label_of(member.live)}" for member in claimed[:SHOWN]]
        if len(claimed) > SHOWN:
            lines.append(f"... and {len(claimed) - SHOWN} more")
        raise ClusterError(
            "\n".join(lines) + f"\nSuch an object is in two sets: remove it from one of them, or set `force: true` to "
            f"take it over. The record of a set is the ConfigMap, or Secret, with the label {ID}=<its name>"
        )

    def widen(self, members: Iterable[Member]) -> None:
        """Before members are written: record all kinds and namespaces that have members now or will have."""
        kinds, namespaces = self._extent(members)
        self._record(kinds | self._recorded_kinds(), namespaces | self._recorded_namespaces())

    def settle(self, members: Iterable[Member]) -> None:
        """After all has been done: record what there is."""
        self._record(*self._extent(members))

    def foresee(self, members: Iterable[Member]) -> None:
        """In check mode: what would become of the record."""
        self.action = _difference(self._before, self._wanted(*self._extent(members)))

    def forget(self, check_mode: bool) -> None:
        """Delete the record, once the set is gone."""
        self.action = "absent" if self.live is None else "deleted"
        if self.live is None or check_mode:
            return
        try:
            self._client.delete(self.path, "Background", self.live["metadata"].get("uid"))
        except ApiError as error:
            raise ClusterError(f"{self.title}: {refusal(error)}") from error
        self.written = True

    def member(self) -> Member:
        """The record as an entry of the results."""
        metadata = {"name": self.name, "namespace": self.namespace}
        found = Member({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}, CONFIG_MAP)
        found.live, found.action, found.written = self.live, self.action, self.written
        found.note = "records what belongs to the set"
        return found

    def _extent(self, members: Iterable[Member]) -> Tuple[Set[GroupKind], Set[str]]:
        there = _own(members)
        kinds = {(group_of(member.wanted["apiVersion"]), str(member.wanted["kind"])) for member in there}
        return kinds, {member.namespace for member in there if member.namespace} - {self.namespace}

    def _recorded_kinds(self) -> Set[GroupKind]:
        """From the annotation, which lists them as ``Kind.group``."""
        listed = [part for part in str(self._annotation(GROUP_KINDS)).split(",") if part]
        return {(part.partition(".")[2], part.partition(".")[0]) for part in listed}

    def _recorded_namespaces(self) -> Set[str]:
        return {part for part in str(self._annotation(NAMESPACES)).split(",") if part}

    def _annotation(self, name: str) -> str:
        annotations = ((self.live or {}).get("metadata") or {}).get("annotations") or {}
        return str(annotations.get(name) or "")

    def _places(self, members: Iterable[Member]) -> List[Place]:
        """Every kind and namespace where members are, or may be."""
        served: Dict[GroupKind, Resource] = {}
        places: Dict[Place, None] = {}
        for member in _own(members):
            if member.resource is not None and member.served:
                served[(group_of(member.resource.api_version), member.resource.kind)] = member.resource
                places[(member.resource, member.namespace)] = None
        for group, kind in sorted(self._recorded_kinds()):
            resource = served.get((group, kind)) or self._discovery.preferred(group, kind)
            if resource is None:  # its definition, and so every object of it, is gone
                continue
            everywhere = sorted({self.namespace, *self._recorded_namespaces()})
            for namespace in everywhere if resource.namespaced else [None]:
                places[(resource, namespace)] = None
        return list(places)

    def _list(self, place: Place) -> List[Json]:
        return objects_of(self._client, *place, labelSelector=f"{PART_OF}={self.id}")[0]

    def _record(self, kinds: Set[GroupKind], namespaces: Set[str]) -> None:
        wanted = self._wanted(kinds, namespaces)
        if _difference(self.live, wanted) != "unchanged":
            try:
                self.live = self._client.apply(self.path, wanted, TOOL, force=True)
            except ApiError as error:
                raise ClusterError(f"{self.title}: {refusal(error)}") from error
            self.written = True
        self.action = _difference(self._before, wanted)

    def _wanted(self, kinds: Set[GroupKind], namespaces: Set[str]) -> Json:
        annotations = {
            TOOLING: f"{TOOL}/{TOOL_VERSION}",
            GROUP_KINDS: ",".join(sorted(f"{kind}.{group}" if group else kind for group, kind in kinds)),
            NAMESPACES: ",".join(sorted(namespaces)),
        }
        metadata = {"name": self.name, "namespace": self.namespace, "labels": {ID: self.id}}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata, "annotations": annotations}}


def _own(members: Iterable[Member]) -> List[Member]:
    """Those that belong to the set: not what it shares with others."""
    return [member for member in members if not member.shared]


def _difference(live: Optional[Json], wanted: Json) -> str:
    """What it takes to make a record say what is wanted: created, updated or unchanged."""
    if live is None:
        return "created"
    annotations = live["metadata"].get("annotations") or {}
    same = all(annotations.get(name) == value for name, value in wanted["metadata"]["annotations"].items())
    return "unchanged" if same else "updated"
