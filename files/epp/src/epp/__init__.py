# SPDX-License-Identifier: GPL-3.0-or-later
"""An endpoint picker (EPP) for Envoy: sends each inference request to the pod that will answer it soonest."""

__version__ = "0.1.0"
