# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals as sentences."""

from __future__ import annotations

from typing import Any

from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import explain, refusal, secrets_hidden
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member

SERVER = "https://api:6443"


def member(name: str, kind: str = "ConfigMap") -> Member:
    return Member({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "n"}}, None)


def error(status: int, message: str, reason: str = "", **details: Any) -> ApiError:
    return ApiError(status, {"message": message, "reason": reason, "details": details}, "PATCH", "/x")


def test_missing_rights_are_told_once_for_all_objects() -> None:
    denied = 'a is forbidden: User "jane" cannot patch resource "configmaps" in API group "" in the namespace "n"'
    text = explain([(member("a"), error(403, denied)), (member("b"), error(403, denied))], SERVER)
    assert text.splitlines()[0] == "user jane may not patch configmaps in namespace n (2 objects)"
    assert "Role" in text
    assert SERVER in text


def test_rights_at_cluster_scope_carry_their_group() -> None:
    denied = 'x is forbidden: User "jane" cannot create resource "gateways" in API group "g.io" at the cluster scope'
    assert explain([(member("a"), error(403, denied))], SERVER).startswith(
        "user jane may not create gateways.g.io at cluster"
    )


def test_a_conflict_names_fields_and_managers() -> None:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "field": ".spec.replicas",
            "message": 'conflict with "scaler" using apps/v1',
        },
        {"reason": "FieldManagerConflict", "field": ".data.a", "message": 'conflict with "kubectl-edit" using v1'},
    ]
    text = refusal(error(409, "conflicts", "Conflict", causes=causes))
    assert ".spec.replicas (managed by scaler), .data.a (managed by kubectl-edit)" in text
    assert "`force: true`" in text


def test_an_immutable_field_comes_with_a_way_out() -> None:
    causes = [
        {"reason": "FieldValueInvalid", "field": "spec.selector", "message": "Invalid value: {}: field is immutable"}
    ]
    text = refusal(error(422, "Deployment is invalid", "Invalid", causes=causes))
    assert text.startswith("spec.selector: Invalid value")
    assert "delete the object first" in text


def test_a_missing_namespace_is_named() -> None:
    assert "namespace prod does not exist" in refusal(
        error(404, "not found", "NotFound", kind="namespaces", name="prod")
    )


def test_rejected_credentials_hide_everything_else() -> None:
    assert "does not accept these credentials" in explain([(member("a"), error(401, "Unauthorized"))], SERVER)


def test_a_long_list_is_cut() -> None:
    text = explain([(member(str(number)), error(422, "bad")) for number in range(50)], SERVER)
    assert text.splitlines()[-1] == "... and 30 more"


def test_a_secrets_values_do_not_survive() -> None:
    secret = member("s", "Secret")
    secret.wanted["data"] = {"k": "aHVudGVyMg=="}
    assert secrets_hidden("bad value aHVudGVyMg== here", secret) == "bad value (hidden) here"
