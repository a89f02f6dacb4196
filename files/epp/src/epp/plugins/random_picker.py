# SPDX-License-Identifier: GPL-3.0-or-later
"""random-picker: takes endpoints at random, whatever their scores.

Parameters: maxNumOfEndpoints (1): how many, the others are fallbacks.
Formula: uniform, without replacement.
Source: GAIE v1.3 and llm-d-router picker of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint
from epp.scheduling.api import Context, Picker, param


@dataclass(frozen=True)
class RandomPickerParameters:
    """Parameters of random-picker."""

    max_num_of_endpoints: int = param(1, minimum=1, doc="endpoints per decision")


class RandomPicker(Picker):
    """Takes any."""

    TYPE = "random-picker"
    PARAMETERS = RandomPickerParameters

    def __init__(self, name: str, parameters: RandomPickerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._count = parameters.max_num_of_endpoints
        self._rng = context.rng

    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        """See the module."""
        return self._rng.sample(endpoints, min(self._count, len(endpoints)))
