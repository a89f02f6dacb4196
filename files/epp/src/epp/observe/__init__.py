# SPDX-License-Identifier: GPL-3.0-or-later
"""What the EPP says of itself: metrics, logs, and a small HTTP server that shows them."""

from __future__ import annotations

from epp.observe.access import AccessGuard
from epp.observe.decisions import DecisionLog
from epp.observe.flow import FlowRecorder, FlowView, Use
from epp.observe.insight import Insight
from epp.observe.log import LogOptions, setup_logging
from epp.observe.recorder import PoolRecorder, PoolView, Recorder, RequestRecord
from epp.observe.server import MetricsTls, ObserveOptions, ObserveServer, Page

__all__ = [
    "AccessGuard",
    "DecisionLog",
    "FlowRecorder",
    "FlowView",
    "Insight",
    "LogOptions",
    "MetricsTls",
    "ObserveOptions",
    "ObserveServer",
    "Page",
    "PoolRecorder",
    "PoolView",
    "Recorder",
    "RequestRecord",
    "Use",
    "setup_logging",
]
