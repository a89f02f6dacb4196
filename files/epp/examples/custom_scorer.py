# SPDX-License-Identifier: GPL-3.0-or-later
"""custom-scorer, an example of a plugin of one's own: prefers queues shorter than custom-threshold."""

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling import Scorer, param


@dataclass(frozen=True)
class Parameters:
    custom_threshold: int = param(64, key="custom-threshold", minimum=1, doc="waiting requests")


class CustomScorer(Scorer):
    TYPE = "custom-scorer"
    PARAMETERS = Parameters

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """One score per endpoint, 0 (worst) to 1 (best)."""
        return [1.0 if each.metrics.waiting < self.parameters.custom_threshold else 0.0 for each in endpoints]
