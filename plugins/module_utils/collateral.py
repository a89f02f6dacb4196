# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What else would go: a definition takes all its objects along, and a namespace all that is in it.

Looked at before anything that nobody named is pruned. Objects of the set itself may go with it; a single object of
somebody else's stops the task.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Set

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery, Resource, objects_of
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.load import title
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member

Json = Dict[str, Any]

SHOWN = 5
# Records of what happened, or of who is alive: nobody's property.
PASSING = ("Event", "Lease", "Endpoints", "EndpointSlice", "ControllerRevision")
# Every namespace has these.
FURNITURE = (("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default"))


def refuse_collateral(
    client: Client, discovery: Discovery, strays: List[Member], leaving: Iterable[Optional[Json]]
) -> None:
    """Raise ClusterError when pruning a CRD or namespace would delete more than ``leaving``, what goes anyway."""
    going = {item["metadata"]["uid"] for item in leaving if item}
    problems = []
    for member in strays:
        if member.wanted["kind"] == "CustomResourceDefinition":
            problems.extend(_told(member, _instances(client, member.wanted), going))
        elif member.wanted["kind"] == "Namespace" and member.wanted["apiVersion"] == "v1":
            problems.extend(_told(member, content(client, discovery, member.wanted["metadata"]["name"]), going))
    if problems:
        raise ClusterError("\n".join(problems) + "\nDelete these objects first, or keep what they depend on in the set")


def _told(member: Member, items: Iterable[Json], leaving: Set[str]) -> List[str]:
    others = [title(item) for item in items if item["metadata"]["uid"] not in leaving and not passes(item)]
    if not others:
        return []
    named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
    return [f"{member.title} is no longer in the set, but pruning it would also delete what is not of the set: {named}"]


def passes(item: Json) -> bool:
    """Is this nobody's property: made by a controller for another object, or in every namespace?"""
    kind, metadata = item["kind"], item["metadata"]
    owned = any(owner.get("controller") for owner in metadata.get("ownerReferences") or [])
    return owned or (kind, metadata["name"]) in FURNITURE


def _instances(client: Client, definition: Json) -> List[Json]:
    spec = definition["spec"]
    served = [version["name"] for version in spec["versions"] if version.get("served")]
    if not served:
        return []
    resource = Resource(
        f"{spec['group']}/{served[0]}", spec["names"]["kind"], spec["names"]["plural"], spec["scope"] == "Namespaced"
    )
    return objects_of(client, resource, None)[0]


def content(client: Client, discovery: Discovery, namespace: str) -> List[Json]:
    """All that is in a namespace, but for records of what happened or who is alive."""
    kinds = [resource for resource in discovery.namespaced() if resource.kind not in PASSING]
    found = client.map(lambda resource: objects_of(client, resource, namespace), kinds)
    return [item for items, _version in found for item in items]
