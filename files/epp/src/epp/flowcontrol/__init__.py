# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets requests wait while the pool is full, and decides who goes next when it is not.

Off unless the feature gate ``flowControl`` is on. ``core`` and ``eviction`` decide, free of clocks and I/O;
``controller`` drives them in an event loop. What they ask (fairness, ordering, ceilings) are plugins: see ``api``.
"""

from __future__ import annotations

from epp.flowcontrol.build import options
from epp.flowcontrol.controller import FlowController
from epp.flowcontrol.saturation import Saturation

__all__ = ["FlowController", "Saturation", "options"]
