# SPDX-License-Identifier: GPL-3.0-or-later
"""pd-profile-handler: disaggregated prefill and decode, in its older form. New configurations use
disagg-profile-handler.

Parameters:
    decodeProfile (decode), prefillProfile (prefill): the profiles' names.
    deciderPluginName (the first prefix-based-pd-decider, if there is one): says when to prefill elsewhere.
    threshold (0), hashBlockSize: without a decider, prefill elsewhere when at least so many bytes of the prompt are not
    in the decoding endpoint's prefix cache; the block size is the prefix producer's.
    primaryPort (0): as data-parallel-profile-handler's.
    prefixMatchInfoProducerName, prefixPluginType, prefixPluginName: taken and not needed.
Effect: none on headers but primaryPort's: disagg-headers-handler (prefill-header-handler) sets those.
Source: llm-d-inference-scheduler 0.4 (threshold) and llm-d-router (decider) profile handlers of the same type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.datalayer.prompts import BYTES_PER_TOKEN
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins import disaggregation
from epp.plugins.prefix_based_pd_decider import PrefixBasedPDDecider
from epp.plugins.prefixes import uncached_tokens
from epp.scheduling.api import Context, Decider, Producer, Profile, ProfileHandler, param


@dataclass(frozen=True)
class PdProfileHandlerParameters:
    """Parameters of pd-profile-handler."""

    decode_profile: str = param(disaggregation.DECODE, doc="name of the profile that decodes")
    prefill_profile: str = param(disaggregation.PREFILL, doc="name of the profile that prefills")
    decider_plugin_name: str = param("", plugin=Decider, doc="says when to prefill elsewhere")
    threshold: int = param(0, minimum=0, doc="without a decider: uncached bytes from which on to prefill elsewhere")
    hash_block_size: int = param(5, minimum=1, doc="not needed: the prefix producer has its own")
    primary_port: int = param(0, minimum=0, maximum=65535, doc="port of the proxy that finds the rank; 0 for none")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="not needed: every producer's word counts")
    prefix_plugin_type: str = param("", doc="ignored")
    prefix_plugin_name: str = param("", doc="ignored")


class PdProfileHandler(ProfileHandler):
    """Decode, then perhaps prefill."""

    TYPE = "pd-profile-handler"
    PARAMETERS = PdProfileHandlerParameters

    def __init__(self, name: str, parameters: PdProfileHandlerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._recorder = context.recorder
        wanted = parameters.decider_plugin_name
        plugin = context.plugin(wanted) if wanted else context.first(PrefixBasedPDDecider)
        self._decider = plugin if isinstance(plugin, Decider) else None

    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        """Decode first; then prefill, if it is worth it."""
        names = self._parameters
        wanted = names.decode_profile
        if wanted in results:
            decoding = results[wanted]
            if not decoding or names.prefill_profile in results or not self._disaggregate(request, decoding[0]):
                return ()
            request.attributes[disaggregation.PEER] = decoding[0]
            wanted = names.prefill_profile
        return [profile for profile in profiles if profile.name == wanted]

    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        """The one that decodes."""
        return self._parameters.decode_profile

    def process_results(self, request: InferenceRequest, decision: Decision) -> None:
        """Who has how much to do, and through which port."""
        disaggregation.charge(request, decision, self._parameters.prefill_profile, "")
        used = disaggregation.stages(decision, self._parameters.prefill_profile, "")
        self._recorder.disaggregated(self.TYPE, self.name, request.target_model or request.model, used)
        if self._parameters.primary_port:
            disaggregation.through_port(decision, self._parameters.primary_port)

    def _disaggregate(self, request: InferenceRequest, endpoint: Endpoint) -> bool:
        if self._decider is not None:
            return self._decider.disaggregate(request, endpoint)
        return uncached_tokens(request, [endpoint])[0] * BYTES_PER_TOKEN >= self._parameters.threshold
