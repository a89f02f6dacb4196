# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform as its users see it: an address, a key, completions, and the pod that answered each of them.

It finds everything through the Kubernetes API by the labels that the roles set, and asks with plain HTTP: nothing of
the roles is imported, so that tests and the demonstration look at what is really there.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config

LITELLM = "app.kubernetes.io/name=litellm"
SERVED_BY = "x-gateway-destination-endpoint-served"


class PlatformError(Exception):
    """The platform is not there, or not as the roles leave it; the text says what is missing."""


@dataclass
class Answer:
    """What came back for one completion. Times are seconds from the request; ``first`` is the first body byte's."""

    status: int
    headers: dict[str, str]
    body: bytes
    first: float
    total: float
    error: str = ""

    @property
    def served_by(self) -> str:
        """``ip:port`` of the endpoint that Envoy really used, as LiteLLM (or the gateway itself) passes it on."""
        return self.headers.get(f"llm_provider-{SERVED_BY}", self.headers.get(SERVED_BY, ""))

    def json(self) -> Any:
        """The decoded body of an answer that was not streamed."""
        return json.loads(self.body)

    def text(self) -> str:
        """The completion's text, put together from the events of a streamed answer."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return str(self.json()["choices"][0]["message"]["content"])
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in self.events() if event["choices"])

    def events(self) -> Iterator[Any]:
        """The decoded events of a streamed answer, without the closing ``[DONE]``."""
        for line in self.body.split(b"\n"):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                yield json.loads(line[6:])


@dataclass
class Platform:
    """A converged platform. ``url`` is LiteLLM's, without a path; ``key`` its master key."""

    namespace: str
    url: str
    key: str
    core: Any = field(repr=False)

    def pods(self, selector: str) -> dict[str, str]:
        """Running pods that match a label selector: pod IP to pod name."""
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return {pod.status.pod_ip: pod.metadata.name for pod in listed if pod.status.phase == "Running"}

    def models(self) -> list[str]:
        """The names of the models that LiteLLM offers."""
        answer = self.request("GET", "/v1/models")
        if answer.status != 200:
            raise PlatformError(f"GET {self.url}/v1/models answered {answer.status}: {answer.body[:300]!r}")
        return [model["id"] for model in answer.json()["data"]]

    def complete(self, model: str, prompt: str, *, stream: bool = False, max_tokens: int = 16) -> Answer:
        """One chat completion."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": stream,
        }
        return self.request("POST", "/v1/chat/completions", json.dumps(body).encode())

    def request(
        self, method: str, path: str, body: bytes | None = None, key: str | None = None, timeout: float = 120
    ) -> Answer:
        """One HTTP exchange with LiteLLM; a broken connection is an answer with an ``error``, and whatever had come."""
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return exchange(self.url, method, path, body, headers, timeout)


def exchange(url: str, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float) -> Answer:
    """One HTTP exchange on a connection of its own."""
    address = urlsplit(url)
    began = time.monotonic()
    answer = Answer(0, {}, b"", 0.0, 0.0)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer.status = response.status
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        while chunk := response.read1():
            answer.first = answer.first or time.monotonic() - began
            answer.body += chunk
    except (OSError, http.client.HTTPException) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    answer.total = time.monotonic() - began
    return answer


def find(kubeconfig: str | None = None) -> Platform:
    """The platform in the cluster of ``kubeconfig`` (default: ``$KUBECONFIG``).

    Raises:
        PlatformError: no LiteLLM Service, no Secret with its key, or no address that this machine could reach.
    """
    # The client looks at the variable when it is imported, which may be too early.
    config.load_kube_config(kubeconfig or os.environ.get("KUBECONFIG"))  # type: ignore[no-untyped-call]
    core: Any = client.CoreV1Api()
    services = core.list_service_for_all_namespaces(label_selector=LITELLM).items
    if not services:
        raise PlatformError(f"no Service with the label {LITELLM}: run site.yml first (`make converge`)")
    service = services[0]
    namespace = service.metadata.namespace
    return Platform(namespace, _address(core, service), _key(core, namespace), core)


def _address(core: Any, service: Any) -> str:
    """Where this machine reaches a Service: load balancer, node port, or the cluster IP (on the node itself)."""
    port = service.spec.ports[0]
    ingress = service.status.load_balancer.ingress or []
    if ingress:
        return f"http://{ingress[0].ip or ingress[0].hostname}:{port.port}"
    if port.node_port:
        return f"http://127.0.0.1:{port.node_port}"
    return f"http://{service.spec.cluster_ip}:{port.port}"


def _key(core: Any, namespace: str) -> str:
    secrets = core.list_namespaced_secret(namespace, label_selector=LITELLM).items
    values = [value for secret in secrets for value in (secret.data or {}).values()]
    if not values:
        raise PlatformError(f"no Secret with the label {LITELLM} in {namespace}: LiteLLM's master key is not there")
    return base64.b64decode(values[0]).decode()
