# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides which endpoints get a request: the plugin protocols and the cycle that runs them.

It knows no plugin by name, no wire format and no configuration file; those are handed in by whoever wires the parts.
"""

from __future__ import annotations

from epp.datalayer.prompts import PrefixMatch
from epp.model import AnswerReader, BodyError, ParsedBody, RawRequest, Usage
from epp.scheduling.api import (
    Admitter,
    AsyncProducer,
    Background,
    BodyParser,
    Context,
    Decider,
    Filter,
    HeaderProcessor,
    LatencyPrediction,
    Picker,
    Plugin,
    Producer,
    Profile,
    ProfileHandler,
    Reporter,
    RequestHook,
    Responder,
    ResponseHook,
    SaturationDetector,
    SchedulingRecorder,
    Scorer,
    Screener,
    TokenizedPrompt,
    param,
)
from epp.scheduling.builder import PluginError
from epp.scheduling.scheduler import Scheduler

__all__ = [
    "Admitter",
    "AnswerReader",
    "AsyncProducer",
    "Background",
    "BodyError",
    "BodyParser",
    "Context",
    "Decider",
    "Filter",
    "HeaderProcessor",
    "LatencyPrediction",
    "ParsedBody",
    "Picker",
    "Plugin",
    "PluginError",
    "PrefixMatch",
    "Producer",
    "Profile",
    "ProfileHandler",
    "RawRequest",
    "Reporter",
    "RequestHook",
    "Responder",
    "ResponseHook",
    "SaturationDetector",
    "Scheduler",
    "SchedulingRecorder",
    "Scorer",
    "Screener",
    "TokenizedPrompt",
    "Usage",
    "param",
]
