# SPDX-License-Identifier: GPL-3.0-or-later
"""Custom resources that say something of a pool, which their ``poolRef`` names.

Of the two API groups the newer one counts if the cluster has it, and then the older one is not looked at, as in the
reference. A cluster without either is asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from epp.datalayer.kubernetes import KubeClient, KubeError, Reflector

log = logging.getLogger(__name__)

GROUPS = ("llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2")
LOOK_AGAIN = 30.0
"""Seconds between two questions for a resource, while there is none."""

Item = Mapping[str, Any]


class Resources:
    """The objects of one resource by their names, in the namespace of the pools, kept up to date."""

    def __init__(
        self, client: KubeClient, namespace: str, resource: str, pool_group: str, changed: Callable[[], None]
    ) -> None:
        """``pool_group`` is the API group of the pools; ``changed`` is called after each change."""
        self._client, self._namespace, self._resource = client, namespace, resource
        self._pool_group, self._tell = pool_group, changed
        self.items: dict[str, Item] = {}

    def pool(self, item: Item) -> str:
        """The pool that an object belongs to; empty for one that names a pool of another API group."""
        reference = (item.get("spec") or {}).get("poolRef") or {}
        group = reference.get("group")
        return "" if group and group != self._pool_group else str(reference.get("name", ""))

    async def run(self) -> None:
        """Watch until cancelled."""
        while (group := await self._group()) is None:
            await asyncio.sleep(LOOK_AGAIN)
        log.info("%s are those of %s", self._resource, group)
        path = f"/apis/{group}/namespaces/{self._namespace}/{self._resource}"
        await Reflector(self._client, path, {}, self._listed, self._changed).run()

    async def _group(self) -> str | None:
        for group in GROUPS:
            try:
                found = await self._client.get(f"/apis/{group}")
            except KubeError:
                continue  # no such group, or no API server: asked again
            if any(each.get("name") == self._resource for each in found.get("resources") or []):
                return group
        return None

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self.items = {_name(item): item for item in items}
        self._tell()

    def _changed(self, kind: str, item: Item) -> None:
        if kind == "DELETED":
            self.items.pop(_name(item), None)
        else:
            self.items[_name(item)] = item
        self._tell()


def _name(item: Item) -> str:
    return str((item.get("metadata") or {}).get("name", ""))
