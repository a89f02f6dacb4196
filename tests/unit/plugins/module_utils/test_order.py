# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of writing."""

from __future__ import annotations

from ansible_collections.inferops.cluster.plugins.module_utils.order import WORKLOADS, phases, rank

GIVEN = [
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ServiceAccount"),
    ("node.k8s.io/v1", "RuntimeClass"),
    ("v1", "Namespace"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
]


def test_what_others_need_comes_first() -> None:
    items = [{"apiVersion": version, "kind": kind} for version, kind in GIVEN]
    written = [item["kind"] for phase in phases(items, rank) for item in phase]
    assert written == [kind for _version, kind in reversed(GIVEN)]


def test_a_custom_kind_with_a_built_in_name_is_a_custom_kind() -> None:
    knative = {"apiVersion": "serving.knative.dev/v1", "kind": "Service"}
    gateway = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway"}
    assert rank(knative) == rank(gateway) > rank({"apiVersion": "apps/v1", "kind": "Deployment"})


def test_a_gateway_class_goes_after_its_gateways_and_in_the_background() -> None:
    found = [rank({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind}) for kind in ("GatewayClass", "Gateway")]
    assert found[0] < WORKLOADS < found[1], "with foreground deletion its controller may fail to release it"


def test_inside_a_phase_the_given_order_stays() -> None:
    assert phases(["b1", "a2", "a1", "b0"], lambda name: "ab".index(name[0])) == [["a2", "a1"], ["b1", "b0"]]
