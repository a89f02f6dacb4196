# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the API server is and how to be let in: a kubeconfig file, or a pod's service account."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_TTL = 30.0
"""Seconds after which a token file is read again: tokens of service accounts are replaced every hour or so."""


class KubeConfigError(ValueError):
    """No way to reach an API server; the text says what is missing and what to do."""


@dataclass
class Credentials:
    """One API server, and how to be let in."""

    server: str
    tls: ssl.SSLContext | None = None
    token: str = ""
    token_file: Path | None = None
    _read_at: float = -TOKEN_TTL

    def headers(self) -> dict[str, str]:
        """The Authorization header, if there is a token."""
        if self.token_file is not None and time.monotonic() - self._read_at >= TOKEN_TTL:
            self.token = self.token_file.read_text(encoding="utf-8").strip()
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def from_environment() -> Credentials:
    """By ``KUBECONFIG``, else the pod's service account, else ``~/.kube/config``. Raises KubeConfigError."""
    named = os.environ.get("KUBECONFIG", "")
    for part in named.split(os.pathsep):
        if part and Path(part).is_file():
            return from_file(Path(part))
    if named:
        raise KubeConfigError(f"KUBECONFIG={named}: no such file; correct or unset it")
    if os.environ.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").is_file():
        return in_cluster()
    home = Path.home() / ".kube" / "config"
    if home.is_file():
        return from_file(home)
    raise KubeConfigError(
        "no Kubernetes API server: there is no KUBECONFIG, no service account and no ~/.kube/config; "
        "set KUBECONFIG, or use --endpoints-file to run without Kubernetes"
    )


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """The service account of the pod that this process runs in."""
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    name = f"[{host}]" if ":" in host else host
    try:
        tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise KubeConfigError(f"{folder / 'ca.crt'}: cannot be used: {error}") from error
    return Credentials(f"https://{name}:{port}", tls, token_file=folder / "token")


def from_file(path: Path) -> Credentials:
    """The current context of a kubeconfig file."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KubeConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise KubeConfigError(f"{path}: is not a kubeconfig file")
    context = _named(document, "contexts", document.get("current-context"), "context", path)
    cluster = _named(document, "clusters", context.get("cluster"), "cluster", path)
    user = _named(document, "users", context.get("user"), "user", path) if context.get("user") else {}
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        raise KubeConfigError(f"{path}: cluster {context.get('cluster')!r} has no server address")
    for plugin in ("exec", "auth-provider"):
        if plugin in user:
            raise KubeConfigError(
                f"{path}: user {context.get('user')!r} needs the credential plugin {plugin!r}, which is not supported; "
                "use a token or a client certificate, or run in the cluster"
            )
    try:
        tls = _tls(cluster, user, path) if server.startswith("https://") else None
    except (OSError, ssl.SSLError, binascii.Error) as error:
        raise KubeConfigError(f"{path}: a certificate or key cannot be used: {error}") from error
    token_file = path.parent / user["tokenFile"] if user.get("tokenFile") else None
    return Credentials(server.rstrip("/"), tls, token=str(user.get("token") or ""), token_file=token_file)


def _named(document: dict[str, Any], section: str, name: Any, inner: str, path: Path) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(inner), dict):
            found: dict[str, Any] = entry[inner]
            return found
    raise KubeConfigError(f"{path}: has no {inner} named {name!r}; run kubectl config view to see what it has")


def _tls(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> ssl.SSLContext:
    authority = _bytes(cluster, "certificate-authority", path)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _bytes(user, "client-certificate", path), _bytes(user, "client-key", path)
    if certificate and key:
        _load_pair(context, certificate, key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL takes key pairs from files only: hand it one that only this user can read, and only for a moment."""
    with tempfile.NamedTemporaryFile(prefix="epp-client-") as file:
        file.write(certificate.rstrip() + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)


def _bytes(section: dict[str, Any], key: str, path: Path) -> bytes | None:
    """PEM bytes of ``<key>-data`` (base64) or of the file that ``<key>`` names."""
    if section.get(f"{key}-data"):
        return base64.b64decode("".join(str(section[f"{key}-data"]).split()), validate=True)
    if section.get(key):
        return (path.parent / str(section[key])).read_bytes()
    return None
