# SPDX-License-Identifier: GPL-3.0-or-later
"""How full a pool is, by the stages of its endpoints.

Where prefill and decode are done by endpoints of their own, a request needs both, and the fuller stage is what limits
the pool; a mean over all of them would hide it. So each stage is looked at by itself, and the fullest counts.
Source: llm-d-router; stages come from the pods' label ``llm-d.ai/role``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epp.model import Endpoint
from epp.scheduling.api import SaturationDetector

ROLE_LABEL = "llm-d.ai/role"
STAGES = {"prefill": "prefill", "encode-prefill": "prefill", "decode": "decode", "encode": "encode"}
"""Stage by role; every other role, and none, does everything: ``interleaved``."""
INTERLEAVED, EFFECTIVE = "interleaved", "effective"


class Saturation:
    """Asks a detector."""

    def __init__(self, detector: SaturationDetector) -> None:
        self._detector = detector
        self._seen: Sequence[Endpoint] = ()
        self._stages: Mapping[str, Sequence[Endpoint]] = {}

    @property
    def lag(self) -> float:
        """Seconds until it shows that a request has ended."""
        return self._detector.LAG

    @property
    def detector(self) -> str:
        """The detector's name."""
        return self._detector.name

    def stale(self, endpoints: Sequence[Endpoint]) -> int:
        """How many endpoints the detector knows nothing recent of."""
        return self._detector.stale(endpoints)

    def effective(self, endpoints: Sequence[Endpoint]) -> float:
        """What counts: the saturation of the fullest stage."""
        if endpoints is not self._seen:  # a datastore hands out the same tuple until something changes
            self._seen, self._stages = endpoints, _by_stage(endpoints)
        if len(self._stages) < 2:
            return self._detector.pressure(endpoints)
        return max(self._detector.pressure(members) for members in self._stages.values())

    def by_stage(self, endpoints: Sequence[Endpoint]) -> dict[str, float]:
        """The saturation of each stage that there is, and what counts."""
        found = {stage: self._detector.pressure(members) for stage, members in _by_stage(endpoints).items()}
        return {**found, EFFECTIVE: max(found.values(), default=self._detector.pressure(endpoints))}


def _by_stage(endpoints: Sequence[Endpoint]) -> dict[str, list[Endpoint]]:
    stages: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        stages.setdefault(STAGES.get(endpoint.labels.get(ROLE_LABEL, ""), INTERLEAVED), []).append(endpoint)
    return stages
