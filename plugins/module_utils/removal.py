# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a set away: the reverse of its order, waiting for each phase to be gone before what it may depend on goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import explain
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member
from ansible_collections.inferops.cluster.plugins.module_utils.order import WORKLOADS, phases, rank
from ansible_collections.inferops.cluster.plugins.module_utils.wait import wait_gone


@dataclass
class Remover:
    """Deletes members of a set whose live objects have been read. Members of unknown kinds have none."""

    client: Client
    check_mode: bool
    wait: bool
    deadline: Deadline

    def remove(self, members: List[Member]) -> None:
        """Delete what is there. Members tell what happened; ClusterError when something stays."""
        for member in members:
            member.action = "absent" if member.live is None else "deleted"
        if self.check_mode:
            return
        present = [member for member in members if member.live is not None]
        for phase in reversed(phases(present, lambda member: rank(member.wanted))):
            failures = [
                (member, error)
                for member, error in zip(phase, self.client.map(self._delete, phase), strict=True)
                if error is not None
            ]
            if failures:
                _reset(present)
                raise ClusterError(
                    f"{len(failures)} objects could not be deleted:\n{explain(failures, self.client.server)}"
                )
            if self.wait:
                try:
                    wait_gone(self.client, phase, self.deadline)
                except ClusterError:
                    _reset(present)
                    raise

    def _delete(self, member: Member) -> Optional[ApiError]:
        # Foreground keeps a workload, or whatever a controller made of a custom resource, until its parts are gone.
        thorough = self.wait and rank(member.wanted) >= WORKLOADS
        try:
            self.client.delete(member.path, "Foreground" if thorough else "Background", self._uid(member.live))
        except ApiError as error:
            return error
        member.written = True
        return None

    @staticmethod
    def _uid(item: Optional[Dict[str, Any]]) -> Optional[str]:
        return item["metadata"].get("uid") if item else None


def _reset(members: List[Member]) -> None:
    """For a failure: those whose turn never came have not been deleted."""
    for member in members:
        if not member.written:
            member.action = ""
