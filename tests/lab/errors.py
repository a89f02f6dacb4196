# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of this package that a person sees."""

from __future__ import annotations


class LabError(Exception):
    """What went wrong, where, and what to do about it, in a sentence that is shown without a traceback."""
