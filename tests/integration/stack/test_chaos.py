# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml is killed at random moments, and run again: the cluster ends up as if nothing had happened.

``CHAOS_POINTS`` says how often (``make chaos``: 10), ``CHAOS_SEED`` repeats the moments of an earlier run. Each kill
falls into a change from one list of models to another, which creates, changes and prunes objects of every role; when
there are many, the last one falls into an installation from nothing.
"""

from __future__ import annotations

import copy
import os
import random
import re
import time
from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(3600)]

POINTS = int(os.environ.get("CHAOS_POINTS", "2"))
DURING = 3.0  # seconds from the beginning of a task in which the kill falls
FROM_NOTHING = 4  # with as many points or more, the last one is an installation
SEED = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
Json = dict[str, Any]


def lists(variables: Json) -> tuple[Json, Json]:
    """Two sets of variables: the inventory's with fewer replicas, and one whose every model differs from it."""
    first: Json = copy.deepcopy(variables["inferops_models"][0])
    first["replicas"] = 2
    changed, other = copy.deepcopy(first), copy.deepcopy(first)
    changed.update(replicas=1, epp={"scorers": {"prefix_cache": 10, "queue": 90}}, pool={"request_timeout": "77s"})
    other.update(name="chaos-model", model="chaos-model", replicas=1)
    key = {"litellm_master_key": "sk-the-same-in-every-installation"}
    return {"inferops_models": [first], **key}, {"inferops_models": [changed, other], **key}


def differences(wanted: dict[str, Json], found: dict[str, Json]) -> list[str]:
    missing = [f"missing: {name}" for name in wanted.keys() - found.keys()]
    left = [f"left over: {name}" for name in found.keys() - wanted.keys()]
    changed = [f"{name}: {wanted[name]} became {found[name]}" for name in wanted if wanted[name] != found.get(name)]
    return missing + left + [text for text in changed if not text.startswith("missing")]


class Chaos:
    """Brings the platform from one state to another, with an interruption, and looks at what has become of it."""

    def __init__(self, ansible: Ansible, state: State, variables: Json) -> None:
        self._ansible, self._state = ansible, state
        first, second = lists(variables)
        self.goals = {"first": first, "second": second}
        self._moments = random.Random(SEED)
        self._states: dict[str, tuple[dict[str, Json], set[str]]] = {}
        self._work: dict[str, tuple[int, int]] = {}  # numbers of the first and the last task that change something

    def measure(self, now: str, goal: str) -> None:
        """Without interruption: the state to compare with, and where there is work to interrupt."""
        output = self._ansible.site(variables=self.goals[goal]).output
        parts = re.split(r"^TASK \[", output, flags=re.MULTILINE)[1:]
        changing = [number for number, part in enumerate(parts, start=1) if "\nchanged: " in part]
        self._work[now] = (changing[0], changing[-1])
        self._states[goal] = (self._state.applied(), self._state.names())

    def interrupt(self, now: str, goal: str) -> str:
        """Kill a run at a random moment, run again, and compare; what happened, as a line."""
        number, seconds = (
            self._moments.randint(*self._work.get(now, self._work["first"])),
            self._moments.uniform(0, DURING),
        )
        task = self._ansible.interrupt(number, seconds, self.goals[goal])
        repeated = self._ansible.site(variables=self.goals[goal])
        applied, names = self._states[goal]
        assert differences(applied, self._state.applied()) == []
        assert names ^ self._state.names() == set()
        return (
            f"{now} -> {goal}, killed {seconds:.2f} s into task {number} (then at {task!r}); "
            f"then {repeated.changed} tasks changed something"
        )


def test_interrupted_at_random_points(
    ansible: Ansible, state: State, variables: Json, empty: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chaos = Chaos(ansible, state, variables)
    with capsys.disabled():
        print(f"\nchaos: {POINTS} points, CHAOS_SEED={SEED}", flush=True)
        chaos.measure("nothing", "first")
        chaos.measure("first", "second")
        now = "second"
        for point in range(1, POINTS + 1):
            if point == POINTS >= FROM_NOTHING:
                ansible.run("playbooks/teardown.yml")
                now = "nothing"
            goal = "second" if now == "first" else "first"
            print(f"  {point}: {chaos.interrupt(now, goal)}", flush=True)
            now = goal
    assert ansible.site(variables=chaos.goals[now]).changed == 0
    ansible.run("playbooks/verify.yml", variables=chaos.goals[now])
