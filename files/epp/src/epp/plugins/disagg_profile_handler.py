# SPDX-License-Identifier: GPL-3.0-or-later
"""disagg-profile-handler: one endpoint decodes, and others may encode and prefill for it.

Parameters:
    profiles: decode (decode), prefill (prefill), encode (encode): the profiles' names.
    deciders: prefill, encode: names of deciders; a stage without one never runs.
Formula: decode is scheduled first, and its endpoint answers; then, where their deciders say so, encode and prefill.
Effect: header ``x-prefiller-host-port`` has the prefilling endpoint, ``x-encoder-hosts-ports`` the encoding ones.
Source: llm-d-router profile handler of the same type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins import disaggregation
from epp.scheduling.api import Context, Decider, Profile, ProfileHandler, param


@dataclass(frozen=True)
class StageProfiles:
    """The profiles' names."""

    decode: str = param(disaggregation.DECODE, doc="profile whose endpoint answers")
    prefill: str = param(disaggregation.PREFILL, doc="profile whose endpoint computes the prompt")
    encode: str = param(disaggregation.ENCODE, doc="profile whose endpoints encode images, videos and audio")


@dataclass(frozen=True)
class StageDeciders:
    """The deciders' names."""

    prefill: str = param("", plugin=Decider, doc="decides whether to prefill elsewhere; without one never")
    encode: str = param("", plugin=Decider, doc="decides whether to encode elsewhere; without one never")


@dataclass(frozen=True)
class DisaggProfileHandlerParameters:
    """Parameters of disagg-profile-handler."""

    profiles: StageProfiles = param(StageProfiles, doc="decode (decode), prefill (prefill), encode (encode)")
    deciders: StageDeciders = param(StageDeciders, doc="prefill and encode: names of deciders; none means never")


class DisaggProfileHandler(ProfileHandler):
    """Decode, then who helps."""

    TYPE = "disagg-profile-handler"
    PARAMETERS = DisaggProfileHandlerParameters

    def __init__(self, name: str, parameters: DisaggProfileHandlerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._names = parameters.profiles
        self._recorder = context.recorder
        deciders = parameters.deciders
        self._stages = [
            (profile, decider)
            for profile, wanted in ((self._names.encode, deciders.encode), (self._names.prefill, deciders.prefill))
            if wanted and isinstance(decider := context.plugin(wanted), Decider)
        ]

    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        """Decode first; once it has an endpoint, the stages whose deciders agree, together."""
        if self._names.decode not in results:
            return [profile for profile in profiles if profile.name == self._names.decode]
        decoding = results[self._names.decode]
        if not decoding or disaggregation.PEER in request.attributes:
            return ()
        request.attributes[disaggregation.PEER] = decoding[0]
        wanted = [name for name, decider in self._stages if decider.disaggregate(request, decoding[0])]
        return [profile for name in wanted for profile in profiles if profile.name == name]

    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        """The one that decodes."""
        return self._names.decode

    def process_results(self, request: InferenceRequest, decision: Decision) -> None:
        """Headers, and who has how much to do."""
        disaggregation.set_headers(decision, self._names.prefill, self._names.encode)
        disaggregation.charge(request, decision, self._names.prefill, self._names.encode)
        used = disaggregation.stages(decision, self._names.prefill, self._names.encode)
        self._recorder.disaggregated(self.TYPE, self.name, request.target_model or request.model, used)
