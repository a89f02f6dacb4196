# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the shared objects of a set that is taken away: the last one who needs a namespace removes it.

A namespace goes when nothing is left in it and nobody else has made or applied it. All other shared objects stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.collateral import content, passes
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery
from ansible_collections.inferops.cluster.plugins.module_utils.load import title
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member
from ansible_collections.inferops.cluster.plugins.module_utils.removal import Remover

Json = Dict[str, Any]

SHOWN = 3
# Every namespace is born with this label, in the name of who makes it; of nobody, when that is a server-side apply.
BORN_WITH = "f:kubernetes.io/metadata.name"


@dataclass
class Sharing:
    """Decides about shared objects whose live state has been read."""

    client: Client
    discovery: Discovery
    remover: Remover
    manager: str

    def give_up(self, shared: List[Member], leaving: List[Member]) -> None:
        """Delete what is needed no more once ``leaving`` is gone; all else stays, with a note why."""
        going = {member.live["metadata"]["uid"] for member in leaving if member.live}
        gone = []
        for member in shared:
            if member.live is None:
                member.action = "absent"
                continue
            member.action, member.note = "unchanged", self._needed(member, going)
            if not member.note:
                gone.append(member)
        self.remover.remove(gone)

    def _needed(self, member: Member, going: set[str]) -> str:
        """Why it stays; empty when it need not."""
        live = member.live or {}
        if (member.wanted["apiVersion"], member.wanted["kind"]) != ("v1", "Namespace"):
            return "stays: it is shared with others"
        others = sorted(_makers(live) - {self.manager})
        if others:
            return f"stays: {', '.join(others)} made or applied it"
        inside = content(self.client, self.discovery, live["metadata"]["name"])
        left = [title(item) for item in inside if not self._ends(item, going)]
        if left:
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            return f"stays: there is still {', '.join(left[:SHOWN])}{more}"
        return ""

    @staticmethod
    def _ends(item: Json, going: set[str]) -> bool:
        metadata = item["metadata"]
        return metadata["uid"] in going or bool(metadata.get("deletionTimestamp")) or passes(item)


def _makers(item: Json) -> set[str]:
    """The managers that made a namespace, or have applied it."""
    found = set()
    for entry in item["metadata"].get("managedFields") or []:
        labels = ((entry.get("fieldsV1") or {}).get("f:metadata") or {}).get("f:labels") or {}
        if entry.get("operation") == "Apply" or BORN_WITH in labels:
            found.add(str(entry.get("manager")))
    return found
