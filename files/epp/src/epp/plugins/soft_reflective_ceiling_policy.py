# SPDX-License-Identifier: GPL-3.0-or-later
"""soft-reflective-ceiling-policy: as the pool fills up, lower bands dispatch ever more seldom. No parameters.

Formula: the i-th of N bands, counted from 0, highest priority first, has the reflective ceiling 1 - i * saturation /
(N - 1). Below it the band is open. Above it, it is open once in round(saturation / (1 - saturation)) questions, and
closed at saturation 1. The first band is open below saturation 1.
Source: llm-d-router policy of the same type. Flow control asks before each dispatch, and regularly while some wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from epp.flowcontrol.api import UsageLimitPolicy

OPEN, CLOSED = 1.0, 0.0


class SoftReflectiveCeilingPolicy(UsageLimitPolicy):
    """Ever more seldom."""

    TYPE = "soft-reflective-ceiling-policy"

    _asked: tuple[int, ...] = ()
    """How often each band has been found above its ceiling."""

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """See the module."""
        count = len(priorities)
        asked = list(self._asked[:count]) + [0] * (count - len(self._asked))
        result = [OPEN] * count
        for index in range(1, count):
            if saturation < 1.0 - index * saturation / (count - 1):
                continue
            result[index] = CLOSED
            if saturation < 1.0:
                asked[index] += 1
                period = max(1, round(saturation / (1.0 - saturation)))
                result[index] = OPEN if asked[index] % period == 0 else CLOSED
        self._asked = tuple(asked)
        return result
