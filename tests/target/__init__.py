# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cluster a command of the Makefile works on, and what it takes to have one there.

It knows the playbooks only by their names, and nothing of what they install.
"""
