# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums of scores that come in arrays, as those of a large pool do. ``totals`` is the same for lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from epp.datalayer.known import Column


def rated(scores: Column, count: int) -> Column:
    """The scores of ``count`` endpoints. Raises ValueError where they are of others, TypeError for what are none."""
    column = np.asarray(scores, np.float64)
    if column.shape != (count,):
        raise ValueError(f"scores of shape {column.shape} for {count} endpoints")
    return column


def added(columns: Sequence[tuple[Column, float]], others: Sequence[float] | Column) -> Column:
    """Sums of the columns, cut to 0..1, times their weights, and of ``others``. NaN is 0."""
    total = np.array(others, np.float64)
    for column, weight in columns:
        # The extremes of NaN and a number are the number.
        total += np.fmin(np.fmax(column, 0.0), 1.0) * weight
    return total


def best(totals: Column) -> list[int]:
    """Where the highest total stands, or all of them that are equal."""
    found: list[int] = np.flatnonzero(totals == totals.max()).tolist()
    return found
