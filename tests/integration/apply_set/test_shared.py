# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects that several sets have in common, such as the namespace that they live in."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Cluster, Json, Run
from .objects import actions, config_map, namespace

pytestmark = pytest.mark.cluster


def sets(cluster: Cluster) -> tuple[Json, Json]:
    """Two sets that make, and need, the same namespace."""
    home = namespace(cluster.namespace)
    home["metadata"]["labels"] = {"of": "both"}
    common: Json = {"namespace": cluster.namespace, "prune": True, "shared": [{"kind": "Namespace"}]}
    first = {**common, "name": "first", "objects": [home, config_map("a", a="1")]}
    return first, {**common, "name": "second", "objects": [home, config_map("b", a="1")]}


def live(cluster: Cluster) -> Any:
    return cluster.get("Namespace", cluster.namespace)


def test_the_last_set_removes_the_namespace(cluster: Cluster, module: Run) -> None:
    first, second = sets(cluster)
    made, joined, again = module(first, second, first)
    assert actions(made) == ["created", "created", "created"]
    assert actions(joined) == ["unchanged", "created", "created"]
    assert not again["changed"]
    assert "applyset.kubernetes.io/part-of" not in live(cluster).metadata.labels.to_dict()
    gone = module({**first, "state": "absent", "wait": True})[0]
    assert actions(gone) == ["unchanged", "deleted", "deleted"]
    assert "stays: there is still ConfigMap" in gone["objects"][0]["reason"]
    looked = module({**second, "state": "absent"}, check=True)[0]
    assert actions(looked) == ["deleted", "deleted", "deleted"]
    assert live(cluster) is not None
    last = module({**second, "state": "absent"})[0]
    assert actions(last) == ["deleted", "deleted", "deleted"]
    assert live(cluster) is None or live(cluster).metadata.deletionTimestamp


def test_a_namespace_of_somebody_else_stays(made: Cluster, module: Run) -> None:
    first, _second = sets(made)
    module(first)
    gone = module({**first, "state": "absent", "wait": True})[0]
    assert actions(gone)[0] == "unchanged"
    assert "made or applied it" in gone["objects"][0]["reason"]
    assert live(made) is not None


def test_other_shared_objects_are_neither_pruned_nor_deleted(made: Cluster, module: Run) -> None:
    common = {"namespace": made.namespace, "prune": True, "shared": [{"name": "common"}]}
    full = {**common, "objects": [config_map("common", a="1"), config_map("own", a="1")]}
    fewer = {**common, "objects": [config_map("own", a="1")]}
    module(full, fewer)
    assert made.get("ConfigMap", "common") is not None
    gone = module({**full, "state": "absent"})[0]
    assert actions(gone) == ["unchanged", "deleted", "deleted"]
    assert made.get("ConfigMap", "common") is not None


def test_a_selector_that_says_nothing_is_refused(made: Cluster, module: Run) -> None:
    refused = module({"namespace": made.namespace, "objects": [config_map("a")], "shared": [{}]})[0]
    assert "shared[0] selects nothing" in refused["msg"]
