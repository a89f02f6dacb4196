# SPDX-License-Identifier: GPL-3.0-or-later
"""data-parallel-profile-handler: a rank is chosen, and the request goes to a proxy in its pod that passes it on.

Parameters: primaryPort (8000): the proxy's port.
Formula: the only profile chooses among the ranks (ports) of the pods; the destination is the chosen pod's primary port.
Effect: header ``x-data-parallel-host-port`` has the rank.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) profile handler of the same type. The in-flight count has the
request at its rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Decision, InferenceRequest
from epp.plugins import disaggregation
from epp.plugins.single_profile_handler import SingleProfileHandler
from epp.scheduling.api import Context, param


@dataclass(frozen=True)
class DataParallelProfileHandlerParameters:
    """Parameters of data-parallel-profile-handler."""

    primary_port: int = param(8000, minimum=1, maximum=65535, doc="port of the proxy that finds the rank")


class DataParallelProfileHandler(SingleProfileHandler):
    """One profile, and a detour."""

    TYPE = "data-parallel-profile-handler"
    PARAMETERS = DataParallelProfileHandlerParameters

    def __init__(self, name: str, parameters: DataParallelProfileHandlerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._port = parameters.primary_port

    def process_results(self, request: InferenceRequest, decision: Decision) -> None:
        """See the module."""
        disaggregation.through_port(decision, self._port)
