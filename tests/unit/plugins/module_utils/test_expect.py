# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions and fields that a caller waits for."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.expect import expectation
from ansible_collections.inferops.cluster.plugins.module_utils.wait import Rules


def thing(generation: int = 2, kind: str = "Thing", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "x.io/v1",
        "kind": kind,
        "metadata": {"name": "a", "generation": generation},
        "status": status,
    }


def judge(item: dict[str, Any], **entry: Any) -> tuple[bool, str]:
    state = expectation(entry).judge(item)
    return state.ready, state.reason


def test_conditions_must_have_status_and_reason() -> None:
    item = thing(conditions=[{"type": "Degraded", "status": "False", "reason": "Fine", "message": "m"}])
    assert judge(item, conditions=[{"type": "Degraded", "status": "False"}]) == (True, "")
    assert judge(item, conditions=[{"type": "Degraded"}]) == (False, "Degraded is False: Fine: m")
    assert judge(item, conditions=[{"type": "Degraded", "status": "False", "reason": "Other"}])[0] is False
    assert judge(item, conditions=[{"type": "Ready"}]) == (False, "its controller has not set the condition Ready yet")


def test_what_is_about_an_older_generation_does_not_count() -> None:
    old = thing(conditions=[{"type": "Ready", "status": "True", "observedGeneration": 1}])
    assert judge(old, conditions=[{"type": "Ready"}]) == (False, "its condition Ready is about an older generation")
    behind = thing(observedGeneration=1, phase="Up")
    assert judge(behind, jsonpath=[{"path": ".status.phase"}]) == (False, "its controller has not seen the change yet")


def test_fields_must_be_set_or_have_the_value() -> None:
    item = thing(phase="Up", count=3, empty="")
    assert judge(item, jsonpath=[{"path": ".status.phase"}, {"path": ".status.count", "value": 3}]) == (True, "")
    assert judge(item, jsonpath=[{"path": ".status.count", "value": "3"}]) == (True, "")
    assert judge(item, jsonpath=[{"path": ".status.phase", "value": "Down"}]) == (
        False,
        ".status.phase is Up, not Down",
    )
    for missing in (".status.empty", ".status.url"):
        assert judge(item, jsonpath=[{"path": missing}]) == (False, f"{missing} is not set yet")


def test_secrets_are_not_shown() -> None:
    secret = thing(kind="Secret", token="hunter2")
    ready, reason = judge(secret, jsonpath=[{"path": ".status.token", "value": "correct"}])
    assert not ready
    assert "hunter2" not in reason
    assert "correct" not in reason


def test_an_object_that_is_being_deleted_is_not_ready() -> None:
    item = thing(conditions=[{"type": "Ready", "status": "True"}])
    item["metadata"].update(deletionTimestamp="now", finalizers=["f"])
    assert judge(item, conditions=[{"type": "Ready"}]) == (False, "is being deleted (held by f)")


def test_the_first_rule_that_matches_decides() -> None:
    ready, up = [{"type": "Ready"}], [{"path": ".status.phase"}]
    rules = Rules([{"kind": "Thing", "name": "a", "conditions": ready}, {"kind": "Thing", "jsonpath": up}])
    assert rules.written(thing()) == {"conditions": ready, "jsonpath": []}
    other = {**thing(), "metadata": {"name": "b"}}
    assert rules.expected(other) == expectation({"jsonpath": up})
    assert rules.written(thing(kind="Else")) == {"conditions": [], "jsonpath": []}
    with pytest.raises(InputError, match=r"wait_for\[1\] matches no object"):
        Rules([{"name": "a", "conditions": ready}, {"name": "z", "jsonpath": up}]).refuse_unused([thing(), other])
    with pytest.raises(InputError, match=r"wait_for\[0\] expects nothing"):
        Rules([{"kind": "Thing"}])
