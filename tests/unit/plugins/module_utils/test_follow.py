# SPDX-License-Identifier: GPL-3.0-or-later
"""Following objects by watches, against a server that plays a script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils import follow
from ansible_collections.inferops.cluster.plugins.module_utils.deadline import Deadline
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Resource
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, UnreachableError
from ansible_collections.inferops.cluster.plugins.module_utils.follow import Follower, Target
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import READY, State

Json = dict[str, Any]
THINGS = Resource("x.io/v1", "Thing", "things", True)


def thing(name: str, phase: str) -> Json:
    return {"metadata": {"name": name, "namespace": "n"}, "phase": phase}


def up(found: list[Json]) -> State:
    phase = found[0]["phase"] if found else "missing"
    return State(phase == "Up", phase, final=phase == "Failed")


class Script:
    """A client: each LIST and each watch takes the next of its answers, the last one again and again."""

    def __init__(self, lists: list[Any], watches: list[Any] | None = None, gets: list[Any] | None = None) -> None:
        self.left = {"list": lists, "watch": watches or [[]], "get": gets or []}
        self.asked: list[tuple[str, str, Json]] = []

    def map(self, function: Callable[[Any], Any], items: Any) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(function, items))

    def _next(self, what: str, path: str, query: Json) -> Any:
        self.asked.append((what, path, query))
        answers = self.left[what]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def snapshot(self, path: str, **query: str) -> tuple[list[Json], str]:
        return self._next("list", path, query), "7"

    def find(self, path: str) -> Json | None:
        return self._next("get", path, {})

    def watch(self, path: str, version: str, seconds: float, **query: str) -> Iterator[tuple[str, Json]]:
        assert version == "7"
        for event in self._next("watch", path, query):
            if isinstance(event, Exception):
                raise event
            yield event
        time.sleep(0.01)


def run(script: Script, *targets: Target, seconds: float = 5.0) -> None:
    Follower(script, targets, Deadline(seconds)).wait()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.01)


def test_objects_of_one_kind_and_namespace_share_a_watch() -> None:
    events = [("MODIFIED", thing("a", "Up")), ("ADDED", thing("stranger", "Down")), ("MODIFIED", thing("b", "Up"))]
    script = Script([[thing("a", "Down"), thing("b", "Down")]], [events])
    targets = [Target(THINGS, "n", up, name) for name in "ab"]
    run(script, *targets)
    assert all(target.state.ready for target in targets)
    path = "/apis/x.io/v1/namespaces/n/things"
    assert script.asked == [("list", path, {}), ("list", path, {}), ("watch", path, {})]


def test_a_single_object_and_a_selector_narrow_what_is_watched() -> None:
    script = Script([[thing("a", "Up")]])
    run(script, Target(THINGS, "n", up, "a"), Target(THINGS, None, up, selector="l=1"))
    queries = {str(query) for _what, _path, query in script.asked}
    assert queries == {"{'fieldSelector': 'metadata.name=a'}", "{'labelSelector': 'l=1'}"}


def test_a_watch_that_breaks_or_expires_begins_again_with_a_list() -> None:
    expired = ApiError(410, {"message": "too old"}, "GET", "/")
    watches = [[expired], [UnreachableError("cut")], [("MODIFIED", thing("a", "Up"))]]
    script = Script([[thing("a", "Down")]], watches)
    target = Target(THINGS, "n", up, "a")
    run(script, target)
    assert target.state.ready
    assert [what for what, _path, _query in script.asked].count("watch") == 3


def test_who_may_not_list_gets_one_by_one() -> None:
    forbidden = ApiError(403, {"message": "no"}, "GET", "/")
    script = Script([forbidden], gets=[thing("a", "Down"), thing("a", "Down"), thing("a", "Up")])
    target = Target(THINGS, "n", up, "a")
    run(script, target)
    assert target.state.ready


def test_who_may_see_nothing_is_told_so_or_takes_it_for_gone() -> None:
    forbidden = ApiError(403, {"message": "no"}, "GET", "/")
    blind, leaving = Target(THINGS, "n", up, "a"), Target(THINGS, "n", up, "b", unreadable=READY)
    run(Script([forbidden], gets=[forbidden]), blind, leaving, seconds=0.1)
    assert blind.state == State(False, "cannot be read: no")
    assert leaving.state.ready


def test_what_can_never_become_ready_ends_the_wait_at_once() -> None:
    script = Script([[thing("a", "Down"), thing("b", "Down")]], [[("MODIFIED", thing("a", "Failed"))]])
    targets = [Target(THINGS, "n", up, name) for name in "ab"]
    started = time.monotonic()
    run(script, *targets, seconds=60)
    assert targets[0].state.final
    assert time.monotonic() - started < 30


def test_a_deletion_is_seen() -> None:
    def gone(found: list[Json]) -> State:
        return State(not found, "exists")

    script = Script([[thing("a", "Up")]], [[("DELETED", thing("a", "Up"))]])
    target = Target(THINGS, "n", gone, "a")
    run(script, target)
    assert target.state.ready


def test_without_time_everything_is_looked_at_once() -> None:
    script = Script([[thing("a", "Down")]])
    target = Target(THINGS, "n", up, "a")
    run(script, target, seconds=0)
    assert target.state.reason == "Down"
    assert len(script.asked) == 1


def test_more_groups_than_threads_are_all_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "THREADS", 2)
    script = Script([[thing("a", "Down")]] * 8 + [[{**thing("a", "Up"), "metadata": {"name": "a"}}]])
    targets = [Target(Resource("x.io/v1", f"Kind{n}", f"kind{n}", False), None, up, "a") for n in range(5)]
    run(script, *targets)
    assert all(target.state.ready for target in targets)


def test_a_defect_in_a_rule_is_not_swallowed() -> None:
    def broken(found: list[Json]) -> State:
        return State(found[0]["phase"] == "Up") if found[0]["phase"] != "Odd" else State(found[0]["nothing"])

    script = Script([[thing("a", "Down")]], [[("MODIFIED", thing("a", "Odd"))]])
    with pytest.raises(KeyError):
        run(script, Target(THINGS, "n", broken, "a"))
