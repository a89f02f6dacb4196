# SPDX-License-Identifier: GPL-3.0-or-later
"""The priorities that InferenceObjectives give to requests."""

from __future__ import annotations

from epp.datalayer.custom import Resources
from epp.datalayer.kubernetes import KubeClient

RESOURCE = "inferenceobjectives"


class Objectives:
    """Name of an objective to its priority, per pool."""

    def __init__(self, client: KubeClient, namespace: str, pool_group: str) -> None:
        """``namespace`` is that of the pools, and so of their objectives."""
        self._resources = Resources(client, namespace, RESOURCE, pool_group, self._changed)
        self._known: dict[str, tuple[str, int]] = {}

    def priority(self, pool: str, objective: str) -> int:
        """The priority of a request for this objective; 0 for one that is not known, or is another pool's."""
        found = self._known.get(objective)
        return found[1] if found is not None and found[0] == pool else 0

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._resources.run()

    def _changed(self) -> None:
        self._known = {}
        for name, item in self._resources.items.items():
            priority = (item.get("spec") or {}).get("priority")
            self._known[name] = (self._resources.pool(item), priority if isinstance(priority, int) else 0)
