# SPDX-License-Identifier: GPL-3.0-or-later
"""weighted-random-picker: takes endpoints at random, in proportion to their scores.

Parameters: maxNumOfEndpoints (1): how many, the others are fallbacks.
Formula: weighted sampling without replacement (A-Res, Efraimidis and Spirakis 2006): each endpoint draws the key
U^(1/score), U uniform in (0, 1), and the largest keys win; a score of 0 draws 0. Uniform when no score is above 0.
Source: GAIE v1.3 and llm-d-router picker of the same type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from epp.model import Endpoint
from epp.scheduling.api import Context, Picker, param


@dataclass(frozen=True)
class WeightedRandomPickerParameters:
    """Parameters of weighted-random-picker."""

    max_num_of_endpoints: int = param(1, minimum=1, doc="endpoints per decision")


class WeightedRandomPicker(Picker):
    """Takes the better more often."""

    TYPE = "weighted-random-picker"
    PARAMETERS = WeightedRandomPickerParameters

    def __init__(self, name: str, parameters: WeightedRandomPickerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._count = parameters.max_num_of_endpoints
        self._rng = context.rng

    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        """See the module."""
        count = min(self._count, len(endpoints))
        if max(scores) <= 0.0:
            return self._rng.sample(endpoints, count)
        keyed = [(self._key(score), endpoint) for endpoint, score in zip(endpoints, scores, strict=True)]
        self._rng.shuffle(keyed)
        keyed.sort(key=lambda pair: pair[0], reverse=True)
        return [endpoint for _, endpoint in keyed[:count]]

    def _key(self, score: float) -> float:
        """The logarithm of U^(1/score): the same order, without underflow for small scores."""
        if score <= 0.0:
            return -math.inf
        return math.log(1.0 - self._rng.random()) / score
