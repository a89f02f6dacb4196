# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSONPath of kubectl wait."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.jsonpath import as_text, find, parse

ITEM = {
    "metadata": {"labels": {"app.kubernetes.io/name": "x"}},
    "status": {
        "phase": "Up",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False", "n": 3}],
        "addresses": ["a", "b"],
        "nested": {"one": {"v": 1}, "two": {"v": 2}},
    },
}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (".status.phase", ["Up"]),
        ("{.status.phase}", ["Up"]),
        ("{ $.status['phase'] }", ["Up"]),
        ("status.phase", ["Up"]),
        (".status.addresses[0]", ["a"]),
        (".status.addresses[-1]", ["b"]),
        (".status.addresses[5]", []),
        (".status.addresses[*]", ["a", "b"]),
        (".status.addresses.phase", []),
        (".status.nested.*.v", [1, 2]),
        (r".metadata.labels.app\.kubernetes\.io/name", ["x"]),
        ('.metadata.labels["app.kubernetes.io/name"]', ["x"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?( @.type != 'Ready' )].status", ["False"]),
        (".status.conditions[?(@.n==3)].type", ["Synced"]),
        (".status.nothing.at.all", []),
    ],
)
def test_paths(path: str, values: list[Any]) -> None:
    assert find(parse(path), ITEM) == values


@pytest.mark.parametrize("path", ["", "{}", ".a..b", ".a[", ".a[?(@.b)]", ".a[1:2]", ".a b"])
def test_what_is_not_understood_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="JSONPath"):
        parse(path)


def test_values_compare_as_text() -> None:
    assert [as_text(value) for value in ("x", True, 3, None, {"b": 1, "a": 2})] == [
        "x",
        "true",
        "3",
        "null",
        '{"a": 2, "b": 1}',
    ]
