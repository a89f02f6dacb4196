# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read the metrics: TokenReview and SubjectAccessReview, by default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from conformance.kit.cluster import ApiError
from conformance.kit.page import Page
from conformance.kit.picker import Picker
from conformance.kit.world import Pool, World


@pytest.fixture(scope="module")
def guarded(around: World, main_pool: Pool) -> Iterator[Picker]:
    """A picker that guards its metrics, as it does without a flag."""
    flags = [each for each in around.flags(main_pool.name) if not each.startswith("--metrics-endpoint-auth")]
    with around.raw(*flags) as found:
        yield found


@contextlib.contextmanager
def account(around: World, name: str) -> Iterator[str]:
    """A service account, yielding a token of it."""
    space = around.space
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    around.api.call("POST", space.core("serviceaccounts"), body)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    try:
        found = around.api.call("POST", space.core(f"serviceaccounts/{name}/token"), request)
        yield found["status"]["token"]
    finally:
        around.api.call("DELETE", space.core(f"serviceaccounts/{name}"))


@contextlib.contextmanager
def allowed(around: World, name: str) -> Iterator[None]:
    """That service account may GET /metrics."""
    role = f"{around.space.name}-{name}"
    group = "rbac.authorization.k8s.io"
    base = f"/apis/{group}/v1"
    rules = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": around.space.name}]
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": role}
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": role}}
    around.api.call("POST", f"{base}/clusterroles", {**common, "kind": "ClusterRole", "rules": rules})
    binding = {**common, "kind": "ClusterRoleBinding", "subjects": subjects, "roleRef": reference}
    around.api.call("POST", f"{base}/clusterrolebindings", binding)
    try:
        yield
    finally:
        for resource in ("clusterrolebindings", "clusterroles"):
            with contextlib.suppress(ApiError):
                around.api.call("DELETE", f"{base}/{resource}/{role}")


def test_no_token(guarded: Picker) -> None:
    """Without a token: 401."""
    assert guarded.get("/metrics")[0] == 401


@pytest.mark.differs(go="v1.3 answers 500 to a token that the cluster does not know")
@pytest.mark.parametrize("token", ["nonsense", "a.b.c"])
def test_a_bad_token(guarded: Picker, token: str) -> None:
    """With a token that the cluster does not know: 401."""
    assert guarded.get("/metrics", token)[0] == 401


def test_not_allowed(around: World, guarded: Picker) -> None:
    """With a token of somebody who may not: 403."""
    with account(around, "stranger") as token:
        assert guarded.get("/metrics", token)[0] == 403


def test_allowed(around: World, guarded: Picker) -> None:
    """With a token of somebody who may GET /metrics: the page."""
    with account(around, "reader") as token, allowed(around, "reader"):
        status, text = guarded.get("/metrics", token)
    assert status == 200
    assert Page(text).families


def test_not_a_word_more(guarded: Picker) -> None:
    """A refusal shows no figures."""
    assert "inference_" not in guarded.get("/metrics")[1]


def test_switched_off(picker: Picker) -> None:
    """--metrics-endpoint-auth=false: everybody may."""
    assert picker.get("/metrics")[0] == 200
