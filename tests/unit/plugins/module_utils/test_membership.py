# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes an object a member of a set."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Resource
from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member
from ansible_collections.inferops.cluster.plugins.module_utils.membership import (
    PART_OF,
    Membership,
    applyset_id,
    carry_over,
    label_of,
    labelled,
)

RESOURCE = Resource("v1", "ConfigMap", "configmaps", True)


def config_map(**metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", **metadata}}


def entry(manager: str, operation: str) -> dict[str, Any]:
    fields = {"f:metadata": {"f:labels": {f"f:{PART_OF}": {}}}}
    return {"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsV1": fields}


def test_the_id_hashes_name_namespace_kind_and_group_of_the_record() -> None:
    # SHA-256 of "mine.here.ConfigMap." in URL-safe base64 without padding.
    assert applyset_id("mine", "here") == "applyset-PGSpOJPYErXHz2oZK97lERH2QIzIKaHbY7ZAXb1e2U8-v1"
    assert len(applyset_id("m" * 253, "n" * 63)) <= 63


def test_a_label_is_added_to_a_copy() -> None:
    item = config_map(labels={"app": "x"})
    assert labelled(item, "id")["metadata"]["labels"] == {"app": "x", PART_OF: "id"}
    assert label_of(item) == ""
    assert label_of(labelled(config_map(labels=None), "id")) == "id"


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([entry("inferops.cluster", "Apply")], True),
        ([entry("inferops.cluster", "Update")], False),
        ([entry("kubectl", "Apply")], False),
        ([], False),
    ],
)
def test_only_a_membership_of_the_same_manager_is_carried_over(entries: list[dict[str, Any]], kept: bool) -> None:
    live = config_map(labels={PART_OF: "id"}, managedFields=entries)
    member = Member(config_map(), RESOURCE, live=live)
    carry_over([member], "inferops.cluster")
    assert (label_of(member.wanted) == "id") is kept


def test_a_set_without_namespace_cannot_be_recorded() -> None:
    with pytest.raises(InputError, match="needs `namespace`"):
        Membership(None, None, "x", None)  # type: ignore[arg-type]
