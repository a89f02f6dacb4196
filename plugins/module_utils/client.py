# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Kubernetes API client on the standard library: keep-alive, bounded retries, many requests at once.

It knows paths, verbs and Status errors; it knows no kinds. One client may be used from several threads: each thread
keeps its own connection.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, TypeVar
from urllib.parse import urlencode, urlsplit

from ansible_collections.inferops.cluster.plugins.module_utils.access import Access
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, InputError, UnreachableError

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 8
CONNECT_TIMEOUT = 10.0  # seconds
REQUEST_TIMEOUT = 60.0  # seconds; the API server's own limit for one request
ATTEMPTS = 6  # of one request, for throttling, overload and broken connections
FIRST_CONTACT_ATTEMPTS = 2  # while the server has never answered: a wrong address should fail fast
WATCH_GRACE = 10.0  # seconds that the server may be late to end a watch, before the connection counts as dead
PAGE = 500  # objects of one answer to a LIST
BACKOFF_CAP = 5.0  # seconds
# A 500 is worth another try only when its text says that something between the server and its helpers was missing.
TRANSIENT_500 = ("failed calling webhook", "etcdserver:", "connection refused", "deadline exceeded", "timed out")
# A namespace gets its default service account a moment after it was made; pods are refused until then.
YOUNG_NAMESPACE = 'serviceaccount "default" not found'
APPLY = "application/apply-patch+yaml"


class Client:
    """Requests to one API server. Close it to drop its connections and temporary key files."""

    def __init__(self, access: Access, user_agent: str = "inferops.cluster") -> None:
        self.server = access.server
        self.warnings: Dict[str, None] = {}  # ordered set of the server's Warning headers
        self.requests = 0
        self._access = access
        parts = urlsplit(access.server)
        if not parts.hostname:
            raise InputError(f"the API server address {access.server!r} names no host: write https://host:port")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._context = _tls_context(access) if self._tls else None
        self._user_agent = user_agent
        self._local = threading.local()
        self._connections: List[http.client.HTTPConnection] = []
        self._answered = False
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="kubernetes")

    def close(self) -> None:
        """Drop every connection. The client cannot be used afterwards."""
        self._pool.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> List[R]:
        """``function`` of each item, up to 8 at once, in order. The first exception is raised after all have ended."""
        futures = [self._pool.submit(function, item) for item in items]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]

    def get(self, path: str, **query: str) -> Dict[str, Any]:
        """The object, list or document at ``path``. Raises ApiError (404 when there is none)."""
        return self.request("GET", path, query)

    def find(self, path: str, **query: str) -> Optional[Dict[str, Any]]:
        """Like get, but None when nothing is there."""
        try:
            return self.get(path, **query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, path: str, **query: str) -> List[Dict[str, Any]]:
        """All items of the collection at ``path``."""
        return self.snapshot(path, **query)[0]

    def snapshot(self, path: str, **query: str) -> Tuple[List[Dict[str, Any]], str]:
        """All items of the collection, read page by page, and the resourceVersion from which to watch it on."""
        items: List[Dict[str, Any]] = []
        page: Dict[str, str] = {}
        while True:
            try:
                answer = self.get(path, limit=str(PAGE), **query, **page)
            except ApiError as error:
                if error.status != 410 or not page:
                    raise
                items, page = [], {}  # the server no longer has the state that the first page was taken from
                continue
            items.extend(answer.get("items") or [])
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion") or "")
            page = {"continue": metadata["continue"]}

    def watch(self, path: str, version: str, seconds: float, **query: str) -> Iterator[Tuple[str, Dict[str, Any]]]:
        """Changes of the collection since ``version``, as (ADDED, MODIFIED or DELETED, object), as they happen.

        Ends after ``seconds`` or when the server ends it. Uses a connection of its own. Raises ApiError (410: the
        version is too old, list again) and UnreachableError.
        """
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(int(seconds) or 1), **query}
        target = f"{self._prefix}{path}?{urlencode(query)}"
        connection: Optional[http.client.HTTPConnection] = None
        try:
            connection = self._connect()
            if connection.sock is not None:
                connection.sock.settimeout(seconds + WATCH_GRACE)
            self._send(connection, "GET", target, None, self._headers())
            response = connection.getresponse()
            if response.status >= 300:
                raise ApiError(response.status, _status_body(response.read()), "GET", path)
            for event in _events(response):
                body = event.get("object") or {}
                if event.get("type") == "ERROR":
                    raise ApiError(int(body.get("code") or 500), body, "GET", path)
                yield str(event.get("type")), body
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(self._unreachable(error, 1)) from error
        finally:
            if connection is not None:
                connection.close()

    def fetch(self, path: str, headers: Dict[str, str]) -> Tuple[int, str]:
        """Status and text of whatever answers at ``path``: through the API server's proxy, that is no API of its own.

        Raises UnreachableError.
        """
        for attempt in (1, 2):  # a connection that was kept may have been closed meanwhile
            try:
                status, _retry_after, text = self._exchange(
                    "GET", f"{self._prefix}{path}", None, {**self._headers(), "Accept": "*/*", **headers}
                )
                return status, text.decode(errors="replace")
            except (OSError, http.client.HTTPException) as error:
                self._drop_connection()
                failure = UnreachableError(self._unreachable(error, attempt))
        raise failure

    def apply(
        self, path: str, body: Dict[str, Any], manager: str, force: bool = False, dry_run: bool = False
    ) -> Dict[str, Any]:
        """Server-side apply ``body`` at ``path``; the object as it is (or, in a dry run, would be) afterwards."""
        query = {"fieldManager": manager, "fieldValidation": "Strict", "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        return self.request("PATCH", path, query, body, APPLY)

    def delete(self, path: str, propagation: str, uid: Optional[str] = None) -> bool:
        """Ask for the deletion of the object with this ``uid``; False when it was gone already."""
        options: Dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", path, {}, options, "application/json")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def request(
        self,
        method: str,
        path: str,
        query: Dict[str, str],
        body: Optional[Dict[str, Any]] = None,
        content_type: Optional[str] = None,
    ) -> Dict[str, Any]:
        """One API call with retries. Every call this client makes may be repeated without harm."""
        target = f"{self._prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        payload = json.dumps(body).encode() if body is not None else None
        headers = self._headers()
        if content_type:
            headers["Content-Type"] = content_type
        attempt = 0
        while True:
            attempt += 1
            try:
                status, retry_after, text = self._exchange(method, target, payload, headers)
            except (OSError, http.client.HTTPException) as error:
                self._drop_connection()
                limit = ATTEMPTS if self._answered else FIRST_CONTACT_ATTEMPTS
                if attempt >= limit or isinstance(error, ssl.SSLCertVerificationError):
                    raise UnreachableError(self._unreachable(error, attempt)) from error
                time.sleep(_backoff(attempt))
                continue
            self._answered = True
            if status < 300:
                answer: Dict[str, Any] = json.loads(text)
                return answer
            failure = ApiError(status, _status_body(text), method, path)
            if attempt >= ATTEMPTS or not _worth_retrying(failure):
                raise failure
            time.sleep(min(retry_after, 30.0) if retry_after is not None else _backoff(attempt))

    def _exchange(
        self, method: str, target: str, payload: Optional[bytes], headers: Dict[str, str]
    ) -> Tuple[int, Optional[float], bytes]:
        """Send one request on this thread's connection: HTTP status, Retry-After in seconds, body."""
        connection = self._connection()
        self._send(connection, method, target, payload, headers)
        response = connection.getresponse()
        text = response.read()
        for warning in response.headers.get_all("Warning") or []:
            self.warnings[_warning_text(warning)] = None
        retry_after = response.headers.get("Retry-After", "")
        return response.status, float(retry_after) if retry_after.isdecimal() else None, text

    def _headers(self) -> Dict[str, str]:
        return {"Accept": "application/json", "User-Agent": self._user_agent}

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        payload: Optional[bytes],
        headers: Dict[str, str],
    ) -> None:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        authorization = self._access.authorization() if self._access.authorization else None
        if authorization:
            connection.putheader("Authorization", authorization)
        for name, value in self._access.impersonation:
            connection.putheader(name, value)
        if payload is not None:
            connection.putheader("Content-Length", str(len(payload)))
        connection.endheaders(payload)
        self.requests += 1

    def _connection(self) -> http.client.HTTPConnection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._host, self._port
        if self._access.proxy:
            proxy = urlsplit(self._access.proxy)
            if proxy.scheme != "http" or not proxy.hostname:
                raise InputError(f"proxy {self._access.proxy!r} cannot be used: only http://host:port proxies work")
            host, port = proxy.hostname, proxy.port or 80
        if self._context is None:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
        else:
            connection = _TlsConnection(host, port, self._context, self._access.server_name)
        if self._access.proxy:
            connection.set_tunnel(self._host, self._port, self._access.proxy_headers)
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(REQUEST_TIMEOUT + 5)
        return connection

    def _drop_connection(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._connections.remove(connection)
            self._local.connection = None

    def _unreachable(self, error: Exception, attempts: int) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of the API server {self.server} is not trusted: {error.verify_message}. "
                "Set `ca_cert` to the authority that signed it"
            )
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        tried = f"after {attempts} attempts" if self._answered else "at all"
        return (
            f"the API server {self.server} cannot be reached {tried}: {cause}. Check that it runs, and the address "
            "(`kubeconfig`, `context` or `host`) and the network on the way"
        )


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS whose certificate may be checked against another name than the address (kubeconfig tls-server-name)."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_name: Optional[str]) -> None:
        super().__init__(host, port, timeout=CONNECT_TIMEOUT, context=context)
        self._tls_context = context
        self._server_name = server_name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        tunnel = getattr(self, "_tunnel_host", None)
        name = self._server_name or tunnel or self.host
        self.sock = self._tls_context.wrap_socket(self.sock, server_hostname=name)


def _tls_context(access: Access) -> ssl.SSLContext:
    # Not create_default_context: since Python 3.13 it is stricter about CA extensions than Kubernetes' own clients.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if not access.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif access.ca_file or access.ca_data:
            context.load_verify_locations(cafile=access.ca_file if not access.ca_data else None, cadata=access.ca_data)
        else:
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"cannot use the CA certificate {access.ca_file or 'of the kubeconfig'}: {error}") from error
    _load_client_certificate(context, access)
    return context


def _load_client_certificate(context: ssl.SSLContext, access: Access) -> None:
    """Python reads a key pair from files only, so inline PEM lives in a private file for the length of this call."""
    if not (access.cert_file or access.cert_data):
        return
    made: List[str] = []
    try:
        cert = _private_file(access.cert_data, made) if access.cert_data else access.cert_file
        key = _private_file(access.key_data, made) if access.key_data else access.key_file
        context.load_cert_chain(str(cert), key)
    except (OSError, ssl.SSLError) as error:
        named = access.cert_file or "of the kubeconfig"
        raise InputError(f"cannot use the client certificate {named} with its key: {error}") from error
    finally:
        for path in made:
            os.unlink(path)


def _private_file(text: str, made: List[str]) -> str:
    handle, path = tempfile.mkstemp(prefix="inferops-")  # mode 0600
    made.append(path)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    return path


def _events(response: http.client.HTTPResponse) -> Iterator[Dict[str, Any]]:
    """The JSON documents of a watch, one a line."""
    rest = b""
    while True:
        chunk = response.read1(65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: 0.2, 0.4, 0.8... up to 5, with jitter so that writers do not meet again."""
    return min(BACKOFF_CAP, 0.2 * 2.0 ** (attempt - 1)) * random.uniform(0.7, 1.3)


def _worth_retrying(error: ApiError) -> bool:
    if error.status in (429, 502, 503, 504):
        return True
    if error.status == 409:
        # Somebody else wrote between the server's read and write; field conflicts will not go away by themselves.
        return error.reason in ("Conflict", "AlreadyExists") and not error.field_conflicts and error.method == "PATCH"
    if error.status == 403:
        return YOUNG_NAMESPACE in error.message
    return error.status == 500 and any(text in error.message for text in TRANSIENT_500)


def _status_body(text: bytes) -> Dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace").strip()[:500]}
    return body if isinstance(body, dict) else {"message": str(body)[:500]}


def _warning_text(header: str) -> str:
    """The text of a ``299 - "text"`` warning header."""
    start, end = header.find('"'), header.rfind('"')
    return header[start + 1 : end].replace('\\"', '"') if 0 <= start < end else header
