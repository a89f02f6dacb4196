# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode of several sets in one run: a set knows which kinds the sets before it would have brought or changed."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator

import pytest

from .conftest import Cluster, Json, Run
from .objects import actions, config_map, crd, custom

pytestmark = pytest.mark.cluster

CHECK = ("--check", "--diff")


def colored(group: str, name: str, version: str = "v1") -> Json:
    """An object with a field that only the changed definition knows."""
    made = custom("Thing", group, name, 1)
    made["spec"]["color"] = "red"
    return {**made, "apiVersion": f"{group}/{version}"}


def changed(definition: Json) -> Json:
    """With the field, and with a second version that has it, too."""
    wider = copy.deepcopy(definition)
    first = wider["spec"]["versions"][0]
    first["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"] = {"type": "string"}
    wider["spec"]["versions"].append({**copy.deepcopy(first), "name": "v2", "storage": False})
    return wider


@pytest.fixture
def group(made: Cluster, module: Run) -> Iterator[str]:
    """The API group of a kind Thing, with the objects ``a`` and ``b``."""
    name = f"{secrets.token_hex(4)}.example.com"
    things = [custom("Thing", name, "a", 1), custom("Thing", name, "b", 1)]
    first = {"namespace": made.namespace, "objects": [crd("Thing", name)], "wait": True}
    created = module(first, {"namespace": made.namespace, "objects": things, "prune": True})
    assert [actions(result)[0] for result in created] == ["created", "created"]
    yield name
    module({**first, "state": "absent"})


def test_objects_of_a_changed_definition_count_as_what_they_will_be(
    made: Cluster, group: str, playbook: Run, elsewhere: str
) -> None:
    given = {"namespace": made.namespace}
    things = [
        colored(group, "a"),
        colored(group, "b", "v2"),
        colored(group, "c"),
        colored(group, "d", "v2"),
        config_map("e"),
    ]
    tasks = [
        {**given, "name": "definitions", "objects": [changed(crd("Thing", group))]},
        {**given, "prune": True, "objects": things},
    ]
    looked = playbook(*tasks, options=CHECK)
    assert actions(looked[0]) == ["updated"]
    assert actions(looked[1]) == ["updated", "updated", "created", "created", "created", "updated"]
    assert [kind["api_version"] for kind in looked[0]["foreseen"]] == [f"{group}/v1", f"{group}/v2"]
    assert made.get("Thing", "a", f"{group}/v1").spec.to_dict() == {"size": 1}
    packed = playbook(*tasks, options=CHECK, python=elsewhere)
    assert [actions(result) for result in packed] == [actions(result) for result in looked]
    # For real it is the same.
    done = playbook({**tasks[0], "wait": True}, tasks[1])
    assert [actions(result) for result in done] == [actions(result) for result in looked]


def test_what_only_the_changed_definition_brings_is_no_excuse_for_others(
    made: Cluster, group: str, playbook: Run
) -> None:
    given = {"namespace": made.namespace}
    change = {**given, "name": "definitions", "objects": [changed(crd("Thing", group))]}
    wrong = {**config_map("e"), "dataa": {}}
    looked = playbook({**given, "objects": [colored(group, "a")]}, options=CHECK)
    assert looked[0]["failed"]
    assert "color" in looked[0]["msg"]
    looked = playbook(change, {**given, "objects": [colored(group, "a"), wrong]}, options=CHECK)
    assert [result["failed"] for result in looked] == [False, True]
    assert "dataa" in looked[1]["msg"]
    assert "color" not in looked[1]["msg"]


def test_a_kind_of_an_earlier_set_is_known_by_its_scope(made: Cluster, playbook: Run) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    definition = {"namespace": made.namespace, "name": "definitions", "objects": [crd("Thing", group)]}
    homeless = {"objects": [custom("Thing", group, "a", 1)]}
    looked = playbook(definition, homeless, {**homeless, "namespace": made.namespace}, options=CHECK)
    assert "Thing a names no namespace" in looked[1]["msg"]
    assert [(entry["namespace"], entry["action"]) for entry in looked[2]["objects"]] == [(made.namespace, "created")]


def test_definitions_from_elsewhere_may_be_told(made: Cluster, group: str, module: Run) -> None:
    told = {"api_version": f"{group}/v1", "kind": "Thing", "plural": "things", "namespaced": True}
    task = {"namespace": made.namespace, "objects": [colored(group, "a")]}
    assert actions(module({**task, "foreseen": [told]}, check=True)[0]) == ["updated"]
    assert module({**task, "foreseen": [told]})[0]["failed"]
