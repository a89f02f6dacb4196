# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the same in the documentation of all modules that only read from the cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """To stand before C(inferops.cluster.attributes), which says what the attributes mean."""

    DOCUMENTATION = r"""
requirements:
  - python >= 3.10
  - PyYAML >= 5.1
attributes:
  check_mode:
    details: Reads in check mode as well.
    support: full
  diff_mode:
    details: Nothing changes.
    support: none
"""
