# SPDX-License-Identifier: GPL-3.0-or-later
"""Ratios of figures that were measured in turns, with their spread."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and the bounds of its 95 % confidence interval (bootstrap over the rounds)."""

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Width of the interval as a share of the value; the smaller, the more it says."""
        return (self.high - self.low) / self.value if self.value else float("inf")

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """``ours`` over ``theirs``: figures of the same rounds, in the same order. Raises ValueError without any."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} figures over {len(theirs)}: there must be one of each for every round")
    pairs = list(zip(ours, theirs, strict=True))
    chance = random.Random(1)
    found = sorted(_of_medians(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Ratio(_of_medians(pairs), found[int(RESAMPLES * 0.025)], found[int(RESAMPLES * 0.975)])


def _of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    below = statistics.median(theirs for _, theirs in pairs)
    return statistics.median(ours for ours, _ in pairs) / below if below > 0 else float("inf")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of them do not exceed; 0.0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def percentile_between(values: Sequence[float], percent: float, turn: int) -> tuple[float, float]:
    """The bounds of a percentile's 95 % confidence interval, from values that were measured ``turn`` at a time: what
    disturbs one of a turn disturbs its neighbours, too (bootstrap over the turns)."""
    turns = [values[at : at + turn] for at in range(0, len(values), turn)]
    chance = random.Random(1)
    found = sorted(
        percentile([value for some in chance.choices(turns, k=len(turns)) for value in some], percent)
        for _ in range(RESAMPLES)
    )
    return found[int(RESAMPLES * 0.025)], found[int(RESAMPLES * 0.975)]
