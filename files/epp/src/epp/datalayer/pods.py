# SPDX-License-Identifier: GPL-3.0-or-later
"""Pods as endpoints: what a list or a watch says, reduced to the pods that may serve. No input or output here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epp.model import Endpoint

log = logging.getLogger(__name__)

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations that narrow a pod's ports to a comma-separated list; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What is kept of a pod that may serve."""

    namespace: str
    name: str
    address: str
    labels: Mapping[str, str]
    active_ports: frozenset[int] | None
    """None is all ports."""


class PodTable:
    """The pods that may serve: Ready, not being deleted, with an address."""

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        """A full list."""
        pods = (serving(item) for item in items)
        self._pods = {pod.name: pod for pod in pods if pod is not None}

    def apply(self, kind: str, item: Mapping[str, Any]) -> bool:
        """One event of a watch; whether it changed anything."""
        name = str((item.get("metadata") or {}).get("name", ""))
        before = self._pods.get(name)
        after = None if kind == "DELETED" else serving(item)
        if after == before:
            return False
        if after is None:
            del self._pods[name]
        else:
            self._pods[name] = after
        return True

    def endpoints(self, ports: Sequence[int]) -> list[Endpoint]:
        """One endpoint per pod and port, named ``<pod>-rank-<index of the port>``, ordered by pod."""
        return [
            Endpoint(f"{pod.name}-rank-{rank}", pod.namespace, pod.name, pod.address, port, labels=pod.labels)
            for _, pod in sorted(self._pods.items())
            for rank, port in enumerate(ports)
            if pod.active_ports is None or port in pod.active_ports
        ]


def serving(item: Mapping[str, Any]) -> Pod | None:
    """A pod object, if it may serve."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    address, name = status.get("podIP"), metadata.get("name")
    if not address or not name or metadata.get("deletionTimestamp"):
        return None
    conditions = status.get("conditions") or []
    if not any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions):
        return None
    return Pod(
        str(metadata.get("namespace", "")),
        str(name),
        str(address),
        metadata.get("labels") or {},
        _active_ports(metadata.get("annotations") or {}, str(name)),
    )


def _active_ports(annotations: Mapping[str, str], pod: str) -> frozenset[int] | None:
    for key in ACTIVE_PORTS:
        text = annotations.get(key, "").strip()
        if text:
            parts = [part.strip() for part in text.split(",")]
            if all(part.isdecimal() for part in parts):
                return frozenset(int(part) for part in parts)
            log.warning("pod %s: annotation %s is %r, not a list of ports; all ports are used", pod, key, text)
            return None
    return None
