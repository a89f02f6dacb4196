# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows a namespaced custom resource that the cluster may or may not have, in one of several API groups.

The first of the groups that has the resource counts, and the others are not looked at, as in the reference. Unlike
there it is looked for again and again, so that a definition which comes or goes later is noticed without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from epp.datalayer.kubernetes import KubeClient, KubeError, Reflector

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

LOOK_AGAIN = 30.0
"""Seconds between two questions which groups have the resource."""
GONE_AFTER = 1.0
"""Seconds until it is noticed that the definition in use is gone, which is a reason to ask at once."""
POOL_GROUPS = ("", "inference.networking.k8s.io", "inference.networking.x-k8s.io")
"""Groups of the pools that such resources may refer to; none is the first one."""


class Resource:
    """All objects of one resource in one namespace, by name."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        groups: Sequence[str],
        changed: Callable[[Mapping[str, Object]], None],
    ) -> None:
        """``name`` is the resource's, in the plural; ``groups`` are API groups with their versions (``llm-d.ai/v1``).
        ``changed`` is told all objects whenever one is another than before."""
        self._client, self._namespace = client, namespace
        self._name, self._groups, self._told = name, groups, changed
        self._objects: dict[str, Object] = {}
        self._reflector: Reflector | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        following: asyncio.Task[None] | None = None
        group: str | None = None
        try:
            while True:
                found = await self._group(group)
                if found != group:
                    await _end(following)
                    group = found
                    following = asyncio.create_task(self._follow(group)) if group is not None else None
                await self._rest()
        finally:
            await _end(following)

    async def _rest(self) -> None:
        """Wait until it is time to look for the group again."""
        end = time.monotonic() + LOOK_AGAIN
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, GONE_AFTER))
            if self._reflector is not None and self._reflector.status == 404:
                return

    async def _follow(self, group: str) -> None:
        log.info("%s come from %s", self._name, group)
        path = f"/apis/{group}/namespaces/{self._namespace}/{self._name}"
        self._reflector = Reflector(self._client, path, {}, self._listed, self._changed)
        try:
            await self._reflector.run()
        finally:
            self._reflector = None
            self._listed([])

    async def _group(self, current: str | None) -> str | None:
        """The group to follow; the one in use if that cannot be found out now."""
        for group in self._groups:
            try:
                found = await self._client.get(f"/apis/{group}")
            except KubeError as error:
                if error.status != 404:
                    return current
                continue
            if any(each.get("name") == self._name for each in found.get("resources") or []):
                return group
        return None

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self._objects = {name_of(item): item for item in items}
        self._told(self._objects)

    def _changed(self, kind: str, item: dict[str, Any]) -> None:
        if kind == "DELETED":
            self._objects.pop(name_of(item), None)
        else:
            self._objects[name_of(item)] = item
        self._told(self._objects)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def name_of(item: Object) -> str:
    """The object's name."""
    return str((item.get("metadata") or {}).get("name", ""))


def age_of(item: Object) -> tuple[str, str]:
    """What puts objects into the order in which they were created; those of one second by their names."""
    return (str((item.get("metadata") or {}).get("creationTimestamp") or ""), name_of(item))


def spec_of(item: Object) -> Object:
    """The object's spec; nothing for one that is not a map."""
    spec = item.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def pool_of(item: Object) -> str:
    """The name of the pool that the object refers to; empty for none, or for something that is no pool."""
    reference = spec_of(item).get("poolRef")
    if not isinstance(reference, Mapping) or str(reference.get("group") or "") not in POOL_GROUPS:
        return ""
    return str(reference.get("name") or "") if reference.get("kind", "InferencePool") == "InferencePool" else ""
