# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints of an InferencePool, by watching the pool and the pods that it selects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epp.datalayer.kubernetes import KubeClient, Reflector
from epp.datalayer.pods import PodTable
from epp.datalayer.store import Datastore

log = logging.getLogger(__name__)

VERSIONS = {"inference.networking.k8s.io": "v1", "inference.networking.x-k8s.io": "v1alpha2"}
"""API groups of InferencePool, and the version that is read of each."""


@dataclass(frozen=True)
class PoolSpec:
    """What a pool says of its endpoints."""

    selector: str
    """Label selector of its pods, in the API server's syntax."""
    ports: tuple[int, ...]


def pool_spec(item: Mapping[str, Any]) -> PoolSpec:
    """From an InferencePool of either group. Raises ValueError for one that says nothing usable."""
    spec = item.get("spec") or {}
    selector = spec.get("selector") or {}
    labels = selector.get("matchLabels") if isinstance(selector.get("matchLabels"), dict) else selector
    if not labels:
        raise ValueError("it has no selector")
    ports = [entry.get("number") for entry in spec.get("targetPorts") or []] or [spec.get("targetPortNumber")]
    if not all(isinstance(port, int) and 0 < port < 65536 for port in ports):
        raise ValueError("it has no target port")
    text = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return PoolSpec(text, tuple(ports))


class PoolWatcher:
    """Keeps a datastore equal to the ready pods of one InferencePool, times its target ports."""

    def __init__(self, datastore: Datastore, client: KubeClient, namespace: str, name: str, group: str) -> None:
        """``group`` is the pool's API group: ``inference.networking.k8s.io`` (v1) or ``inference.networking.x-k8s.io``.

        Raises ValueError for another group.
        """
        if group not in VERSIONS:
            raise ValueError(f"{group!r} is not a group of InferencePool; use {' or '.join(VERSIONS)}")
        self._datastore, self._client = datastore, client
        self._namespace, self._name = namespace, name
        self._pods = PodTable()
        self._spec: PoolSpec | None = None
        self._invalid = ""
        self._follower: asyncio.Task[None] | None = None
        self._pod_reflector: Reflector | None = None
        path = f"/apis/{group}/{VERSIONS[group]}/namespaces/{namespace}/inferencepools"
        params = {"fieldSelector": f"metadata.name={name}"}
        self._pool_reflector = Reflector(client, path, params, self._pool_listed, self._pool_changed)

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            await self._pool_reflector.run()
        finally:
            self._unfollow()

    def problem(self) -> str:
        """What is wrong now (no API server, no such pool, ...); empty when all is well."""
        reflector = self._pool_reflector
        if reflector.status == 404:
            return f"the API server has no InferencePool CRD of this group ({reflector.problem}); install it"
        pods = self._pod_reflector.problem if self._pod_reflector is not None else ""
        return reflector.problem or self._invalid or pods

    def _pool_listed(self, items: list[dict[str, Any]]) -> None:
        if not items:
            self._gone()
        for item in items:
            self._pool_changed("ADDED", item)

    def _pool_changed(self, kind: str, item: dict[str, Any]) -> None:
        if (item.get("metadata") or {}).get("name") != self._name:
            return
        if kind == "DELETED":
            self._gone()
            return
        try:
            spec = pool_spec(item)
        except ValueError as error:
            self._invalid = f"InferencePool {self._namespace}/{self._name} cannot be used: {error}"
            log.error("%s; the endpoints stay as they are", self._invalid)
            return
        self._invalid = ""
        old, self._spec = self._spec, spec
        if old is None or old.selector != spec.selector or self._follower is None:
            self._follow(spec.selector)
        elif old.ports != spec.ports:
            self._publish()

    def _gone(self) -> None:
        """There is no such pool: no endpoints, and not synced, so that the gateway looks elsewhere."""
        self._unfollow()
        self._spec = None
        self._invalid = (
            f"InferencePool {self._namespace}/{self._name} does not exist; create it, or correct --pool-name"
        )
        log.warning("%s", self._invalid)
        self._pods = PodTable()
        self._datastore.replace(())
        self._datastore.synced = False

    def _follow(self, selector: str) -> None:
        self._unfollow()
        self._pods = PodTable()
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        params = {"labelSelector": selector}
        self._pod_reflector = Reflector(self._client, path, params, self._pods_listed, self._pod_changed)
        self._follower = asyncio.get_running_loop().create_task(self._pod_reflector.run(), name="watch pods")
        log.info("pool %s/%s: following pods with %s", self._namespace, self._name, selector)

    def _unfollow(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
        self._follower = self._pod_reflector = None

    def _pods_listed(self, items: list[dict[str, Any]]) -> None:
        self._pods.replace(items)
        self._publish()

    def _pod_changed(self, kind: str, item: dict[str, Any]) -> None:
        if self._pods.apply(kind, item):
            self._publish()

    def _publish(self) -> None:
        if self._spec is not None:
            self._datastore.replace(self._pods.endpoints(self._spec.ports))
