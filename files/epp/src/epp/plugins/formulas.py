# SPDX-License-Identifier: GPL-3.0-or-later
"""Formulas that more than one plugin uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from epp.datalayer.known import Column, Counts


def fewest_first(counts: Sequence[int]) -> list[float]:
    """1 for the smallest count, 0 for the largest, linear between; 1 for all when all are equal."""
    if not counts:
        return []
    most, least = max(counts), min(counts)
    if most == least:
        return [1.0] * len(counts)
    span = most - least
    return [(most - count) / span for count in counts]


def fewest_first_column(counts: Counts) -> Column:
    """The same of an array, which has at least one count."""
    most, least = counts.max(), counts.min()
    if most == least:
        return np.ones(len(counts))
    return (most - counts) / float(most - least)
