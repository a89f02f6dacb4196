# SPDX-License-Identifier: GPL-3.0-or-later
"""inflight-load-producer: how many requests and tokens each endpoint has in flight through this EPP.

Parameters:
    addEstimatedOutputTokens (false): answers count, too, not only prompts.
    outputRatio (1.5): estimated tokens of the answer per token of the prompt.
    maxEstimatedOutputTokens (none): at most so many; what the client allows (``max_tokens``) is a bound anyway.
    prefixMatchInfoProducerName: taken and not needed, since every prefix producer's word counts.
Formula: a request adds the prompt tokens that the endpoint's prefix cache is not believed to hold, until the
first token of its answer (streamed) or its end (plain), and ratio * prompt tokens until its answer ends.
Source: llm-d-router producer of the same type. The counts themselves are the data layer's, and are always there.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Producer, param


@dataclass(frozen=True)
class InflightLoadProducerParameters:
    """Parameters of inflight-load-producer."""

    add_estimated_output_tokens: bool = param(False, doc="answers count, too")
    output_ratio: float = param(1.5, minimum=0, doc="estimated tokens of the answer per token of the prompt")
    max_estimated_output_tokens: int | None = param(None, minimum=0, doc="at most so many tokens of an answer")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="not needed: every producer's word counts")


class InflightLoadProducer(Producer):
    """Estimates answers."""

    TYPE = "inflight-load-producer"
    PARAMETERS = InflightLoadProducerParameters

    def __init__(self, name: str, parameters: InflightLoadProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Say how long the answer may get."""
        rules = self._parameters
        if not rules.add_estimated_output_tokens:
            return
        tokens = int(request.prompt_tokens * rules.output_ratio)
        if request.max_tokens:
            tokens = min(tokens, request.max_tokens)
        if rules.max_estimated_output_tokens is not None:
            tokens = min(tokens, rules.max_estimated_output_tokens)
        request.output_tokens = tokens
