# SPDX-License-Identifier: GPL-3.0-or-later
"""Authentication options, environment and kubeconfigs, with kubernetes.core's precedence."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inferops.cluster.plugins.module_utils import access
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError, InputError


def kubeconfig(**user: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "d", "user": "u"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://c:6443/", "certificate-authority-data": _base64("CA")}},
            {"name": "d", "cluster": {"server": "https://d:6443", "insecure-skip-tls-verify": True}},
        ],
        "users": [{"name": "u", "user": user or {"token": "t0ken"}}],
    }


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _authorization(found: access.Access) -> str | None:
    return found.authorization() if found.authorization else None


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "K8S_AUTH_KUBECONFIG", "K8S_AUTH_HOST", "K8S_AUTH_API_KEY", "K8S_AUTH_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", str(tmp_path / "serviceaccount"))


def test_current_context_with_token_and_inline_authority() -> None:
    found = access.resolve({"kubeconfig": kubeconfig()})
    assert (found.server, found.ca_data, found.verify) == ("https://c:6443", "CA", True)
    assert _authorization(found) == "Bearer t0ken"


def test_another_context_and_options_that_win() -> None:
    found = access.resolve({"kubeconfig": kubeconfig(), "context": "two", "host": "https://e/", "ca_cert": "/ca.pem"})
    assert (found.server, found.verify, found.ca_file) == ("https://e", False, "/ca.pem")
    assert _authorization(found) == "Bearer t0ken"


def test_host_and_credentials_need_no_kubeconfig() -> None:
    found = access.resolve({"kubeconfig": "/nowhere", "host": "https://e", "api_key": "mine"})
    assert (found.server, found.verify, found.ca_file) == ("https://e", True, None)
    assert _authorization(found) == "Bearer mine"


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(kubeconfig(tokenFile="token")))
    assert _authorization(access.resolve({"kubeconfig": str(path)})) == "Bearer from-file"
    path.write_text(yaml.safe_dump(kubeconfig(**{"client-certificate": "a.crt", "client-key": "/b.key"})))
    found = access.resolve({"kubeconfig": str(path)})
    assert (found.cert_file, found.key_file) == (str(tmp_path / "a.crt"), "/b.key")


def test_basic_authentication() -> None:
    found = access.resolve({"host": "https://h", "username": "u", "password": "p"})
    assert _authorization(found) == f"Basic {_base64('u:p')}"


def test_the_environment_that_job_runners_inject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K8S_AUTH_HOST", "https://awx:6443")
    monkeypatch.setenv("K8S_AUTH_API_KEY", "injected")
    monkeypatch.setenv("K8S_AUTH_VERIFY_SSL", "False")
    monkeypatch.setenv("K8S_AUTH_IMPERSONATE_GROUPS", "a,b")
    found = access.resolve({})
    assert (found.server, found.verify, _authorization(found)) == ("https://awx:6443", False, "Bearer injected")
    assert found.impersonation == (("Impersonate-Group", "a"), ("Impersonate-Group", "b"))


def test_a_pod_uses_its_service_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "serviceaccount").mkdir()
    (tmp_path / "serviceaccount" / "token").write_text("pod")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = access.resolve({})
    assert (found.server, _authorization(found)) == ("https://[fd00::1]:443", "Bearer pod")
    assert found.ca_file == str(tmp_path / "serviceaccount" / "ca.crt")


def test_a_proxy_with_its_exceptions() -> None:
    params = {"kubeconfig": kubeconfig(), "proxy": "http://proxy:3128", "proxy_headers": {"proxy_basic_auth": "u:p"}}
    found = access.resolve(params)
    assert (found.proxy, found.proxy_headers) == (
        "http://proxy:3128",
        {"Proxy-Authorization": f"Basic {_base64('u:p')}"},
    )
    assert access.resolve({**params, "no_proxy": "a.example,c"}).proxy is None


def test_exec_plugins_go_through_kubernetes_core(tmp_path: Path) -> None:
    """The plugin's token is used; kubernetes.core asks the server at once, so one that is missing is told."""
    credential = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"x"}}'
    config = kubeconfig(
        exec={
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "echo",
            "args": [credential],
            "interactiveMode": "Never",
        }
    )
    config["clusters"][0]["cluster"] = {"server": "http://127.0.0.1:1"}
    with pytest.raises(ClusterError, match=r"kubernetes\.core could not use this configuration"):
        access.resolve({"kubeconfig": config})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, r"no cluster to talk to: kubeconfig .*/.kube/config does not exist. Set `kubeconfig`"),
        ({"kubeconfig": "/nowhere/config"}, "/nowhere/config does not exist"),
        ({"kubeconfig": kubeconfig(), "context": "three"}, r"no context named 'three' \(it has: one, two\)"),
        ({"kubeconfig": {**kubeconfig(), "current-context": ""}}, "has no current-context"),
        ({"kubeconfig": kubeconfig(**{"client-key-data": "???"})}, "not base64 of PEM"),
        ({"host": "h:6443", "api_key": "k"}, "'h:6443' has no scheme: write https://"),
    ],
)
def test_errors_say_what_to_set(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        access.resolve(params)


def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("- a\n")
    with pytest.raises(InputError, match="config is no kubeconfig: it holds list"):
        access.resolve({"kubeconfig": str(path)})
    path.write_text("a: [")
    with pytest.raises(InputError, match="config is not valid YAML: line"):
        access.resolve({"kubeconfig": str(path)})
