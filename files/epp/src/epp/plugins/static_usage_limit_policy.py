# SPDX-License-Identifier: GPL-3.0-or-later
"""static-usage-limit-policy: every band may dispatch up to the same saturation. The default.

Parameters: threshold (1.0).
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epp.flowcontrol.api import UsageLimitPolicy
from epp.scheduling.api import Context, param


@dataclass(frozen=True)
class StaticUsageLimitPolicyParameters:
    """Parameters of static-usage-limit-policy."""

    threshold: float = param(1.0, above=0, doc="the saturation at which all bands wait")


class StaticUsageLimitPolicy(UsageLimitPolicy):
    """One ceiling for all."""

    TYPE = "static-usage-limit-policy"
    PARAMETERS = StaticUsageLimitPolicyParameters

    def __init__(self, name: str, parameters: StaticUsageLimitPolicyParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._threshold = parameters.threshold

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """See the module."""
        return [self._threshold] * len(priorities)
