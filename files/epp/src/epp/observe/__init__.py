# SPDX-License-Identifier: GPL-3.0-or-later
"""What the EPP says of itself: metrics, logs, and a small HTTP server that shows them."""

from __future__ import annotations

from epp.observe.log import setup_logging
from epp.observe.recorder import Recorder, RequestRecord
from epp.observe.server import ObserveServer

__all__ = ["ObserveServer", "Recorder", "RequestRecord", "setup_logging"]
