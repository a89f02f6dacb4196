# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints by a label selector and ports from flags: Kubernetes without an InferencePool."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from epp.datalayer.kubernetes import KubeClient, Reflector
from epp.datalayer.pods import PodTable
from epp.datalayer.store import Datastore

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}"
_VALUE = rf"(?:{_NAME})?"
_REQUIREMENT = re.compile(
    rf"\s*(?:!\s*{_KEY}|{_KEY}\s*(?:(?:==|=|!=)\s*{_VALUE}|(?<=\s)(?:in|notin)\s*\(\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*\))?)\s*"
)
MAX_PORTS = 8


def check_selector(text: str) -> str:
    """``text``, if it is a label selector (``app=x,tier in (a,b),!old``). Raises ValueError."""
    position = 0
    while True:
        match = _REQUIREMENT.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a label selector: it goes wrong at {text[position:]!r}")
        position = match.end()
        if position == len(text):
            return text
        if text[position] != ",":
            raise ValueError(f"{text!r} is not a label selector: it goes wrong at {text[position:]!r}")
        position += 1


class SelectorWatcher:
    """Keeps a datastore equal to the ready pods that a label selector matches, times the given ports."""

    def __init__(
        self, datastore: Datastore, client: KubeClient, namespace: str, selector: str, ports: Sequence[int]
    ) -> None:
        """``selector`` is Kubernetes' full selector syntax; 1 to 8 ports. Raises ValueError."""
        if not 1 <= len(ports) <= MAX_PORTS or len(set(ports)) != len(ports):
            raise ValueError(f"1 to {MAX_PORTS} different ports are needed, not {list(ports)}")
        if not all(0 < port < 65536 for port in ports):
            raise ValueError(f"ports are numbers from 1 to 65535, not {list(ports)}")
        self._datastore, self._ports, self._pods = datastore, tuple(ports), PodTable()
        path, params = f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": check_selector(selector)}
        self._reflector = Reflector(client, path, params, self._listed, self._changed)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._reflector.run()

    def problem(self) -> str:
        """What is wrong now; empty when all is well."""
        return self._reflector.problem

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self._pods.replace(items)
        self._datastore.replace(self._pods.endpoints(self._ports))

    def _changed(self, kind: str, item: dict[str, Any]) -> None:
        if self._pods.apply(kind, item):
            self._datastore.replace(self._pods.endpoints(self._ports))
