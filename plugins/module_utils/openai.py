# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to an OpenAI-compatible API, and what their answers say: text, times, headers.

The API is reached at its own address, or through the API server of a cluster, which forwards requests to Services and
so makes those reachable that have no address outside of the cluster. It knows no models and judges no answers.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional
from urllib.parse import urlsplit

from ansible_collections.inferops.cluster.plugins.module_utils.access import Access
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError

Json = Dict[str, Any]


@dataclass
class Endpoint:
    """Where an API is: how to open a connection to it, and what stands before its paths and among its headers."""

    connect: Callable[[], http.client.HTTPConnection]
    prefix: str
    headers: Dict[str, str]


@dataclass
class Answer:
    """One answer. Times are seconds since the request was sent; None for what did not happen."""

    status: int = 0
    text: str = ""
    error: str = ""
    headers: Dict[str, str] = field(default_factory=dict)
    usage: Json = field(default_factory=dict)
    finish_reason: Optional[str] = None
    chunks: int = 0
    first_token_seconds: Optional[float] = None
    seconds: float = 0.0

    def as_dict(self) -> Json:
        """The fields by name."""
        return asdict(self)


def direct(url: str, api_key: str, timeout: float, ca_file: Optional[str], verify: bool) -> Endpoint:
    """The API at C(url), such as https://llm.example.com/v1. Raises InputError if that is no HTTP address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url: {url!r} is no HTTP address: write for example http://llm.example.com/v1")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
    if context is not None and not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

    def connect() -> http.client.HTTPConnection:
        if context is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return Endpoint(connect, parts.path.rstrip("/"), headers)


class ServiceProxy(Client):
    """The API server as a way to Services."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._resolved = access

    def endpoint(self, namespace: str, name: str, port: int, api_key: str, timeout: float) -> Endpoint:
        """The API of a Service, below its path /v1.

        The API server takes Authorization for itself, so the key travels in a header that LiteLLM knows as well.
        """

        def connect() -> http.client.HTTPConnection:
            connection = self._connect()
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            return connection

        access = self._resolved
        headers = dict(access.impersonation)
        token = access.authorization() if access.authorization else None
        if token:
            headers["Authorization"] = token
        if api_key:
            headers["x-litellm-api-key"] = f"Bearer {api_key}"
        prefix = f"{self._prefix}/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy/v1"
        return Endpoint(connect, prefix, headers)


def ask(endpoint: Endpoint, path: str, body: Json, headers: Dict[str, str]) -> Answer:
    """Send one request; an answer comes back in any case, with status 0 and the reason if there was none."""
    answer = Answer()
    started = time.monotonic()
    connection = None
    try:
        connection = endpoint.connect()
        payload = json.dumps(body)
        sent = {"Content-Type": "application/json", "Accept": "application/json", **endpoint.headers, **headers}
        connection.request("POST", f"{endpoint.prefix}/{path}", payload, sent)
        _read(connection.getresponse(), answer, started)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}" + (" (after the answer had begun)" if answer.status else "")
    finally:
        if connection is not None:
            connection.close()
    answer.seconds = round(time.monotonic() - started, 4)
    return answer


def _read(response: http.client.HTTPResponse, answer: Answer, started: float) -> None:
    answer.status = response.status
    answer.headers = {name.lower(): value for name, value in response.getheaders()}
    if response.status == 200 and answer.headers.get("content-type", "").startswith("text/event-stream"):
        _read_events(response, answer, started)
        return
    text = response.read().decode(errors="replace")
    if response.status != 200:
        answer.error = error_text(text)
        return
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"the answer is {text[:80]!r}, not a completion")
    _take(document, answer)


def _read_events(lines: Iterable[bytes], answer: Answer, started: float) -> None:
    """Read server-sent events until [DONE]; an answer without it was cut off."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        document = json.loads(data)
        if "error" in document:
            answer.error = error_text(data.decode(errors="replace"))
            return
        before = answer.text
        _take(document, answer)
        answer.chunks += 1
        if answer.first_token_seconds is None and answer.text != before:
            answer.first_token_seconds = round(time.monotonic() - started, 4)
    raise http.client.IncompleteRead(b"")


def _take(document: Json, answer: Answer) -> None:
    """Add what a completion, or a piece of one, says."""
    for choice in (document.get("choices") or [])[:1]:
        part = choice.get("delta") or choice.get("message") or choice
        content: List[str] = [part[key] for key in ("content", "text") if isinstance(part.get(key), str)]
        answer.text += "".join(content)
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.usage = document.get("usage") or answer.usage


def error_text(text: str) -> str:
    """The message in an error's body, or the body if it has none."""
    try:
        document = json.loads(text)
    except ValueError:
        return text.strip()[:500]
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])[:500]
    return str(error)[:500]
