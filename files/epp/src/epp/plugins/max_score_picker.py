# SPDX-License-Identifier: GPL-3.0-or-later
"""max-score-picker: takes the endpoints with the highest scores.

Parameters: maxNumOfEndpoints (1): how many, the others are fallbacks.
Formula: sort by score, highest first; the order of equal scores is random. That requests which arrive together do not
meet on one endpoint is the scorers' part: between two readings they add what was sent since.
Source: GAIE v1.3 and llm-d-router picker of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer.known import Column
from epp.model import Endpoint
from epp.scheduling.api import Context, Picker, param
from epp.scheduling.sums import best
from epp.scheduling.totals import highest


@dataclass(frozen=True)
class MaxScorePickerParameters:
    """Parameters of max-score-picker."""

    max_num_of_endpoints: int = param(1, minimum=1, doc="endpoints per decision")


class MaxScorePicker(Picker):
    """Takes the best."""

    TYPE = "max-score-picker"
    PARAMETERS = MaxScorePickerParameters

    def __init__(self, name: str, parameters: MaxScorePickerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._count = parameters.max_num_of_endpoints
        self._rng = context.rng

    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        """See the module."""
        if self._count == 1:
            return self._one_of(endpoints, highest(scores))
        rated = list(zip(endpoints, scores, strict=True))
        self._rng.shuffle(rated)
        rated.sort(key=lambda pair: -pair[1])
        return [endpoint for endpoint, _ in rated[: self._count]]

    def pick_of_column(self, endpoints: list[Endpoint], scores: Column) -> list[Endpoint]:
        """See the module."""
        return self._one_of(endpoints, best(scores)) if self._count == 1 else self.pick(endpoints, scores.tolist())

    def _one_of(self, endpoints: list[Endpoint], ties: list[int]) -> list[Endpoint]:
        return [endpoints[ties[0] if len(ties) == 1 else self._rng.choice(ties)]]
