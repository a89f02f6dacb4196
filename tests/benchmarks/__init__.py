# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements of the real programs, and the rig that starts them."""
