# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cases are written with: a client, a picker as a process, engines, a cluster, an Envoy. See each module."""
