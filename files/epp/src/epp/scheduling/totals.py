# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums of scores. Compiled where it can be: with thousands of endpoints, most of a decision would pass in here.

Lists only, as long as each other: compiled code takes nothing else.
"""

from __future__ import annotations


def add(totals: list[float], scores: list[float], weight: float) -> list[float]:
    """Totals with these scores, cut to 0..1, times their weight. NaN, which compares false with everything, is 0."""
    return [
        total + (weight if score >= 1.0 else weight * score if score > 0.0 else 0.0)
        for total, score in zip(totals, scores)  # noqa: B905 - slower
    ]


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
