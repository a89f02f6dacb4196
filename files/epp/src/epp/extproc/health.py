# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this EPP should get traffic, by the names that gateways and probes ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum


class ServingStatus(IntEnum):
    """Answers of ``grpc.health.v1``, by their numbers."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


LIVENESS = "liveness"
SERVICES = ("", "readiness", LIVENESS, "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension")
"""Names that are listed; behind them come the names of the pools, if there are several."""


class Health:
    """Ready once the pool is known, and while this process leads, until the drain begins; alive all the time.

    Without leader election any name that is not known is answered like readiness, with it SERVICE_UNKNOWN: both as in
    the reference. Of several pools, one that is known is enough to be ready; each has its own status by its name.
    """

    def __init__(self, synced: Mapping[str, Callable[[], bool]], elects: bool = False) -> None:
        """``synced`` says per pool whether its endpoints have been read; ``elects``: only a leader gets traffic."""
        self._synced = dict(synced)
        self._elects = elects
        self.leader = not elects
        self.draining = False

    def services(self) -> tuple[str, ...]:
        """The names that are listed."""
        return (*SERVICES, *(self._synced if len(self._synced) > 1 else ()))

    def problem(self) -> str:
        """Why there should be no traffic; empty when there should."""
        if self.draining:
            return "shutting down"
        if not any(synced() for synced in self._synced.values()):
            return "the pool's endpoints are not known yet"
        return "" if self.leader else "another process is the leader"

    def unknown_pools(self) -> list[str]:
        """The pools whose endpoints are not known."""
        return [name for name, synced in self._synced.items() if not synced()]

    def status(self, service: str) -> ServingStatus:
        """The status of one service name."""
        if service == LIVENESS:
            return ServingStatus.SERVING
        problem = self.problem()
        if service in SERVICES:
            return ServingStatus.NOT_SERVING if problem else ServingStatus.SERVING
        if len(self._synced) > 1 and service in self._synced:
            ready = not problem and self._synced[service]()
            return ServingStatus.SERVING if ready else ServingStatus.NOT_SERVING
        if self._elects:
            return ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.NOT_SERVING if problem else ServingStatus.SERVING
