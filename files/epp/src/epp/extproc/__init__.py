# SPDX-License-Identifier: GPL-3.0-or-later
"""Envoy's external processing protocol: one state machine per stream, the way of a request through it, and health.

No I/O happens here. A transport brings messages in and takes messages out; plugins are known to the scheduler only.
"""

from __future__ import annotations

from epp.extproc.answers import AnsweringRouter
from epp.extproc.director import Director, DirectorOptions
from epp.extproc.exchange import Exchange, StreamService
from epp.extproc.health import Health
from epp.extproc.machine import NeedDecision, ProtocolError, Route, StreamMachine
from epp.extproc.pools import PoolRouter
from epp.extproc.tracing import Tracing
from epp.extproc.watchdog import Watchdog

__all__ = [
    "AnsweringRouter",
    "Director",
    "DirectorOptions",
    "Exchange",
    "Health",
    "NeedDecision",
    "PoolRouter",
    "ProtocolError",
    "Route",
    "StreamMachine",
    "StreamService",
    "Tracing",
    "Watchdog",
]
