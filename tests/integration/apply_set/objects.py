# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests, and a few acts of others, that the tests share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]


def namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def config_map(name: str, **data: Any) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str = "web", **pod: Any) -> Json:
    """With values that the server writes in another way or adds to: quantities, default ports, null."""
    container = {
        "name": "c",
        "image": "localhost/none:1",
        "ports": [{"containerPort": 80}],
        "resources": {"requests": {"cpu": "0.1", "memory": "1024Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "nodeSelector": None, **pod},
            },
        },
    }


def crd(kind: str, group: str) -> Json:
    """A namespaced kind whose spec has the integer ``size``."""
    plural = f"{kind.lower()}s"
    spec = {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def custom(kind: str, group: str, name: str, size: Any) -> Json:
    return {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}, "spec": {"size": size}}


def actions(result: Json) -> list[str]:
    return [entry["action"] for entry in result["objects"]]


def status_crd(kind: str, group: str) -> Json:
    """A namespaced kind with a status of its own, which a controller (here: the test) writes."""
    made = crd(kind, group)
    version = made["spec"]["versions"][0]
    version["subresources"] = {"status": {}}
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version["schema"]["openAPIV3Schema"]["properties"]["status"] = anything
    return made


@contextmanager
def later(seconds: float, action: Callable[[], Any]) -> Iterator[None]:
    """Somebody else does ``action`` after these seconds."""
    timer = threading.Timer(seconds, action)
    timer.start()
    yield
    timer.join()


def condition(name: str, status: str = "True", **more: Any) -> Json:
    return {"type": name, "status": status, "reason": "Because", "message": "told", **more}
