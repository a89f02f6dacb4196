# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums of scores. Compiled where it can be: with thousands of endpoints, most of a decision would pass in here.

Lists only, as long as each other: compiled code takes nothing else.
"""

from __future__ import annotations


def weighted(columns: list[list[float]], weights: list[float], count: int) -> list[float]:
    """Sums of ``count`` scores of each column, cut to 0..1, times its weight.

    NaN, which compares false with everything, is 0. Raises TypeError for what is no number.
    """
    totals: list[float] = []
    for at in range(count):
        total = 0.0
        for column in range(len(columns)):
            score = columns[column][at]
            weight = weights[column]
            if score >= 1.0:
                total += weight
            elif score > 0.0:
                total += weight * score
        totals.append(total)
    return totals


def highest(totals: list[float]) -> list[int]:
    """Where the highest total stands, or all of them that are equal. Raises IndexError for no totals."""
    best = totals[0]
    found: list[int] = []
    for at, total in enumerate(totals):
        if total > best:
            best = total
            found = [at]
        elif total == best:
            found.append(at)
    return found
