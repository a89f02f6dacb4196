# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow many objects at once by watches, until all are as wanted or the time is over.

Objects of one kind and namespace share a watch, and each watch has a thread. A watch begins with a LIST, ends after
some seconds, and begins again, so that no lost event or dead connection goes unnoticed for long. Whoever may not list
or watch gets the same by GETs, once a second.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Resource, objects_of
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, UnreachableError
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import State

Json = Dict[str, Any]
Found = Dict[Tuple[str, str], Json]  # by namespace and name

WATCH_SECONDS = 20.0  # of one watch; also the longest time that a stale view can last
POLL = 1.0  # seconds between looks where watching is impossible
THREADS = 32  # watches at the same time; what is left is polled


@dataclass(eq=False)
class Target:
    """Something to wait for: one object by name, or all objects that a label selector finds.

    ``judge`` gets the live objects that there are (for a name: none or one). ``unreadable`` is the state when the
    server does not let us see them. A target that was ready once stays so.
    """

    resource: Resource
    namespace: Optional[str]
    judge: Callable[[List[Json]], State]
    name: Optional[str] = None
    selector: str = ""
    unreadable: Optional[State] = None
    state: State = field(default_factory=lambda: State(False, "was not looked at yet"))
    found: List[Json] = field(default_factory=list)


Group = List[Target]


class Follower:
    """Waits for targets under one deadline."""

    def __init__(self, client: Client, targets: Iterable[Target], deadline: Deadline) -> None:
        self._client = client
        self._targets = list(targets)
        self._deadline = deadline
        self._over = False
        self._failure: Optional[Exception] = None
        self._news = threading.Condition()

    def wait(self) -> None:
        """Return when all targets are ready, one can never become so, or the deadline has passed.

        Every target has been looked at by then, however short the time.
        """
        groups = self._groups()
        self._client.map(self._look, groups)
        unmet = [group for group in groups if not _met(group)]
        rest = unmet[THREADS - 1 :] if len(unmet) > THREADS else []
        jobs = [(self._follow, group) for group in unmet[: len(unmet) - len(rest)]]
        if rest:
            jobs.append((self._poll, [target for group in rest for target in group]))
        if not self._ended():
            for job, group in jobs:
                threading.Thread(target=self._run, args=(job, group), daemon=True).start()
        with self._news:
            while not self._ended() and self._failure is None:
                self._news.wait(self._deadline.left)
            self._over = True
        if self._failure is not None:
            raise self._failure

    def _run(self, job: Callable[[Group], None], group: Group) -> None:
        try:
            job(group)
        except Exception as error:  # raised again where it is seen: an exception would die with this thread
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _ended(self) -> bool:
        finals = any(target.state.final for target in self._targets)
        return finals or self._deadline.passed or _met(self._targets)

    def _groups(self) -> List[Group]:
        groups: Dict[Tuple[Resource, Optional[str], str], Group] = {}
        for target in self._targets:
            groups.setdefault((target.resource, target.namespace, target.selector), []).append(target)
        return list(groups.values())

    def _done(self, group: Group) -> bool:
        return self._over or self._deadline.passed or _met(group)

    def _follow(self, group: Group) -> None:
        version = ""
        while not self._done(group):
            try:
                found, version = self._list(group)
                if not version:
                    time.sleep(min(POLL, self._deadline.left))
                elif not self._done(group):
                    self._watch(group, found, version)
            except ApiError as error:
                if error.status == 403:
                    self._poll(group)
                elif error.status != 410:
                    self._note(group, error.message)
                    time.sleep(POLL)
            except UnreachableError as error:
                self._note(group, str(error))
                time.sleep(POLL)

    def _watch(self, group: Group, found: Found, version: str) -> None:
        seconds = max(1.0, min(WATCH_SECONDS, self._deadline.left))
        for event, item in self._client.watch(_path(group), version, seconds, **_query(group)):
            place = _place(item)
            if event == "DELETED":
                found.pop(place, None)
            else:
                found[place] = item
            self._judge([target for target in group if target.name in (None, place[1])], found)
            if self._done(group):
                return

    def _poll(self, group: Group) -> None:
        while not self._done(group):
            time.sleep(min(POLL, self._deadline.left))
            for part in _shared(group):
                self._look(part)

    def _look(self, group: Group) -> None:
        """Judge the group once, with whatever rights there are."""
        try:
            try:
                self._list(group)
            except ApiError as error:
                if error.status != 403:
                    raise
                self._get(group)
        except ApiError as error:
            self._note(group, error.message, error.status == 403)
        except UnreachableError as error:
            self._note(group, str(error))

    def _list(self, group: Group) -> Tuple[Found, str]:
        items, version = objects_of(self._client, group[0].resource, group[0].namespace, **_query(group))
        found = {_place(item): item for item in items}
        self._judge(group, found)
        return found, version

    def _get(self, group: Group) -> None:
        found: Found = {}
        for target in group:
            if target.name is None:
                continue
            item = self._client.find(target.resource.path(target.namespace, target.name))
            if item is not None:
                found[_place(item)] = item
        self._judge([target for target in group if target.name is not None], found)
        for target in group:
            if target.name is None:
                self._note([target], "the right to list these objects is missing", forbidden=True)

    def _judge(self, group: Group, found: Found) -> None:
        with self._news:
            for target in group:
                if target.state.ready:
                    continue
                if target.name is None:
                    target.found = list(found.values())
                else:
                    item = found.get((target.namespace or "", target.name))
                    target.found = [item] if item is not None else []
            judged = [(target, target.found) for target in group if not target.state.ready]
        states = [(target, target.judge(items)) for target, items in judged]
        with self._news:
            for target, state in states:
                target.state = state
            self._news.notify_all()

    def _note(self, group: Group, problem: str, forbidden: bool = False) -> None:
        with self._news:
            for target in group:
                if not target.state.ready:
                    refused = target.unreadable if forbidden else None
                    target.state = refused or State(False, f"cannot be read: {problem}")
            self._news.notify_all()


def _met(group: Group) -> bool:
    return all(target.state.ready for target in group)


def _shared(group: Group) -> List[Group]:
    """The parts of a group that one LIST can answer."""
    parts: Dict[Tuple[Resource, Optional[str], str], Group] = {}
    for target in group:
        if not target.state.ready:
            parts.setdefault((target.resource, target.namespace, target.selector), []).append(target)
    return list(parts.values())


def _path(group: Group) -> str:
    return group[0].resource.path(group[0].namespace)


def _query(group: Group) -> Dict[str, str]:
    if group[0].selector:
        return {"labelSelector": group[0].selector}
    names = {target.name for target in group}
    if len(names) == 1 and None not in names:
        return {"fieldSelector": f"metadata.name={names.pop()}"}
    return {}


def _place(item: Json) -> Tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace") or "", metadata["name"]
