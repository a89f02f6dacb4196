# SPDX-License-Identifier: GPL-3.0-or-later
"""Selectors and merge patches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.patch import exclude, matches, merge, patch_all


def item(kind: str, name: str, version: str = "v1", namespace: str | None = None) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def test_all_given_keys_must_fit() -> None:
    job = item("Job", "certgen-install", "batch/v1", "system")
    assert matches(job, {"kind": "Job"})
    assert matches(job, {"kind": "Jo*", "name": "*-install", "api_group": "batch", "namespace": "sys*"})
    assert not matches(job, {"kind": "Job", "name": "other"})
    assert not matches(job, {"api_group": ""})
    assert matches(item("Secret", "s"), {"api_group": "", "kind": None})


def test_exclude_keeps_what_no_selector_matches() -> None:
    items = [item("Job", "a", "batch/v1"), item("Secret", "a"), item("Secret", "b")]
    assert exclude(items, [{"kind": "Job"}, {"kind": "Secret", "name": "b"}]) == [items[1]]


@pytest.mark.parametrize("function", [exclude, patch_all])
def test_a_selector_without_keys_is_refused(function: Any) -> None:
    with pytest.raises(InputError, match=r"\[0\] selects nothing"):
        function([item("Secret", "a")], [{"kind": None, "patch": {}}])


def test_a_patch_that_matches_nothing_is_refused_by_its_keys() -> None:
    with pytest.raises(InputError, match=r"patches\[0\] matches no object of the set \(kind=Deploymant\)"):
        patch_all([item("Deployment", "a")], [{"kind": "Deploymant", "patch": {"spec": {}}}])


def test_patches_apply_in_order_and_leave_the_input_alone() -> None:
    before = item("Deployment", "a", "apps/v1")
    after = patch_all(
        [before],
        [{"name": "a", "patch": {"spec": {"replicas": 1}}}, {"name": "a", "patch": {"spec": {"replicas": 2}}}],
    )
    assert after[0]["spec"] == {"replicas": 2}
    assert "spec" not in before


def test_named_lists_merge_by_name_and_keep_their_order() -> None:
    target = {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}
    patch = {"containers": [{"name": "c"}, {"name": "a", "image": "2", "args": None}]}
    assert merge(target, patch) == {
        "containers": [{"name": "a", "image": "2"}, {"name": "b", "image": "1"}, {"name": "c"}]
    }


def test_other_lists_are_replaced() -> None:
    assert merge({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}
    assert merge({"env": [{"name": "a"}]}, {"env": []}) == {"env": []}


json_values: Any = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
json_maps: Any = st.dictionaries(st.text(max_size=3), json_values, max_size=4)


@settings(deadline=None)
@given(json_maps, json_maps)
def test_a_merge_contains_its_patch_and_repeating_it_changes_nothing(target: Any, patch: Any) -> None:
    once = merge(target, patch)
    assert merge(once, patch) == once
    assert set(once) == set(target) | set(patch)
