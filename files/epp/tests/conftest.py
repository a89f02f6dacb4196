# SPDX-License-Identifier: GPL-3.0-or-later
"""For all tests: a property may take its time on a machine that is busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
