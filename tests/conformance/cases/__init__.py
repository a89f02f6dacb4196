# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases: one module per subject, one process per configuration, every case by itself."""
