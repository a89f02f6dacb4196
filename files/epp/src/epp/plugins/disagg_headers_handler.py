# SPDX-License-Identifier: GPL-3.0-or-later
"""disagg-headers-handler: tells the proxy beside the decoding engine who prefills and encodes. New configurations do
without: disagg-profile-handler does the same.

Parameters: prefillProfile (prefill), encodeProfile (encode): the profiles' names.
Effect: header ``x-prefiller-host-port`` has the prefilling endpoint, ``x-encoder-hosts-ports`` the encoding ones; what
clients write there is taken away.
Source: llm-d-router plugin of the same type, and llm-d-inference-scheduler 0.4's prefill-header-handler.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Decision, InferenceRequest
from epp.plugins import disaggregation
from epp.scheduling.api import Context, RequestHook, param


@dataclass(frozen=True)
class DisaggHeadersHandlerParameters:
    """Parameters of disagg-headers-handler."""

    prefill_profile: str = param(disaggregation.PREFILL, doc="name of the profile that prefills")
    encode_profile: str = param(disaggregation.ENCODE, doc="name of the profile that encodes")


class DisaggHeadersHandler(RequestHook):
    """Writes headers."""

    TYPE = "disagg-headers-handler"
    ALIASES = ("prefill-header-handler",)
    PARAMETERS = DisaggHeadersHandlerParameters

    def __init__(self, name: str, parameters: DisaggHeadersHandlerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """See the module."""
        disaggregation.set_headers(decision, self._parameters.prefill_profile, self._parameters.encode_profile)
