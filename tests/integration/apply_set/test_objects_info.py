# SPDX-License-Identifier: GPL-3.0-or-later
"""A few questions at once, and those that nobody can answer."""

from __future__ import annotations

import pytest

from .conftest import Cluster, Info, Run
from .objects import config_map

pytestmark = pytest.mark.cluster


def test_each_query_has_its_own_answer(made: Cluster, module: Run, info: Info) -> None:
    module({"namespace": made.namespace, "objects": [config_map("a", x="1"), config_map("b", x="2")]})
    here = {"api_version": "v1", "kind": "ConfigMap", "namespace": made.namespace}
    queries = [{**here, "name": "b"}, here, {**here, "name": "no"}, {**here, "api_version": "no.example.com/v1"}]
    found = info(queries, fields=["data.x"])["found"]
    assert [item["data"] for item in found[0]] == [{"x": "2"}]
    assert {item["metadata"]["name"] for item in found[1]} >= {"a", "b"}
    assert found[2:] == [[], []]


def test_a_name_needs_its_namespace(info: Info) -> None:
    answer = info([{"api_version": "v1", "kind": "ConfigMap", "name": "a"}])
    assert answer["failed"]
    assert "ConfigMap a is in a namespace: say in which, by `namespace`" in answer["msg"]


def test_a_name_and_a_selector_are_one_too_many(info: Info) -> None:
    answer = info([{"api_version": "v1", "kind": "Node", "name": "a", "label_selector": "b"}])
    assert "parameters are mutually exclusive: name|label_selector found in queries" in answer["msg"]
