# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the API server is: kubeconfig files in all their shapes, and the environment."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.datalayer import kubeconfig
from epp.datalayer.kubeconfig import KubeConfigError, from_environment, from_file
from epp.transport.tls import self_signed


def document(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", **({"user": "u"} if user is not None else {})}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        file = tmp_path / "config"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return file

    return write


def test_a_token_and_an_authority(written: Any) -> None:
    chain = base64.b64encode(self_signed().chain).decode()
    found = from_file(written(document({"certificate-authority-data": chain}, {"token": "t"})))
    assert found.server == "https://10.0.0.1:6443"
    assert found.headers() == {"Authorization": "Bearer t"}
    assert found.tls is not None
    assert found.tls.check_hostname


def test_files_beside_the_file(written: Any, tmp_path: Path) -> None:
    pair = self_signed()
    (tmp_path / "client.crt").write_bytes(pair.chain)
    (tmp_path / "client.key").write_bytes(pair.key)
    (tmp_path / "token").write_text("from a file\n")
    user = {"client-certificate": "client.crt", "client-key": "client.key", "tokenFile": "token"}
    found = from_file(written(document({"insecure-skip-tls-verify": True}, user)))
    assert found.headers() == {"Authorization": "Bearer from a file"}
    assert found.tls is not None
    assert not found.tls.check_hostname


def test_plain_http_without_user(written: Any) -> None:
    found = from_file(written(document({"server": "http://127.0.0.1:8080"})))
    assert (found.tls, found.headers()) == (None, {})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "cannot be read"),
        ("- a", "is not a kubeconfig file"),
        ({**document(), "current-context": "x"}, "has no context named 'x'; run kubectl config view"),
        ({**document(), "clusters": None}, "has no cluster named 'k'"),
        (document({"server": "10.0.0.1"}), "cluster 'k' has no server address"),
        (document(user={"exec": {}}), "user 'u' needs the credential plugin 'exec', which is not supported"),
        (document({"certificate-authority-data": "!"}), "a certificate or key cannot be used"),
        (document({"certificate-authority": "nowhere.crt"}), "a certificate or key cannot be used"),
    ],
)
def test_files_that_cannot_be_used(written: Any, content: Any, told: str) -> None:
    with pytest.raises(KubeConfigError) as error:
        from_file(written(content))
    assert told in str(error.value)


def test_the_environment(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(document())
    monkeypatch.setenv("KUBECONFIG", f"/nowhere:{file}")
    assert from_environment().server == "https://10.0.0.1:6443"
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(KubeConfigError, match="KUBECONFIG=/nowhere: no such file"):
        from_environment()
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeConfigError, match="no Kubernetes API server"):
        from_environment()
    (tmp_path / ".kube").mkdir()
    file.rename(tmp_path / ".kube" / "config")
    assert from_environment().server == "https://10.0.0.1:6443"


def test_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(kubeconfig.in_cluster, "__defaults__", (tmp_path,))
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(self_signed().chain)
    assert from_environment().server == "https://[fd00::1]:443"
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(KubeConfigError, match="cannot be used"):
        from_environment()
