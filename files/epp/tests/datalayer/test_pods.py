# SPDX-License-Identifier: GPL-3.0-or-later
"""Pods and pools as the API server writes them, reduced to endpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from epp.datalayer.kubeconfig import KubeConfigError, from_environment, from_file
from epp.datalayer.pods import PodTable, serving
from epp.datalayer.pool import PoolWatcher, pool_spec
from epp.datalayer.selector import SelectorWatcher, check_selector
from epp.datalayer.store import Datastore


def pod(name: str = "a", ip: str | None = "10.0.0.1", ready: str = "True", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "x"}, **metadata},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(
    "item",
    [
        pod(ip=None),
        pod(ip=""),
        pod(ready="False"),
        pod(ready="Unknown"),
        pod(deletionTimestamp="2026-01-01T00:00:00Z"),
        {"metadata": {"name": "a"}, "status": {"podIP": "10.0.0.1"}},
        {"metadata": {"name": "a"}},
        {},
    ],
)
def test_pods_that_may_not_serve(item: dict[str, Any]) -> None:
    assert serving(item) is None


def test_endpoints_per_port() -> None:
    table = PodTable()
    table.replace([pod("b", "10.0.0.2"), pod("a"), pod("c", None)])
    names = [(each.name, each.hostport, each.pod) for each in table.endpoints([8000, 8001])]
    assert names == [
        ("a-rank-0", "10.0.0.1:8000", "a"),
        ("a-rank-1", "10.0.0.1:8001", "a"),
        ("b-rank-0", "10.0.0.2:8000", "b"),
        ("b-rank-1", "10.0.0.2:8001", "b"),
    ]


@pytest.mark.parametrize(
    ("annotations", "ports"),
    [
        ({"llm-d.ai/active-ports": "8001"}, [8001]),
        ({"inference.networking.k8s.io/active-ports": " 8001 , 8002"}, [8001, 8002]),
        ({"llm-d.ai/active-ports": "8002", "inference.networking.k8s.io/active-ports": "8001"}, [8002]),
        ({"llm-d.ai/active-ports": "9"}, []),
        ({"llm-d.ai/active-ports": ""}, [8000, 8001, 8002]),
        ({"llm-d.ai/active-ports": "http"}, [8000, 8001, 8002]),
    ],
)
def test_active_ports(annotations: dict[str, str], ports: list[int]) -> None:
    table = PodTable()
    table.replace([pod(annotations=annotations)])
    endpoints = table.endpoints([8000, 8001, 8002])
    assert [each.port for each in endpoints] == ports
    assert [each.name for each in endpoints] == [f"a-rank-{port - 8000}" for port in ports], "ranks stay"


def test_events() -> None:
    table = PodTable()
    assert table.apply("ADDED", pod("a"))
    assert not table.apply("MODIFIED", pod("a"))
    assert not table.apply("ADDED", pod("b", ready="False"))
    assert table.apply("MODIFIED", pod("b", "10.0.0.2"))
    assert table.apply("MODIFIED", pod("a", ready="False")), "not ready any more"
    assert [each.name for each in table.endpoints([1])] == ["b-rank-0"]
    assert not table.apply("DELETED", pod("a"))
    assert table.apply("MODIFIED", pod("b", "10.0.0.2", deletionTimestamp="now")), "being deleted"
    assert table.endpoints([1]) == []


def test_pool_specs_of_both_groups() -> None:
    new = pool_spec({"spec": {"selector": {"matchLabels": {"b": "2", "a": "1"}}, "targetPorts": [{"number": 80}]}})
    assert (new.selector, new.ports) == ("a=1,b=2", (80,))
    old = pool_spec({"spec": {"selector": {"app": "x"}, "targetPortNumber": 8000}})
    assert (old.selector, old.ports) == ("app=x", (8000,))
    for spec in (
        {},
        {"selector": {"app": "x"}},
        {"targetPortNumber": 1},
        {"selector": {"a": "b"}, "targetPorts": [{}]},
    ):
        with pytest.raises(ValueError, match="it has no"):
            pool_spec({"spec": spec})


@pytest.mark.parametrize(
    "text", ["app=x", "a==b,c!=d", "tier in (a, b),!old,example.com/new", "x notin (y)", " a = b ", "a=", "a in (x,)"]
)
def test_selectors(text: str) -> None:
    assert check_selector(text) == text


@pytest.mark.parametrize("text", ["", "=x", "a=b,", "a in", "a in (b", "a>1 b", "a=b c=d", "-a=b", "a in ()x"])
def test_no_selectors(text: str) -> None:
    with pytest.raises(ValueError, match="is not a label selector: it goes wrong at"):
        check_selector(text)


def test_watchers_refuse_what_cannot_work() -> None:
    client: Any = None
    with pytest.raises(ValueError, match="not a group of InferencePool"):
        PoolWatcher(Datastore(), client, "ns", "pool", "example.com")
    for ports in ([], [1, 1], [0], [70000], list(range(1, 10))):
        with pytest.raises(ValueError, match="ports"):
            SelectorWatcher(Datastore(), client, "ns", "a=b", ports)


KUBECONFIG = """\
current-context: one
contexts: [{name: one, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1/"}}]
users: [{name: u, user: {token: secret}}]
"""


def test_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    credentials = from_file(path)
    assert credentials.server == "http://127.0.0.1:1"
    assert credentials.headers() == {"Authorization": "Bearer secret"}
    path.write_text(KUBECONFIG.replace("token: secret", "tokenFile: token"))
    (tmp_path / "token").write_text("from file\n")
    assert from_file(path).headers() == {"Authorization": "Bearer from file"}
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(["/nonexistent", str(path)]))
    assert from_environment().server == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ("x", "is not a kubeconfig file"),
        ("current-context: none", "has no context named 'none'"),
        (KUBECONFIG.replace("user: u}", "user: v}"), "has no user named 'v'"),
        (KUBECONFIG.replace("server:", "sever:"), "has no server address"),
        (KUBECONFIG.replace("token: secret", "exec: {command: aws}"), "credential plugin 'exec'"),
        (
            KUBECONFIG.replace("http:", "https:").replace("token:", "client-certificate-data: x, client-key-data:"),
            "key",
        ),
    ],
)
def test_bad_kubeconfigs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(KubeConfigError, match=message):
        from_file(path)


def test_no_kubernetes_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(KubeConfigError, match="no such file"):
        from_environment()
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(KubeConfigError, match="--endpoints-file"):
        from_environment()
