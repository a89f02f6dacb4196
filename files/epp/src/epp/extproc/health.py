# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this EPP should get traffic, by the names that gateways and probes ask for."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class ServingStatus(IntEnum):
    """Answers of ``grpc.health.v1``, by their numbers."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


LIVENESS = "liveness"
SERVICES = ("", "readiness", LIVENESS, "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension")
"""Names that are listed. As in the reference without leader election, any other name is answered like readiness."""


class Health:
    """Ready once the pool is known, until the drain begins; alive all the time."""

    def __init__(self, synced: Callable[[], bool]) -> None:
        """``synced`` says whether the endpoints of the pool have been read at least once."""
        self._synced = synced
        self.draining = False

    def problem(self) -> str:
        """Why there should be no traffic; empty when there should."""
        if self.draining:
            return "shutting down"
        return "" if self._synced() else "the pool's endpoints are not known yet"

    def status(self, service: str) -> ServingStatus:
        """The status of one service name."""
        if service == LIVENESS or not self.problem():
            return ServingStatus.SERVING
        return ServingStatus.NOT_SERVING
