# SPDX-License-Identifier: GPL-3.0-or-later
"""priority-holdback-policy: the lower its priority, the earlier a band waits.

Parameters: shape (linear), domain (rank, value or explicit; rank), minCeiling (required unless domain is explicit),
maxCeiling (1.0), ceilings (priority to ceiling; for domain explicit only, and required there).
Formula: the highest priority has the ceiling maxCeiling, the lowest minCeiling, and between them
rank:  maxCeiling - i * (maxCeiling - minCeiling) / (N - 1) for the i-th of N priorities, counted from 0, highest first;
value: minCeiling + (maxCeiling - minCeiling) * (priority - lowest) / (highest - lowest).
A single band has maxCeiling. explicit: the ceiling that is given for the priority, 0 (it waits) when none is given.
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from epp.flowcontrol.api import UsageLimitPolicy
from epp.scheduling.api import Context, param

RANK, VALUE, EXPLICIT = "rank", "value", "explicit"


@dataclass(frozen=True)
class PriorityHoldbackPolicyParameters:
    """Parameters of priority-holdback-policy."""

    shape: str | None = param(None, choices=("linear",), doc="the curve between the ceilings")
    domain: str = param(RANK, choices=(RANK, VALUE, EXPLICIT), doc="what of a priority counts: rank, value, or itself")
    min_ceiling: float | None = param(None, minimum=0, maximum=1, doc="ceiling of the lowest priority")
    max_ceiling: float | None = param(None, above=0, maximum=1, doc="ceiling of the highest priority (1.0)")
    ceilings: dict[str, float] | None = param(None, doc="ceiling of each priority, for domain explicit")

    def __post_init__(self) -> None:
        """What belongs together."""
        if self.domain == EXPLICIT:
            self._check_explicit()
        elif self.ceilings is not None:
            raise ValueError(f"ceilings are for domain {EXPLICIT} only; remove them, or change the domain")
        elif self.min_ceiling is None:
            raise ValueError("minCeiling is missing; say how full the pool may be for the lowest priority, like 0.5")
        elif self.min_ceiling >= (self.max_ceiling or 1.0):
            raise ValueError(f"minCeiling {self.min_ceiling:g} must be below maxCeiling {self.max_ceiling or 1.0:g}")

    def _check_explicit(self) -> None:
        if self.shape is not None or self.min_ceiling is not None or self.max_ceiling is not None:
            raise ValueError("shape, minCeiling and maxCeiling have no meaning with domain explicit; remove them")
        if not self.ceilings:
            raise ValueError("ceilings are missing; write the ceiling of each priority below it, like 10: 0.9")
        by_priority = sorted(self.explicit().items(), reverse=True)
        for (higher, above), (lower, below) in itertools.pairwise(by_priority):
            if below > above:
                raise ValueError(f"priority {lower} has a higher ceiling than {higher}; more urgent ones need more")

    def explicit(self) -> dict[int, float]:
        """The given ceilings by priority. Raises ValueError."""
        found = {}
        for text, ceiling in (self.ceilings or {}).items():
            try:
                priority = int(text)
            except ValueError:
                raise ValueError(f"ceilings: {text!r} is not a priority; write whole numbers") from None
            if not 0 <= ceiling <= 1:
                raise ValueError(f"ceilings: {ceiling:g} for priority {priority} must lie between 0 and 1")
            found[priority] = ceiling
        return found


class PriorityHoldbackPolicy(UsageLimitPolicy):
    """The top of the pool is kept for the urgent."""

    TYPE = "priority-holdback-policy"
    PARAMETERS = PriorityHoldbackPolicyParameters

    def __init__(self, name: str, parameters: PriorityHoldbackPolicyParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._domain = parameters.domain
        self._most = 1.0 if parameters.max_ceiling is None else parameters.max_ceiling
        self._least = parameters.min_ceiling or 0.0
        self._explicit = parameters.explicit()

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """See the module."""
        if self._domain == EXPLICIT:
            return [self._explicit.get(priority, 0.0) for priority in priorities]
        if len(priorities) < 2:
            return [self._most] * len(priorities)
        width = self._most - self._least
        if self._domain == RANK:
            return [self._most - index * width / (len(priorities) - 1) for index in range(len(priorities))]
        lowest, span = priorities[-1], priorities[0] - priorities[-1]
        return [self._least + width * (priority - lowest) / span for priority in priorities]
