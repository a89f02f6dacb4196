# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of cluster_wait: from its options, over what the server shows, to its results."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.diagnosis import diagnosis
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery, Resource, group_of
from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError, NotReadyError, named
from ansible_collections.inferops.cluster.plugins.module_utils.expect import Expectation, expectation
from ansible_collections.inferops.cluster.plugins.module_utils.follow import Follower, Target
from ansible_collections.inferops.cluster.plugins.module_utils.load import title
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import READY, State, leaving
from ansible_collections.inferops.cluster.plugins.module_utils.wait import DIAGNOSED, judged

Json = Dict[str, Any]

POLL = 1.0  # seconds between looks for a kind that is not served yet
DETAILED = 2  # objects of one label selector that are diagnosed


@dataclass(eq=False)
class Awaited:
    """One entry of ``objects``."""

    entry: Mapping[str, Any]
    rule: Expectation
    target: Optional[Target] = None
    state: State = field(default_factory=lambda: State(False, "was not looked at yet"))

    @property
    def found(self) -> List[Json]:
        """The live objects when it was last looked at."""
        return self.target.found if self.target else []


class Awaiting:
    """What is waited for, and what has been seen of it."""

    def __init__(self, params: Mapping[str, Any], check_mode: bool) -> None:
        self._params = params
        self._check = check_mode
        self._awaited: List[Awaited] = []

    def run(self, client: Client) -> None:
        """Wait. Raises NotReadyError with the reasons, InputError for what can never be found."""
        deadline = Deadline(0 if self._check else self._params["wait_timeout"])
        self._awaited = [Awaited(entry, expectation(entry)) for entry in self._params["objects"]]
        self._find_kinds(client, Discovery(client), deadline)
        targets = [one.target for one in self._awaited if one.target]
        Follower(client, targets, deadline).wait()
        for one in self._awaited:
            one.state = one.target.state if one.target else one.state
        unmet = [one for one in self._awaited if not one.state.ready]
        if unmet and not self._check:
            entries = [
                {**one.entry, "reason": one.state.reason, "final": one.state.final, "details": lines}
                for one, lines in zip(unmet, self._details(client, unmet), strict=True)
            ]
            total = len(self._awaited)
            raise NotReadyError({"for": "ready", "total": total, "seconds": deadline.elapsed, "unmet": entries})

    def results(self) -> List[Json]:
        """The entries of the module's ``objects``."""
        return [
            {
                **{name: one.entry[name] for name in ("api_version", "kind", "namespace", "name", "label_selector")},
                "found": [item["metadata"]["name"] for item in one.found],
                "ready": one.state.ready,
                "reason": one.state.reason,
            }
            for one in self._awaited
        ]

    def _find_kinds(self, client: Client, discovery: Discovery, deadline: Deadline) -> None:
        """Make a target of every entry whose kind the server knows, and wait for those it does not know yet."""
        missing = self._awaited
        while True:
            discovery.load({one.entry["api_version"] for one in missing})
            problems: List[str] = []
            for one in missing:
                resource = discovery.resource(one.entry["api_version"], one.entry["kind"])
                self._place(client, discovery, one, resource, problems)
            if problems:
                raise InputError("\n".join(problems))
            missing = [one for one in missing if not one.target and not one.state.ready]
            if not missing or deadline.passed:
                return
            time.sleep(min(POLL, deadline.left))
            discovery.forget({one.entry["api_version"] for one in missing})

    def _place(
        self, client: Client, discovery: Discovery, one: Awaited, resource: Optional[Resource], problems: List[str]
    ) -> None:
        entry = one.entry
        if resource is None:
            why = discovery.why_unknown(entry["api_version"], entry["kind"])
            if "." not in group_of(entry["api_version"]):  # Kubernetes' own kinds do not come later
                problems.append(f"{named(dict(entry))}: {why}")
            one.state = READY if entry["state"] == "absent" else State(False, why)
            return
        if resource.namespaced and entry["name"] and not entry["namespace"]:
            problems.append(f"{named(dict(entry))} names no namespace: give it one")
            return
        namespace = entry["namespace"] if resource.namespaced else None
        judge = _judge(client, one)
        one.target = Target(resource, namespace, judge, entry["name"], entry["label_selector"] or "")

    def _details(self, client: Client, unmet: List[Awaited]) -> List[List[str]]:
        def look(one: Awaited) -> List[str]:
            waiting = [item for item in one.found if not one.rule.judge(item).ready]
            return [line for item in waiting[:DETAILED] for line in diagnosis(client, item)]

        wanted = [one for one in unmet[:DIAGNOSED] if one.entry["state"] == "present"]
        told = {id(one): lines for one, lines in zip(wanted, client.map(look, wanted), strict=True)}
        return [told.get(id(one), []) for one in unmet]


def _judge(client: Client, one: Awaited) -> Callable[[List[Json]], State]:
    entry = one.entry

    def absent(found: List[Json]) -> State:
        if not found:
            return READY
        first = found[0]
        why = leaving(first) if first["metadata"].get("deletionTimestamp") else "exists"
        return State(False, why if entry["name"] else f"{len(found)} exist; {title(first)} {why}")

    def single(found: List[Json]) -> State:
        return judged(client, one.rule, found[0]) if found else State(False, "does not exist")

    def several(found: List[Json]) -> State:
        states = [(item, judged(client, one.rule, item)) for item in found]
        for item, state in states:
            if not state.ready:
                good = sum(other.ready for _item, other in states)
                reason = f"{good} of {len(found)} are as wanted; {title(item)}: {state.reason}"
                return State(False, reason, state.final)
        if len(found) < entry["minimum"]:
            return State(False, f"{len(found)} of at least {entry['minimum']} exist")
        return READY

    if entry["state"] == "absent":
        return absent
    return single if entry["name"] else several
