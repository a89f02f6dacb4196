# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the options of ``kubernetes.core.k8s_auth_options`` to where the API server is and how to prove who asks.

The options, their environment variables (``K8S_AUTH_*``) and their precedence are kubernetes.core's. Plain cases
(a kubeconfig with certificates or a token, host and token, a pod's service account) are read here, because importing
the Python client costs more time than a whole unchanged run; everything else (exec and auth-provider plugins, several
merged kubeconfig files) is left to kubernetes.core.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError, InputError
from ansible_collections.inferops.cluster.plugins.module_utils.yamls import load_one

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# Two aliases of kubernetes.core are also accepted as environment variables.
ENVIRONMENT_ALIASES = {
    "validate_certs": "VERIFY_SSL",
    "ca_cert": "SSL_CA_CERT",
    "client_cert": "CERT_FILE",
    "client_key": "KEY_FILE",
}


@dataclass
class Access:
    """How to reach one API server. ``*_data`` hold PEM text; ``headers`` are computed anew for every request."""

    server: str
    verify: bool = True
    ca_file: Optional[str] = None
    ca_data: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    cert_data: Optional[str] = None
    key_data: Optional[str] = None
    server_name: Optional[str] = None
    proxy: Optional[str] = None
    proxy_headers: Dict[str, str] = field(default_factory=dict)
    authorization: Optional[Callable[[], Optional[str]]] = None
    impersonation: Tuple[Tuple[str, str], ...] = ()


class NeedsClientLibrary(Exception):
    """This configuration can only be read by the Python Kubernetes client."""


def resolve(params: Mapping[str, Any]) -> Access:
    """The access that module parameters and environment describe.

    Raises ClusterError with what is missing or unreadable, and which option to set.
    """
    auth = with_environment(params)
    try:
        access = _plain_access(auth)
        _override(access, auth)
    except NeedsClientLibrary:
        access = _library_access(auth)
    access.impersonation = _impersonation(auth)
    if not access.server.startswith(("https://", "http://")):
        raise InputError(f"the API server address {access.server!r} has no scheme: write https://host:port")
    return access


def with_environment(params: Mapping[str, Any]) -> Dict[str, Any]:
    """The authentication options that are set, taken from ``params`` first and ``K8S_AUTH_*`` second."""
    auth: Dict[str, Any] = {}
    for option, spec in AUTH_ARG_SPEC.items():
        value = params.get(option)
        if value is None and option != "proxy_headers":
            value = _from_environment(option, spec)
        if value is not None and value != "":
            auth[option] = value
    headers = auth.get("proxy_headers") or {}
    for option in AUTH_ARG_SPEC["proxy_headers"]["options"]:
        value = headers.get(option) or os.environ.get(f"K8S_AUTH_PROXY_HEADERS_{option.upper()}")
        if value:
            auth["proxy_headers"] = {**auth.get("proxy_headers", {}), option: value}
    return auth


def _from_environment(option: str, spec: Mapping[str, Any]) -> Any:
    for name in (option.upper(), ENVIRONMENT_ALIASES.get(option, "")):
        text = os.environ.get(f"K8S_AUTH_{name}")
        if text:
            if spec.get("type") == "bool":
                return text.lower() not in ("0", "false", "no")
            if spec.get("type") == "list":
                return [part for part in text.split(",") if part]
            return text
    return None


def _plain_access(auth: Mapping[str, Any]) -> Access:
    """Same order as kubernetes.core: explicit host and credentials, kubeconfig or context, in-cluster, default file."""
    has_credentials = (
        auth.get("api_key")
        or (auth.get("username") and auth.get("password"))
        or (auth.get("client_cert") and auth.get("client_key"))
    )
    if auth.get("host") and has_credentials:
        return Access(server=auth["host"].rstrip("/"))
    if not auth.get("kubeconfig") and not auth.get("context") and os.path.exists(f"{SERVICE_ACCOUNT}/token"):
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if host:
            return _in_cluster(host)
    return _kubeconfig_access(auth.get("kubeconfig"), auth.get("context"))


def _in_cluster(host: str) -> Access:
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"[{host}]" if ":" in host else host
    token = _read(f"{SERVICE_ACCOUNT}/token", "the pod's service account token").strip()
    return Access(
        server=f"https://{address}:{port}",
        ca_file=f"{SERVICE_ACCOUNT}/ca.crt",
        authorization=lambda: f"Bearer {token}",
    )


def _kubeconfig_access(kubeconfig: Any, context: Optional[str]) -> Access:
    config, folder, where = _kubeconfig(kubeconfig)
    name = context or config.get("current-context")
    if not name:
        raise InputError(f"{where} has no current-context: set `context`")
    chosen = _named(config, "contexts", "context", name, where)
    cluster = _named(config, "clusters", "cluster", chosen.get("cluster"), where)
    user = _named(config, "users", "user", chosen.get("user"), where) if chosen.get("user") else {}
    if user.get("exec") or user.get("auth-provider"):
        raise NeedsClientLibrary
    if not cluster.get("server"):
        raise InputError(f"{where}: cluster {chosen.get('cluster')!r} has no server address")
    access = Access(
        server=str(cluster["server"]).rstrip("/"),
        verify=not cluster.get("insecure-skip-tls-verify", False),
        ca_file=_path(cluster.get("certificate-authority"), folder),
        ca_data=_pem(cluster.get("certificate-authority-data"), where),
        cert_file=_path(user.get("client-certificate"), folder),
        key_file=_path(user.get("client-key"), folder),
        cert_data=_pem(user.get("client-certificate-data"), where),
        key_data=_pem(user.get("client-key-data"), where),
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
    )
    token = user.get("token")
    if not token and user.get("tokenFile"):
        token = _read(_path(user["tokenFile"], folder) or "", "the token file of the kubeconfig").strip()
    if token:
        access.authorization = lambda: f"Bearer {token}"
    elif user.get("username") and user.get("password"):
        basic = _basic(user["username"], user["password"])
        access.authorization = lambda: basic
    return access


def _kubeconfig(source: Any) -> Tuple[Dict[str, Any], str, str]:
    """The parsed kubeconfig, the folder its relative paths start from, and its name in messages."""
    if isinstance(source, dict):
        return source, os.getcwd(), "the kubeconfig given as a dictionary"
    listed = source or os.environ.get("KUBECONFIG") or "~/.kube/config"
    paths = [os.path.expanduser(part) for part in str(listed).split(os.pathsep) if part]
    if len(paths) > 1:
        raise NeedsClientLibrary
    path = os.path.abspath(paths[0])
    if not os.path.exists(path):
        raise InputError(
            f"no cluster to talk to: kubeconfig {path} does not exist. Set `kubeconfig` (or K8S_AUTH_KUBECONFIG), "
            "or `host` with `api_key`"
        )
    config = load_one(_read(path, "the kubeconfig"), path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is no kubeconfig: it holds {type(config).__name__}, not a mapping")
    return config, os.path.dirname(path), f"kubeconfig {path}"


def _named(config: Mapping[str, Any], section: str, key: str, name: Any, where: str) -> Dict[str, Any]:
    entries = config.get(section) or []
    for entry in entries:
        if entry.get("name") == name:
            return entry.get(key) or {}
    known = ", ".join(sorted(str(entry.get("name")) for entry in entries)) or "none"
    raise InputError(f"{where} has no {key} named {name!r} (it has: {known})")


def _override(access: Access, auth: Mapping[str, Any]) -> None:
    """Options given explicitly win over what a kubeconfig says."""
    if auth.get("host"):
        access.server = auth["host"].rstrip("/")
    if auth.get("validate_certs") is not None:
        access.verify = auth["validate_certs"]
    if auth.get("ca_cert"):
        access.ca_file, access.ca_data = auth["ca_cert"], None
    if auth.get("client_cert"):
        access.cert_file, access.cert_data = auth["client_cert"], None
    if auth.get("client_key"):
        access.key_file, access.key_data = auth["client_key"], None
    if auth.get("api_key"):
        bearer = f"Bearer {auth['api_key']}"
        access.authorization = lambda: bearer
    elif auth.get("username") and auth.get("password"):
        basic = _basic(auth["username"], auth["password"])
        access.authorization = lambda: basic
    if auth.get("proxy"):
        access.proxy = auth["proxy"]
    if access.proxy and auth.get("no_proxy") and _bypasses(access.server, auth["no_proxy"]):
        access.proxy = None
    headers = auth.get("proxy_headers") or {}
    if headers.get("proxy_basic_auth"):
        access.proxy_headers["Proxy-Authorization"] = _basic(*headers["proxy_basic_auth"].partition(":")[::2])
    if headers.get("basic_auth"):
        access.proxy_headers["Authorization"] = _basic(*headers["basic_auth"].partition(":")[::2])
    if headers.get("user_agent"):
        access.proxy_headers["User-Agent"] = headers["user_agent"]


def _library_access(auth: Mapping[str, Any]) -> Access:
    """The access that kubernetes.core makes of ``auth``: slower, and knows every kind of kubeconfig."""
    try:
        from ansible_collections.kubernetes.core.plugins.module_utils.k8s.client import get_api_client

        configuration = get_api_client(**auth).configuration
    except Exception as error:
        raise ClusterError(f"kubernetes.core could not use this configuration: {error}") from error

    def authorization() -> Optional[str]:
        token = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return token or configuration.get_basic_auth_token() or None

    proxy = configuration.proxy
    if proxy and configuration.no_proxy and _bypasses(configuration.host, configuration.no_proxy):
        proxy = None
    return Access(
        server=configuration.host.rstrip("/"),
        verify=configuration.verify_ssl,
        ca_file=configuration.ssl_ca_cert,
        cert_file=configuration.cert_file,
        key_file=configuration.key_file,
        server_name=configuration.tls_server_name,
        proxy=proxy,
        proxy_headers=dict(configuration.proxy_headers or {}),
        authorization=authorization,
    )


def _impersonation(auth: Mapping[str, Any]) -> Tuple[Tuple[str, str], ...]:
    headers = []
    if auth.get("impersonate_user"):
        headers.append(("Impersonate-User", auth["impersonate_user"]))
    headers.extend(("Impersonate-Group", group) for group in auth.get("impersonate_groups") or [])
    return tuple(headers)


def _bypasses(server: str, no_proxy: str) -> bool:
    from urllib import request
    from urllib.parse import urlsplit

    # Not in the documented part of urllib, and the only matcher of this list that Python carries.
    bypass = getattr(request, "proxy_bypass_environment", None)
    return bool(bypass and bypass(urlsplit(server).hostname or "", {"no": no_proxy}))


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _path(value: Optional[str], folder: str) -> Optional[str]:
    return os.path.join(folder, os.path.expanduser(value)) if value else None


def _pem(value: Optional[str], where: str) -> Optional[str]:
    if not value:
        return None
    try:
        return base64.b64decode(value, validate=True).decode()
    except ValueError as error:
        raise InputError(f"{where}: a certificate or key is not base64 of PEM text ({error})") from error


def _read(path: str, what: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from error
