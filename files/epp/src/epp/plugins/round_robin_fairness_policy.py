# SPDX-License-Identifier: GPL-3.0-or-later
"""round-robin-fairness-policy: the flows of a band take turns, one request each. No parameters.

A flow with n others that wait goes at least once in n + 1 dispatches of the band, however much the others send.
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

from collections import OrderedDict

from epp.flowcontrol.api import FairnessPolicy, Selector
from epp.flowcontrol.queue import Flow


class RoundRobinFairnessPolicy(FairnessPolicy):
    """One each."""

    TYPE = "round-robin-fairness-policy"

    def selector(self) -> Selector:
        """See the module."""
        return _Ring()


class _Ring(Selector):
    """The flows that wait; whoever has had a turn, or comes, stands at the end."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Flow, None] = OrderedDict()

    def changed(self, flow: Flow) -> None:
        if flow.head is None:
            self._waiting.pop(flow, None)
        else:
            self._waiting.setdefault(flow)

    def pick(self, now: float) -> Flow | None:
        flow = next(iter(self._waiting), None)
        if flow is not None:
            self._waiting.move_to_end(flow)
        return flow
