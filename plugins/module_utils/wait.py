# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for the members of a set: until all are ready, or gone. Under one deadline, saying why when it was in vain."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.diagnosis import diagnosis
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, InputError, NotReadyError
from ansible_collections.inferops.cluster.plugins.module_utils.expect import Expectation, expectation, refuse_empty
from ansible_collections.inferops.cluster.plugins.module_utils.follow import Follower, Target
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member
from ansible_collections.inferops.cluster.plugins.module_utils.patch import matches
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import READY, State, leaving

Json = Dict[str, Any]

DIAGNOSED = 8  # objects whose pods and events are looked up for the failure message
LOST = State(False, "was deleted by somebody else while it was waited for", final=True)


class Rules:
    """Which expectation holds for which object. The first entry of ``wait_for`` that matches an object decides."""

    def __init__(self, wait_for: Iterable[Mapping[str, Any]]) -> None:
        self._entries: List[Tuple[Mapping[str, Any], Expectation]] = [(one, expectation(one)) for one in wait_for]
        refuse_empty([entry for entry, _rule in self._entries], "wait_for")

    def expected(self, item: Json) -> Expectation:
        """What is waited for with this object."""
        return next((rule for entry, rule in self._entries if matches(item, entry)), Expectation())

    def written(self, item: Json) -> Json:
        """The options ``conditions`` and ``jsonpath`` that hold for this object, as the caller wrote them."""
        entry = next((entry for entry, _rule in self._entries if matches(item, entry)), {})
        return {name: entry.get(name) or [] for name in ("conditions", "jsonpath")}

    def refuse_unused(self, items: List[Json]) -> None:
        """Raise InputError when an entry matches no object: what it should guard would not be waited for."""
        for index, (entry, _rule) in enumerate(self._entries):
            if not any(matches(item, entry) for item in items):
                raise InputError(f"wait_for[{index}] matches no object of the set: correct or remove it")


def wait_ready(client: Client, members: List[Member], rules: Rules, deadline: Deadline) -> None:
    """Return when every member is ready. Raises NotReadyError with the reasons at the deadline, or as soon as a member
    cannot become ready any more (a failed Job)."""
    for member in members:
        member.state = judged(client, rules.expected(member.wanted), member.after or {})
    waiting = [member for member in members if not ready(member)]
    targets = [_target(member, _until_ready(client, rules.expected(member.wanted))) for member in waiting]
    if waiting and not any(member.state and member.state.final for member in waiting):
        Follower(client, targets, deadline).wait()
        for member, target in zip(waiting, targets, strict=True):
            member.state = target.state
            member.after = target.found[0] if target.found else member.after
    unmet = [member for member in waiting if not ready(member)]
    if unmet:
        entries = [
            {**entry, **rules.written(member.wanted)}
            for entry, member in zip(described(client, unmet), unmet, strict=True)
        ]
        raise NotReadyError({"for": "ready", "total": len(members), "seconds": deadline.elapsed, "unmet": entries})


def wait_gone(client: Client, members: List[Member], deadline: Deadline) -> None:
    """Return when none of these live objects exists any more. Raises NotReadyError with what keeps them."""
    targets = [_target(member, _until_gone(member)) for member in members]
    Follower(client, targets, deadline).wait()
    unmet = []
    for member, target in zip(members, targets, strict=True):
        member.state = None if target.state.ready else target.state
        if not target.state.ready:
            unmet.append(member)
    if unmet:
        entries = [entry_of(member.wanted, member.state or READY, []) for member in unmet]
        raise NotReadyError({"for": "gone", "total": len(members), "seconds": deadline.elapsed, "unmet": entries})


def ready(member: Member) -> bool:
    """True when the member was found ready."""
    return member.state is not None and member.state.ready


def judged(client: Client, rule: Expectation, item: Json) -> State:
    """The state of a live object; a claim that waits for its first consumer counts as ready."""
    state = rule.judge(item)
    if not state.ready and rule == Expectation() and item["kind"] == "PersistentVolumeClaim":
        return READY if _binds_late(client, item) else state
    return state


def described(client: Client, members: List[Member]) -> List[Json]:
    """The entries of ``unmet`` for these members; the first ones with what their pods and events say."""
    live = [member.after or member.wanted for member in members[:DIAGNOSED]]
    details = [*client.map(lambda item: diagnosis(client, item), live), *([] for dummy in members[DIAGNOSED:])]
    return [
        entry_of(member.wanted, member.state or State(False), lines)
        for member, lines in zip(members, details, strict=True)
    ]


def entry_of(item: Json, state: State, details: List[str]) -> Json:
    """One object that has not become what it should."""
    metadata = item["metadata"]
    return {
        "api_version": item["apiVersion"],
        "kind": item["kind"],
        "namespace": metadata.get("namespace"),
        "name": metadata["name"],
        "reason": state.reason,
        "final": state.final,
        "details": details,
    }


def _target(member: Member, judge: Callable[[List[Json]], State]) -> Target:
    if member.resource is None:
        raise InputError(f"{member.title}: the server does not know this kind")
    # Who may no longer read an object has lost that right with it.
    gone = READY if member.action == "deleted" else None
    name = member.wanted["metadata"]["name"]
    return Target(member.resource, member.namespace, judge, name, unreadable=gone)


def _until_ready(client: Client, rule: Expectation) -> Callable[[List[Json]], State]:
    return lambda found: judged(client, rule, found[0]) if found else LOST


def _until_gone(member: Member) -> Callable[[List[Json]], State]:
    uid = member.live["metadata"].get("uid") if member.live else None

    def judge(found: List[Json]) -> State:
        # Another uid is another object: some controller has made a new one of the same name.
        if not found or found[0]["metadata"].get("uid") != uid:
            return READY
        return State(False, "; ".join([_leaving(found[0]), *_content(found[0])]))

    return judge


def _leaving(item: Json) -> str:
    return leaving(item) if item["metadata"].get("deletionTimestamp") else "exists"


def _content(item: Json) -> List[str]:
    """What a namespace says is still in it."""
    if item["kind"] != "Namespace":
        return []
    conditions = (item.get("status") or {}).get("conditions") or []
    return [str(condition.get("message")) for condition in conditions if condition.get("status") == "True"]


def _binds_late(client: Client, claim: Json) -> bool:
    """A claim of such a storage class is bound only when a pod uses it."""
    name = claim.get("spec", {}).get("storageClassName")
    if not name or (claim.get("status") or {}).get("phase") != "Pending":
        return False
    try:
        storage_class = client.find(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
    except ApiError:
        return False
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
