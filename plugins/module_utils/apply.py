# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a set to its wanted state: decide without writing, refuse as a whole, then write in order.

0. With a membership, all that the set holds is read; what it no longer should hold must be free to go.
1. Everything that can be judged beforehand is: live objects are read, those in sync are done, the others go through a
   server-side dry run. One refusal stops the set before anything is written.
2. CRDs and namespaces are written; what depended on them is then judged in the same way, before more is written.
3. The rest is written phase by phase. What nobody wants any more is left in ``strays``, for the caller to delete.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.collateral import refuse_collateral
from ansible_collections.inferops.cluster.plugins.module_utils.conflicts import conflicts, repairable
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery, Resource, group_of
from ansible_collections.inferops.cluster.plugins.module_utils.drift import in_sync, same_content, same_ownership
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import explain, secrets_hidden
from ansible_collections.inferops.cluster.plugins.module_utils.members import (
    Member,
    crd_groups,
    defined_by,
    read_live,
    read_other_versions,
)
from ansible_collections.inferops.cluster.plugins.module_utils.membership import Membership, carry_over
from ansible_collections.inferops.cluster.plugins.module_utils.order import CRDS, NAMESPACES, phases, rank
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import readiness
from ansible_collections.inferops.cluster.plugins.module_utils.wait import wait_gone

Json = Dict[str, Any]

ESTABLISH_TIMEOUT = 60.0  # seconds for a CRD to be served
POLL = 0.2  # seconds


@dataclass
class Applier:
    """Applies the members of one set.

    ``force``: take over fields of all other managers; ``repair``: of people. ``check_mode``: judge everything, write
    nothing.
    """

    client: Client
    discovery: Discovery
    members: List[Member]
    manager: str
    force: bool
    repair: bool
    check_mode: bool
    deadline: Deadline
    membership: Optional[Membership] = None
    strays: List[Member] = field(default_factory=list)  # objects of the set that it no longer names
    foreseen: Set[Tuple[str, str]] = field(default_factory=set)  # (group, kind) that earlier tasks would have changed

    def run(self) -> None:
        """Decide, and unless in check mode write. Members tell what happened; ClusterError when the set is refused."""
        self._read()
        self._let_leave()
        pending = self._judge(self.members)
        if self.check_mode:
            for member in pending:
                self._assume(member)
            for member in self.strays:
                member.action = "deleted"
            if self.membership:
                self.membership.foresee(self.members)
            return
        self._write([member for member in self.members if self._holds_record(member)])
        if self.membership:
            self.membership.widen(self.members)
        first = [member for member in self.members if self._rank(member) in (CRDS, NAMESPACES)]
        self._write([member for member in first if not member.written])
        if pending:
            self._open_kinds(pending)
            read_live(self.client, pending)
            for member in self._judge(pending):
                self._assume(member)
        later = [member for member in self.members if self._rank(member) not in (CRDS, NAMESPACES)]
        self._write(later)

    def _read(self) -> None:
        """What is there; with a membership, also what should no longer be."""
        if self.membership is None:
            self._read_live(self.members)
            carry_over(self.members, self.manager)
            return
        shared = [member for member in self.members if member.shared]
        self.membership.read()
        self.strays = self.membership.survey(self.members)
        self._read_live([member for member in self.members if member.live is None])
        if not self.force:
            self.membership.refuse_others(self.members)
        leaving = [self.membership.live, *(member.live for member in self.strays)]
        refuse_collateral(self.client, self.discovery, self.strays, leaving)
        self.membership.join(self.members)
        carry_over(shared, self.manager)

    def _read_live(self, members: List[Member]) -> None:
        read_live(self.client, members)
        if self.check_mode:  # else their definition is written first, and they are read in their own version
            read_other_versions(self.client, self.discovery, members)

    def _let_leave(self) -> None:
        """An earlier deletion of members may not have ended. They are made anew once they are gone."""
        leaving = [member for member in self.members if member.live and _leaves(member.live)]
        if not leaving:
            return
        if not self.check_mode:
            wait_gone(self.client, leaving, self.deadline)
            self._read()
            return
        namespaces = {member.wanted["metadata"]["name"] for member in leaving if self._rank(member) == NAMESPACES}
        for member in self.members:
            if member in leaving or member.namespace in namespaces:
                member.live = None

    def _holds_record(self, member: Member) -> bool:
        """Is this the namespace in which the record of the set will be?"""
        return (
            self.membership is not None
            and self._rank(member) == NAMESPACES
            and member.wanted["metadata"]["name"] == self.membership.namespace
        )

    def _judge(self, members: List[Member]) -> List[Member]:
        """Decide the action of each member. Returns those that wait for another member; raises when any is refused."""
        doubtful = []
        for member in members:
            if member.live is not None and in_sync(member.wanted, member.live, self.manager):
                member.action, member.after = "unchanged", member.live
            else:
                doubtful.append(member)
        absent_namespaces = self._absent_namespaces()
        testable = [member for member in doubtful if member.served and member.namespace not in absent_namespaces]
        waiting = [member for member in doubtful if member not in testable]
        failures = []
        for member, error in zip(testable, self.client.map(self._dry_run, testable), strict=True):
            if error is None:
                continue
            if self._waits_for_sibling(member, error):
                waiting.append(member)
            else:
                failures.append((member, error))
        if failures:
            raise self._refused(failures)
        return waiting

    def _dry_run(self, member: Member) -> Optional[ApiError]:
        try:
            member.after = self._applied(member, dry_run=True)
        except ApiError as error:
            return error
        if member.taken:
            member.note = f"takes over {', '.join(str(one) for one in member.taken)}"
        if member.live is None:
            member.action = "created"
        elif not same_content(member.live, member.after):
            member.action = "updated"
        elif same_ownership(member.live, member.after, self.manager):
            member.action = "unchanged"
        else:
            member.action = "updated"
            member.note = f"only the ownership of its fields goes to {self.manager}"
        return None

    def _applied(self, member: Member, dry_run: bool = False) -> Json:
        """Apply one member. Fields of others are taken over where that is allowed, and remembered in ``taken``."""
        if self.force and not dry_run:
            return self.client.apply(member.path, member.wanted, self.manager, force=True)
        try:
            return self.client.apply(member.path, member.wanted, self.manager, dry_run=dry_run)
        except ApiError as error:
            found = conflicts(error)
            allowed = self.force or (
                self.repair and repairable(found, member.live, self.manager, member.wanted["apiVersion"])
            )
            if not found or not allowed:
                raise
        member.taken = found
        return self.client.apply(member.path, member.wanted, self.manager, force=True, dry_run=dry_run)

    def _absent_namespaces(self) -> Dict[str, None]:
        """Namespaces of this set that do not exist yet."""
        return {
            member.wanted["metadata"]["name"]: None
            for member in self.members
            if self._rank(member) == NAMESPACES and member.live is None and not member.written
        }

    def _waits_for_sibling(self, member: Member, error: ApiError) -> bool:
        """Would this refusal go away once other members, or in check mode earlier tasks, have been applied?"""
        if error.missing_namespace:
            return self.check_mode
        crd = defined_by(member, crd_groups(self.members))
        if crd is not None and not crd.written and crd.action != "unchanged":
            return True
        if (group_of(member.wanted["apiVersion"]), member.wanted["kind"]) in self.foreseen:
            return True
        if error.status not in (400, 403, 404, 422) or "not found" not in error.message:
            return False
        missing = {other.wanted["metadata"]["name"] for other in self.members if other.live is None and other != member}
        return any(f'"{name}" not found' in error.message for name in missing)

    def _assume(self, member: Member) -> None:
        """The action of a member that could not be judged: it is not there, or what defines it is about to change."""
        member.action = "created" if member.live is None else "updated"
        if self.check_mode:
            member.note = (
                "not checked by the server: its namespace, its kind or an object it names does not exist yet, or the "
                "definition of its kind is about to change"
            )

    def _open_kinds(self, pending: Iterable[Member]) -> None:
        """Wait until the kinds that the set's own CRDs define are served, and learn them anew."""
        crds = crd_groups(self.members)
        needed = [crd for crd in crds.values() if any(defined_by(member, crds) is crd for member in pending)]
        deadline = time.monotonic() + ESTABLISH_TIMEOUT
        while True:
            waiting = [crd for crd in needed if not self._established(crd)]
            unserved = [] if waiting else self._unserved(pending)
            if not waiting and not unserved:
                return
            if time.monotonic() > deadline:
                names = ", ".join(member.title for member in waiting or unserved)
                raise ClusterError(
                    f"not served {ESTABLISH_TIMEOUT:.0f} s after their definition: {names}. See the conditions of the "
                    "CustomResourceDefinitions"
                )
            time.sleep(POLL)

    def _established(self, crd: Member) -> bool:
        live = self.client.find(crd.path)
        return live is not None and readiness(live).ready

    def _unserved(self, pending: Iterable[Member]) -> List[Member]:
        versions = {member.wanted["apiVersion"] for member in pending if not member.served}
        self.discovery.forget(versions)
        self.discovery.load(versions)
        missing = []
        for member in pending:
            resource: Optional[Resource] = self.discovery.resource(member.wanted["apiVersion"], member.wanted["kind"])
            member.served = resource is not None
            if resource is None:
                missing.append(member)
            else:
                member.resource = resource
        return missing

    def _write(self, members: List[Member]) -> None:
        """Write what has drifted, one phase after the other; stop after the first phase with a failure."""
        for phase in phases([member for member in members if member.changed], self._rank):
            failures = [
                (member, error)
                for member, error in zip(phase, self.client.map(self._write_one, phase), strict=True)
                if error is not None
            ]
            if failures:
                raise self._refused(failures)

    def _write_one(self, member: Member) -> Optional[ApiError]:
        try:
            member.after = self._applied(member)
        except ApiError as error:
            return error
        member.written = True
        return None

    def _refused(self, failures: List[Tuple[Member, ApiError]]) -> ClusterError:
        for member in self.members:
            if member.changed and not member.written:
                member.action = ""
        for member, error in failures:
            member.note = secrets_hidden(error.message, member)
            error.message = member.note
        reasons = explain(failures, self.client.server)
        return ClusterError(f"{len(failures)} of {len(self.members)} objects were refused:\n{reasons}")

    @staticmethod
    def _rank(member: Member) -> int:
        return rank(member.wanted)


def _leaves(item: Json) -> bool:
    return bool(item["metadata"].get("deletionTimestamp"))
