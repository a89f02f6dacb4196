# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets requests wait while the pool is full, and decides who goes next when it is not.

Off unless the feature gate ``flowControl`` is on. The core is free of I/O; ``controller`` drives it in an event loop.
"""

from __future__ import annotations
