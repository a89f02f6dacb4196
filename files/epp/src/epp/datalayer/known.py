# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of many endpoints in arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from epp.model import Endpoint

type Column = NDArray[np.float64]
"""A figure of each endpoint, in the endpoints' order."""
type Counts = NDArray[np.int64]
"""The same in whole numbers."""


class Known(list[Endpoint]):
    """Endpoints whose load somebody keeps at hand. What it hands out is not to be written to."""

    def waiting(self) -> Counts:
        """:func:`waiting` of each."""
        raise NotImplementedError

    def kv_free(self) -> Column:
        """What :func:`kv_usage` leaves of each."""
        raise NotImplementedError

    def spread(self, values: Mapping[Endpoint, float]) -> Column:
        """The value of each, 0 for those that have none."""
        raise NotImplementedError
