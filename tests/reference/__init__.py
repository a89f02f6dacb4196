# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of docs/ that are made from data, so that what they say can be tested."""
