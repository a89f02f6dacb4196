# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the attributes in the documentation of modules mean."""

from __future__ import annotations


class ModuleDocFragment:
    """Each module adds how far it supports them, and what is particular about that."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in C(check_mode), and then changes nothing but returns what would change.
  diff_mode:
    description: Returns in C(diff) mode what changes, or in C(check_mode) what would change.
  platform:
    description: Target operating systems of the host that the module runs on, usually the controller.
    platforms: posix
    support: full
"""

    # For modules with an action plugin of the same name.
    ACTION = r"""
attributes:
  action:
    description: A part of the work is done by an action plugin on the controller.
    support: full
  async:
    description: Can be used with the C(async) keyword.
    support: full
"""
