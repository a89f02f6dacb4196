# SPDX-License-Identifier: GPL-3.0-or-later
"""always-disagg-multimodal-decider: requests with images, videos or audio are encoded elsewhere.

Parameters: none.
Formula: a message has a content part of type ``image_url``, ``video_url`` or ``input_audio`` (or a near relative).
Source: llm-d-router decider of the same type.
"""

from __future__ import annotations

from epp.model import Endpoint, InferenceRequest
from epp.plugins.media import media
from epp.scheduling.api import Decider


class AlwaysDisaggMultimodalDecider(Decider):
    """What is not only text."""

    TYPE = "always-disagg-multimodal-decider"

    def disaggregate(self, request: InferenceRequest, endpoint: Endpoint) -> bool:
        """See the module."""
        return bool(media(request))
