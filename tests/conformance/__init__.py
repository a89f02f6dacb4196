# SPDX-License-Identifier: GPL-3.0-or-later
"""A black-box conformance kit for endpoint pickers: what any of them must do, seen from outside. See README.md."""
