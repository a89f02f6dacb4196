# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of apply_set: from its options to its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, List, Optional

from ansible_collections.inferops.cluster.plugins.module_utils import diff, load, members, patch
from ansible_collections.inferops.cluster.plugins.module_utils.apply import Applier
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.collateral import refuse_collateral
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import (
    Discovery,
    Resource,
    group_of,
    promised_by_crds,
)
from ansible_collections.inferops.cluster.plugins.module_utils.membership import Membership
from ansible_collections.inferops.cluster.plugins.module_utils.removal import Remover
from ansible_collections.inferops.cluster.plugins.module_utils.sharing import Sharing
from ansible_collections.inferops.cluster.plugins.module_utils.wait import Rules, wait_ready


class Task:
    """One run of the module: what it was given, and what it has found so far."""

    def __init__(self, params: Dict[str, Any], check_mode: bool) -> None:
        self.params = params
        self.check = check_mode
        self.members: List[members.Member] = []
        self.strays: List[members.Member] = []
        self.membership: Optional[Membership] = None
        self.foreseen = [Resource(**kind) for kind in params["foreseen"] if check_mode]

    def run(self, client: Client) -> None:
        """Apply or remove the set. Raises ClusterError; ``members`` then still say what has been done."""
        deadline = Deadline(self.params["wait_timeout"])
        discovery = Discovery(client)
        present = self.params["state"] == "present"
        if self.params["prune"]:
            self.membership = Membership(client, discovery, self.params["name"], self.params["namespace"])
        items = load.load_set(
            [] if self.params["objects"] is None else self.params["objects"],
            self.params["src"] or [],
            self.params["templates"] or [],
        )
        rules = Rules(self.params["wait_for"])
        items = patch.exclude(items, self.params["exclude"])
        if present:
            items = patch.patch_all(items, self.params["patches"])
            rules.refuse_unused(items)
        self.members = members.resolve(
            discovery, items, self.params["namespace"], self.check or not present, self.foreseen
        )
        patch.refuse_empty(self.params["shared"], "shared")
        for member in self.members:
            member.shared = any(patch.matches(member.wanted, selector) for selector in self.params["shared"])
        remover = Remover(client, self.check, self.params["wait"], deadline)
        if present:
            self._apply(client, discovery, remover)
            if self.params["wait"] and not self.check:
                wait_ready(client, self.members, rules, deadline)
        else:
            self._remove(client, discovery, remover)

    def _apply(self, client: Client, discovery: Discovery, remover: Remover) -> None:
        manager, force, repair = (self.params[option] for option in ("field_manager", "force", "repair"))
        applier = Applier(
            client, discovery, self.members, manager, force, repair, self.check, remover.deadline, self.membership
        )
        applier.foreseen = {(group_of(kind.api_version), kind.kind) for kind in self.foreseen}
        try:
            applier.run()
        finally:
            self.strays = applier.strays
        # Before the wait: what the new objects wait for may be held by the old ones, such as a GPU.
        remover.remove(self.strays)
        if self.membership and not self.check:
            self.membership.settle(self.members)

    def _remove(self, client: Client, discovery: Discovery, remover: Remover) -> None:
        own = [member for member in self.members if not member.shared]
        sharing = Sharing(client, discovery, remover, self.params["field_manager"])
        if self.membership is None:
            members.read_live(client, self.members)
            remover.remove(own)
            sharing.give_up([member for member in self.members if member.shared], own)
            return
        self.membership.read()
        found = self.membership.survey(self.members)
        members.read_live(client, [member for member in self.members if member.live is None])
        if not self.params["force"]:
            self.membership.refuse_others(self.members)
        self.strays = [
            member
            for member in found
            if not any(patch.matches(member.wanted, selector) for selector in self.params["exclude"])
        ]
        everything = own + self.strays
        refuse_collateral(client, discovery, self.strays, [self.membership.live, *(one.live for one in everything)])
        remover.remove(everything)
        self.membership.forget(self.check)
        record = [self.membership.member()]
        sharing.give_up([member for member in self.members if member.shared], everything + record)

    @property
    def touched(self) -> List[members.Member]:
        """All that the task is about: the objects given, those pruned, and the record of the set."""
        record = [self.membership.member()] if self.membership and self.membership.action else []
        return self.members + self.strays + record

    def outcome(self) -> str:
        """For a failure: what had been done before it."""
        done = [member for member in self.touched if member.written]
        if not done:
            return "Nothing was changed."
        shown = ", ".join(f"{member.title} {member.action}" for member in done[:10])
        return f"Done before that: {shown}" + (f" and {len(done) - 10} more." if len(done) > 10 else ".")

    def results(self, with_diff: bool) -> Dict[str, Any]:
        """What the module returns, whether it succeeded or not."""
        found: Dict[str, Any] = {
            "changed": any(member.changed and (member.written or self.check) for member in self.touched),
            "objects": [member.result() for member in self.touched],
            "invocation": {"module_args": self._shown_params()},
        }
        changed = [member.wanted for member in self.members if member.action in ("created", "updated")]
        kinds = promised_by_crds(changed) if self.check else {}
        if kinds:
            found["foreseen"] = [asdict(kind) for kind in kinds.values()]
        if with_diff:
            found["diff"] = [self._diff(member) for member in self.touched if member.changed]
        return found

    def _diff(self, member: members.Member) -> Dict[str, str]:
        after = None if member.action == "deleted" else member.after or member.wanted
        return diff.entry(member.live, after)

    def _shown_params(self) -> Dict[str, Any]:
        """The parameters without manifests and patches: these may hold Secrets."""
        shown = dict(self.params)
        shown["objects"] = "(not shown)" if self.params["objects"] else None
        for option in ("src", "templates"):
            given = self.params[option]
            shown[option] = given and [one.get("path") if isinstance(one, dict) else one for one in given]
        shown["patches"] = f"{len(self.params['patches'])} patches"
        return shown
