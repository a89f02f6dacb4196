# SPDX-License-Identifier: GPL-3.0-or-later
"""Leader election with a Lease, by the rules of client-go: who holds it leads, and everyone else waits for it to lapse.

Times are as there: a lease lasts 15 s, is renewed every 2 s, and a leader that could not renew it for 10 s steps down
before anyone else can take over. A clock is never compared with another machine's: a lease lapses when it has not
changed for its duration by the watcher's own clock. At the end the lease is released, so that the next leader need not
wait. Losing it does not end this process, as it does in the reference: it competes again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from epp.datalayer.kubernetes import KubeClient, KubeError

log = logging.getLogger(__name__)

DURATION = 15
RENEW_DEADLINE = 10.0
RETRY = 2.0


@dataclass(frozen=True)
class LeaseName:
    """Which lease, and who asks for it."""

    namespace: str
    name: str
    identity: str
    """Differs between all processes that compete."""

    @property
    def collection(self) -> str:
        """Path of the namespace's leases."""
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    @property
    def path(self) -> str:
        """Path of the lease."""
        return f"{self.collection}/{self.name}"


class Election:
    """Competes for one lease."""

    def __init__(self, client: KubeClient, lease: LeaseName, on_change: Callable[[bool], None]) -> None:
        """``on_change`` is told whenever this process becomes the leader, or is it no longer."""
        self._client, self._lease, self._on_change = client, lease, on_change
        self._seen: tuple[Any, ...] = ()
        """The lease's holder and times as last read, and since when they are so (monotonic)."""
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._object: dict[str, Any] | None = None
        self.leader = False
        self.problem = ""
        """Why the lease cannot be read or written; empty when it can."""

    async def run(self) -> None:
        """Compete until cancelled; then give the lease back."""
        log.info("leader election: competing for lease %s/%s", self._lease.namespace, self._lease.name)
        try:
            while True:
                await self._round()
                await asyncio.sleep(RETRY * random.uniform(1.0, 1.2) if not self.leader else RETRY)
        finally:
            if self.leader:
                await asyncio.shield(self._release())

    async def _round(self) -> None:
        """One attempt to take or renew the lease."""
        try:
            async with asyncio.timeout(RENEW_DEADLINE / 2):
                mine = await self._try()
            self._told("")
        except (KubeError, TimeoutError) as error:
            conflict = isinstance(error, KubeError) and error.status == 409
            self._told("" if conflict else str(error) or "the API server does not answer")
            # A conflict (409) means that somebody wrote first; what stands there now is read in the next round.
            mine = self.leader and time.monotonic() - self._renewed_at < RENEW_DEADLINE
        self._set(mine)

    async def _try(self) -> bool:
        try:
            found = await self._client.get(self._lease.path)
        except KubeError as error:
            if error.status != 404:
                raise
            return await self._write("POST", self._lease.collection, None)
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = (holder, spec.get("renewTime"), spec.get("acquireTime"), spec.get("leaseDurationSeconds"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        lapsed = time.monotonic() - self._seen_at >= float(spec.get("leaseDurationSeconds") or DURATION)
        if holder and holder != self._lease.identity and not lapsed:
            return False
        return await self._write("PUT", self._lease.path, found)

    async def _write(self, method: str, path: str, found: dict[str, Any] | None) -> bool:
        """Write ourselves into the lease. The resource version makes a race fail with a conflict (409)."""
        old = (found or {}).get("spec") or {}
        now = _micro_time()
        mine = old.get("holderIdentity") == self._lease.identity
        spec = {
            **old,
            "holderIdentity": self._lease.identity,
            "leaseDurationSeconds": DURATION,
            "acquireTime": old.get("acquireTime") if mine and old.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if mine or found is None else 1),
        }
        metadata = (found or {}).get("metadata") or {"name": self._lease.name, "namespace": self._lease.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        started = time.monotonic()
        self._object = await self._client.send(method, path, body)
        self._renewed_at = started
        return True

    async def _release(self) -> None:
        """Give the lease back, so that another process need not wait until it lapses."""
        self._set(False)
        if self._object is None:
            return
        spec = {**(self._object.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1}
        spec["renewTime"] = spec["acquireTime"] = _micro_time()
        try:
            async with asyncio.timeout(2.0):
                await self._client.send("PUT", self._lease.path, {**self._object, "spec": spec})
            log.info("leader election: lease %s released", self._lease.name)
        except (KubeError, TimeoutError) as error:
            log.warning("leader election: lease %s could not be released and lapses: %s", self._lease.name, error)

    def _told(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("leader election: %s; trying again", problem)
        self.problem = problem

    def _set(self, leader: bool) -> None:
        if leader == self.leader:
            return
        self.leader = leader
        log.info("leader election: %s", "this process leads now" if leader else "this process does not lead any more")
        self._on_change(leader)


def _micro_time() -> str:
    """Now, as Kubernetes' MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
