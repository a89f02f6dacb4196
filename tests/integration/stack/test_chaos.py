# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml is killed at random moments, and run again: the cluster ends up as if nothing had happened.

``CHAOS_POINTS`` says how often (``make chaos``: 10), ``CHAOS_SEED`` repeats the moments of an earlier run. The first
kill falls into an installation from nothing; after that, each kill falls into a change from one list of models to
another, which creates, changes and prunes objects of every role.
"""

from __future__ import annotations

import copy
import os
import random
import time
from typing import Any

import pytest

from .conftest import Ansible
from .state import State

pytestmark = [pytest.mark.platform, pytest.mark.timeout(3600)]

POINTS = int(os.environ.get("CHAOS_POINTS", "2"))
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


def test_interrupted_at_random_points(
    ansible: Ansible, state: State, variables: Json, empty: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(SEED)
    first, second = lists(variables)
    # Without interruption: the states to compare with, and how long there is work to interrupt.
    seconds, states = {}, {}
    seconds["nothing"] = ansible.site(variables=first).seconds
    states["first"] = (state.applied(), state.names())
    seconds["first"] = ansible.site(variables=second).seconds
    states["second"] = (state.applied(), state.names())
    seconds["second"] = ansible.site(variables=first).seconds
    assert differences(states["first"][0], state.applied()) == []
    ansible.run("playbooks/teardown.yml")
    now = "nothing"
    with capsys.disabled():
        print(f"\nchaos: {POINTS} points, CHAOS_SEED={SEED}", flush=True)
        for point in range(POINTS):
            goal, given = ("second", second) if now == "first" else ("first", first)
            moment = moments.uniform(0.5, seconds[now])
            task = ansible.interrupt(moment, given)
            repeated = ansible.site(variables=given)
            print(
                f"  {point + 1}: {now} -> {goal}, killed after {moment:.1f} s of {seconds[now]:.0f} at {task!r}; "
                f"then {repeated.changed} tasks changed something",
                flush=True,
            )
            applied, names = states[goal]
            assert differences(applied, state.applied()) == []
            assert names ^ state.names() == set()
            now = goal
    assert ansible.site(variables=given).changed == 0
    ansible.run("playbooks/verify.yml", variables=given)
