# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the replicas of an endpoint picker say of themselves on their metrics port, read through the API server.

Every replica is asked by itself: each sees the endpoints with its own eyes, and remembers its own decisions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Dict, Iterator, List, Sequence
from urllib.parse import urlencode

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError, InputError

Json = Dict[str, Any]

TOKEN_SECONDS = 600  # the least that a token may last
SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")
# Texts in these are names of others, not of fields.
OPAQUE = ("labels", "scores", "profiles")


@dataclass
class Picker:
    """The pods behind the Service of an endpoint picker. ``token`` is shown to them, if there is one."""

    client: Client
    namespace: str
    name: str
    port: int
    scheme: str
    token: str = ""

    def pods(self) -> List[Json]:
        """The pods of the Service that run. Raises InputError when there is no such Service, or no pod."""
        service = self.client.find(f"/api/v1/namespaces/{self.namespace}/services/{self.name}")
        if service is None:
            raise InputError(f"there is no Service {self.namespace}/{self.name}: correct `namespace` and `name`")
        selector = (service.get("spec") or {}).get("selector") or {}
        if not selector:
            raise InputError(f"the Service {self.namespace}/{self.name} selects no pods")
        wanted = ",".join(f"{name}={value}" for name, value in selector.items())
        listed = self.client.list(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=wanted)
        running = [pod for pod in listed if (pod.get("status") or {}).get("phase") == "Running"]
        if not running:
            raise ClusterError(f"no pod of the Service {self.namespace}/{self.name} runs ({len(listed)} exist)")
        return sorted(running, key=lambda pod: str(pod["metadata"]["name"]))

    def endpoints(self, pod: str) -> List[Json]:
        """What this replica knows of each endpoint."""
        return [snake(one) for one in self._document(pod, "/debug/endpoints")["endpoints"]]

    def decisions(self, pod: str, limit: int, model: str) -> List[Json]:
        """The last decisions of this replica, newest first."""
        query = urlencode({"limit": limit, "model": model})
        return [snake(one) for one in self._document(pod, f"/debug/decisions?{query}")["decisions"]]

    def metrics(self, pod: str, names: Sequence[str]) -> List[Json]:
        """The samples on its page of metrics whose names fit."""
        return [one for one in samples(self._text(pod, "/metrics")) if any(fnmatchcase(one["name"], n) for n in names)]

    def _document(self, pod: str, path: str) -> Json:
        text = self._text(pod, path)
        try:
            document: Json = json.loads(text)
        except ValueError:
            raise ClusterError(f"pod {self.namespace}/{pod}: {path} is no JSON: {text[:80]!r}") from None
        return document

    def _text(self, pod: str, path: str) -> str:
        headers = {"X-Authorization": f"Bearer {self.token}"} if self.token else {}
        proxy = f"/api/v1/namespaces/{self.namespace}/pods/{self.scheme}:{pod}:{self.port}/proxy"
        status, text = self.client.fetch(f"{proxy}{path}", headers)
        if status == 200:
            return text
        raise ClusterError(f"pod {self.namespace}/{pod}, port {self.port}{path}: {_refusal(status, text)}")


def token_of(client: Client, namespace: str, account: str) -> str:
    """A token of a service account that lasts ten minutes. Raises ApiError."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS},
    }
    try:
        answer = client.request("POST", path, {}, body, "application/json")
    except ApiError as error:
        if error.status == 404:
            raise InputError(f"there is no ServiceAccount {namespace}/{account}: correct `service_account`") from error
        raise
    return str(answer["status"]["token"])


def _refusal(status: int, text: str) -> str:
    shown = text.strip()[:200]
    if status in (401, 403):
        return (
            f"{status}: {shown}. Give a `service_account` (or `token`) that may `get` the nonResourceURLs /metrics, "
            "/debug/endpoints and /debug/decisions; and see that you may `get` pods/proxy"
        )
    if status == 404:
        return f"404: {shown}. This is another kind of endpoint picker: leave only `metrics` in `gather`"
    return f"{status}: {shown}"


def samples(page: str) -> Iterator[Json]:
    """The samples of a page in Prometheus' text format."""
    for line in page.splitlines():
        match = SAMPLE.match(line)
        if match and not line.startswith("#"):
            labels = {name: _unescaped(value) for name, value in LABEL.findall(match["labels"] or "")}
            yield {"name": match["name"], "labels": labels, "value": match["value"]}


def _unescaped(value: str) -> str:
    return value.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")


def snake(value: Any) -> Any:
    """``runningAdapters`` as Ansible's users write it, in every mapping but those whose keys are data."""
    if isinstance(value, dict):
        return {
            CAPITAL.sub(lambda match: f"_{match[1].lower()}", name): part if name in OPAQUE else snake(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [snake(part) for part in value]
    return value
