# SPDX-License-Identifier: GPL-3.0-or-later
"""The priorities that InferenceObjectives give to requests.

An objective belongs to the pool that its ``poolRef`` names. Of the two API groups the newer one counts if the cluster
has it, and then the older one is not looked at, as in the reference. A cluster without either is asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from epp.datalayer.kubernetes import KubeClient, KubeError, Reflector

log = logging.getLogger(__name__)

GROUPS = ("llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2")
RESOURCE = "inferenceobjectives"
LOOK_AGAIN = 30.0
"""Seconds between two questions for the resource, while there is none."""


class Objectives:
    """Name of an objective to its priority, per pool."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        """``namespace`` is that of the pools, and so of their objectives."""
        self._client, self._namespace = client, namespace
        self._known: dict[str, tuple[str, int]] = {}

    def priority(self, pool: str, objective: str) -> int:
        """The priority of a request for this objective; 0 for one that is not known, or is another pool's."""
        found = self._known.get(objective)
        return found[1] if found is not None and found[0] == pool else 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while (group := await self._group()) is None:
            await asyncio.sleep(LOOK_AGAIN)
        log.info("priorities come from %s in %s", RESOURCE, group)
        path = f"/apis/{group}/namespaces/{self._namespace}/{RESOURCE}"
        await Reflector(self._client, path, {}, self._listed, self._changed).run()

    async def _group(self) -> str | None:
        for group in GROUPS:
            try:
                found = await self._client.get(f"/apis/{group}")
            except KubeError:
                continue  # no such group, or no API server: asked again
            if any(each.get("name") == RESOURCE for each in found.get("resources") or []):
                return group
        return None

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self._known = {}
        for item in items:
            self._changed("ADDED", item)

    def _changed(self, kind: str, item: Mapping[str, Any]) -> None:
        name = str((item.get("metadata") or {}).get("name", ""))
        if kind == "DELETED":
            self._known.pop(name, None)
            return
        spec = item.get("spec") or {}
        priority = spec.get("priority")
        pool = str((spec.get("poolRef") or {}).get("name", ""))
        self._known[name] = (pool, priority if isinstance(priority, int) else 0)
