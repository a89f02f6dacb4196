# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums of scores. Compiled where it can be: with thousands of endpoints, most of a decision would pass in here.

Lists only, as long as each other: compiled code takes nothing else.
"""

from __future__ import annotations


def weighted(columns: list[list[float]], weights: list[float], count: int) -> list[float]:
    """Sums of ``count`` scores of each column, cut to 0..1, times its weight.

    NaN, which compares false with everything, is 0. Raises TypeError for what is no number.
    """
    totals = [0.0] * count
    for at in range(0, len(columns), 3):
        three, factors = columns[at : at + 3], weights[at : at + 3]
        while len(three) < 3:
            three.append(three[0])
            factors.append(0.0)
        totals = _add(totals, three[0], three[1], three[2], factors[0], factors[1], factors[2])
    return totals


def _add(
    totals: list[float],
    first: list[float],
    second: list[float],
    third: list[float],
    first_weight: float,
    second_weight: float,
    third_weight: float,
) -> list[float]:
    """Three columns at once, as many as most profiles have: each sum is then made but once."""
    sums: list[float] = []
    for total, one, two, three in zip(totals, first, second, third, strict=True):
        if one >= 1.0:
            total += first_weight
        elif one > 0.0:
            total += first_weight * one
        if two >= 1.0:
            total += second_weight
        elif two > 0.0:
            total += second_weight * two
        if three >= 1.0:
            total += third_weight
        elif three > 0.0:
            total += third_weight * three
        sums.append(total)
    return sums


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
