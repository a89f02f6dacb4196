# SPDX-License-Identifier: GPL-3.0-or-later
"""The little that is needed of a Kubernetes client: list and watch, as plain JSON, over aiohttp.

A generated client brings hundreds of model classes, some 80 MB and seconds of start-up, for three requests.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from epp.datalayer.kubeconfig import Credentials, KubeConfigError, from_environment

log = logging.getLogger(__name__)

__all__ = ["KubeClient", "KubeConfigError", "KubeError", "Reflector"]

WATCH_SECONDS = 60
"""How long one watch lasts; a connection that died silently is noticed shortly after."""
RESYNC_SECONDS = 600.0
"""A full list is made at least this often, whatever the watch says."""
MAX_BACKOFF = 2.0
"""Seconds between two attempts while the API server is away: once it is back, changes are to be seen soon."""
SEND_SECONDS = 5.0
KEEPALIVE = (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 7000))
"""A server that vanished without a word (a node that lost its power) is noticed within some 7 seconds (the last one is
in milliseconds), though a watch may be silent for a minute."""
PAGE = 500


class KubeError(Exception):
    """A request that failed. ``status`` is the HTTP status, 0 when there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubeClient:
    """Connection to one API server."""

    def __init__(self, credentials: Credentials, on_failure: Callable[[str], None] | None = None) -> None:
        """``on_failure`` is told of each failed attempt to follow a collection, with the reason."""
        self._credentials = credentials
        self.on_failure = on_failure or (lambda reason: None)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_environment(cls) -> KubeClient:
        """By ``KUBECONFIG``, else the service account of the pod, else ``~/.kube/config``. Raises KubeConfigError."""
        return cls(from_environment())

    @property
    def server(self) -> str:
        """The API server's address."""
        return self._credentials.server

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def list(self, path: str, params: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """All objects of a collection, and the resource version to watch from. Raises KubeError."""
        items: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {**params, "limit": str(PAGE), **({"continue": token} if token else {})}
            async with self._get(path, query, 30.0) as response:
                page = _object(await response.read(), path)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            token = metadata.get("continue") or ""
            if not token:
                return items, str(metadata.get("resourceVersion", ""))

    async def watch(self, path: str, params: Mapping[str, str], version: str) -> AsyncIterator[dict[str, Any]]:
        """Events since ``version`` until the server ends the watch. Raises KubeError (410: list again)."""
        query = {
            **params,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with self._get(path, query, WATCH_SECONDS + 10.0) as response:
            pending = b""
            try:
                async for chunk in response.content.iter_any():
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield _object(line, path)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise KubeError(0, f"the watch broke: {error or type(error).__name__}") from error

    async def get(self, path: str) -> dict[str, Any]:
        """One object. Raises KubeError."""
        async with self._request("GET", path, {}, SEND_SECONDS) as response:
            return _object(await response.read(), path)

    async def send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create (POST) or replace (PUT) an object; returns it as the server has it now. Raises KubeError."""
        async with self._request(method, path, {}, SEND_SECONDS, body) as response:
            return _object(await response.read(), path)

    def _get(self, path: str, query: Mapping[str, str], timeout: float) -> _Response:
        return self._request("GET", path, query, timeout)

    def _request(
        self, method: str, path: str, query: Mapping[str, str], timeout: float, body: dict[str, Any] | None = None
    ) -> _Response:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._credentials.tls or True, socket_factory=_socket)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True, trust_env=True)
        return _Response(self._session, self._credentials, (method, path, query, body), timeout)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices when the other side is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):  # not all systems have all of them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class _Response:
    """A request as a context manager that turns every kind of failure into a KubeError."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: Credentials,
        request: tuple[str, str, Mapping[str, str], dict[str, Any] | None],
        timeout: float,
    ) -> None:
        """``request`` is method, path, query and JSON body; ``timeout`` seconds may pass without a byte."""
        self._session, self._credentials = session, credentials
        self._asked, self._timeout = request, timeout
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        server = self._credentials.server
        method, path, query, body = self._asked
        timeout = aiohttp.ClientTimeout(sock_connect=5.0, sock_read=self._timeout)
        data = None if body is None else msgspec.json.encode(body)
        try:
            headers = {"Accept": "application/json", "User-Agent": "epp", **self._credentials.headers()}
            if data is not None:
                headers["Content-Type"] = "application/json"
            response = await self._session.request(
                method, server + path, params=query, headers=headers, timeout=timeout, data=data
            )
            self._response = response
            if response.status not in (200, 201):
                text = await response.text()
                response.release()
                raise KubeError(response.status, _reason(response.status, text, path, method))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, f"{server} does not answer: {error or type(error).__name__}") from error
        return response

    async def __aexit__(self, *exc: object) -> None:
        if self._response is not None:
            self._response.close()


def _object(text: bytes, path: str) -> dict[str, Any]:
    """A JSON object from the API server. Raises KubeError for anything else."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise KubeError(0, f"{path}: the answer is not a JSON object ({error})") from error


def _reason(status: int, text: str, path: str, method: str) -> str:
    """The API server's own words for a failure."""
    try:
        message = str(msgspec.json.decode(text.encode())["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        message = text.strip()[:200] or "no reason given"
    verbs = {"GET": "get, list and watch", "POST": "create", "PUT": "update"}.get(method, method)
    advice = {401: "; check the credentials", 403: f"; grant {verbs} to the service account"}.get(status, "")
    return f"{path}: {status} {message}{advice}"


class Reflector:
    """Follows one collection: a full list, then every change, across lost watches and API server outages."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        params: Mapping[str, str],
        on_list: Callable[[list[dict[str, Any]]], None],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """``on_list`` gets all objects, ``on_event`` a type (ADDED, MODIFIED, DELETED) and one object."""
        self._client, self._path, self._params = client, path, dict(params)
        self._on_list, self._on_event = on_list, on_event
        self._listed_at = 0.0
        self.problem = ""
        """Why the view may be out of date; empty when it is not."""
        self.status = 0
        """HTTP status of the last failed request; 0 for none."""

    async def run(self) -> None:
        """Follow until cancelled."""
        version, failures = "", 0
        while True:
            try:
                if not version or time.monotonic() - self._listed_at >= RESYNC_SECONDS:
                    items, version = await self._client.list(self._path, self._params)
                    self._listed_at = time.monotonic()
                    self._recovered()
                    self._on_list(items)
                version = await self._watch(version)
                failures = 0
            except Exception as error:
                # Whatever an object has in it, following must go on: the endpoints depend on it.
                version = ""
                if isinstance(error, KubeError) and error.status == 410 and failures == 0:
                    failures = 1
                    continue
                failures += 1
                self._failed(error)
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(MAX_BACKOFF, 0.25 * 2 ** min(failures, 10)))

    async def _watch(self, version: str) -> str:
        """Handle one watch to its end; the version to go on from."""
        async for event in self._client.watch(self._path, self._params, version):
            kind, item = str(event.get("type", "")), event.get("object") or {}
            if kind == "ERROR":
                raise KubeError(int(item.get("code") or 500), str(item.get("message") or "the watch ended in an error"))
            version = str((item.get("metadata") or {}).get("resourceVersion") or version)
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                self._on_event(kind, item)
        return version

    def _failed(self, error: Exception) -> None:
        known = isinstance(error, KubeError)
        problem = str(error) if known else f"{self._path}: {type(error).__name__}: {error}"
        self._client.on_failure(problem)
        if problem != self.problem:
            log.warning(
                "kubernetes: %s; the endpoints stay as they are, trying again",
                problem,
                exc_info=None if known else error,
            )
        self.problem, self.status = problem, error.status if isinstance(error, KubeError) else 0

    def _recovered(self) -> None:
        if self.problem:
            log.info("kubernetes: %s can be read again", self._path)
        self.problem, self.status = "", 0
