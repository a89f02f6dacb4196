# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a set away: the reverse of its order, waiting for each phase to be gone before what it may depend on goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import explain
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member, read_live
from ansible_collections.inferops.cluster.plugins.module_utils.order import WORKLOADS, phases, rank
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import State, readiness

POLL = 0.5  # seconds


@dataclass
class Remover:
    """Deletes the members of one set. Kinds that the server does not know count as absent."""

    client: Client
    members: List[Member]
    check_mode: bool
    wait: bool
    timeout: float  # seconds, for the whole set

    def run(self) -> None:
        """Delete what is there. Members tell what happened; ClusterError when something stays."""
        read_live(self.client, self.members)
        for member in self.members:
            member.action = "absent" if member.live is None else "deleted"
        if self.check_mode:
            return
        deadline = time.monotonic() + self.timeout
        present = [member for member in self.members if member.live is not None]
        for phase in reversed(phases(present, lambda member: rank(member.wanted))):
            failures = [
                (member, error)
                for member, error in zip(phase, self.client.map(self._delete, phase), strict=True)
                if error is not None
            ]
            if failures:
                for member, _error in failures:
                    member.action = ""
                raise ClusterError(
                    f"{len(failures)} objects could not be deleted:\n{explain(failures, self.client.server)}"
                )
            if self.wait:
                self._until_gone(phase, deadline)

    def _delete(self, member: Member) -> Optional[ApiError]:
        # Foreground keeps a workload, or whatever a controller made of a custom resource, until its parts are gone.
        thorough = self.wait and rank(member.wanted) >= WORKLOADS
        try:
            self.client.delete(member.path, "Foreground" if thorough else "Background", self._uid(member.live))
        except ApiError as error:
            return error
        member.written = True
        return None

    def _until_gone(self, members: List[Member], deadline: float) -> None:
        left = members
        while True:
            left = [member for member, gone in zip(left, self.client.map(self._gone, left), strict=True) if not gone]
            if not left:
                return
            if time.monotonic() > deadline:
                reasons = "\n".join(f"{member.title}: {member.state.reason if member.state else ''}" for member in left)
                raise ClusterError(
                    f"{len(left)} objects still exist after {self.timeout:.0f} s:\n{reasons}\n"
                    "A finalizer stays until its controller has cleaned up: see that this controller still runs"
                )
            time.sleep(POLL)

    def _gone(self, member: Member) -> bool:
        try:
            current = self.client.find(member.path)
        except ApiError as error:
            if error.status == 403:  # the right to read it went with the set
                return True
            raise
        # Another uid is another object: some controller has made a new one of the same name.
        if current is None or self._uid(current) != self._uid(member.live):
            member.state = None
            return True
        state = readiness(current)
        left = [
            str(condition.get("message"))
            for condition in (current.get("status") or {}).get("conditions") or []
            if member.wanted["kind"] == "Namespace" and condition.get("status") == "True"
        ]
        member.state = State(False, "; ".join([state.reason, *left]))
        return False

    @staticmethod
    def _uid(item: Optional[Dict[str, Any]]) -> Optional[str]:
        return item["metadata"].get("uid") if item else None
