# SPDX-License-Identifier: GPL-3.0-or-later
"""context-length-aware: sends prompts to endpoints that are meant for their length.

Parameters:
    label (llm-d.ai/context-length-range): the pod label that says for which prompts, as ``min-max`` in tokens.
    enableFiltering (false): endpoints that are not meant for a prompt's length are left out; else they score low.
Formula: a prompt of n tokens in a range of width w scores 0.3 + 0.7 * (0.7 / (1 + w / 10000) + 0.3 * (max - n) / w)
(1 for w = 0); outside of it 0.3 / (1 + distance / 1000); without the label 0.5; with one that makes no sense 0.
Source: llm-d-router filter and scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, Scorer, param

OUTSIDE = 0.3
"""Whatever is outside of its range scores less than this, whatever is inside more."""


@dataclass(frozen=True)
class ContextLengthAwareParameters:
    """Parameters of context-length-aware."""

    label: str = param("llm-d.ai/context-length-range", doc="pod label with the range of tokens, as min-max")
    enable_filtering: bool = param(False, doc="leave out endpoints that are not meant for the prompt's length")

    def __post_init__(self) -> None:
        """A label is needed."""
        if not self.label:
            raise ValueError("label is empty; name the pod label that holds the range")


class ContextLengthAware(Filter, Scorer):
    """Short prompts here, long ones there."""

    TYPE = "context-length-aware"
    PARAMETERS = ContextLengthAwareParameters

    def __init__(self, name: str, parameters: ContextLengthAwareParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._label = parameters.label
        self._filtering = parameters.enable_filtering

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Those whose range has the prompt, and those without a range."""
        if not self._filtering:
            return endpoints
        return [endpoint for endpoint in endpoints if self._takes(endpoint, request.prompt_tokens)]

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        return [self._rate(endpoint, request.prompt_tokens) for endpoint in endpoints]

    def _takes(self, endpoint: Endpoint, tokens: int) -> bool:
        text = endpoint.labels.get(self._label)
        if text is None:
            return True
        bounds = token_range(text)
        return bounds is not None and bounds[0] <= tokens <= bounds[1]

    def _rate(self, endpoint: Endpoint, tokens: int) -> float:
        text = endpoint.labels.get(self._label)
        if text is None:
            return 0.5
        bounds = token_range(text)
        if bounds is None:
            return 0.0
        least, most = bounds
        if not least <= tokens <= most:
            distance = tokens - most if tokens > most else least - tokens
            return OUTSIDE / (1.0 + distance / 1000.0)
        width = most - least
        if width == 0:
            return 1.0
        tight, headroom = 1.0 / (1.0 + width / 10000.0), (most - tokens) / width
        return OUTSIDE + (1.0 - OUTSIDE) * (0.7 * tight + 0.3 * headroom)


@lru_cache(maxsize=1024)
def token_range(text: str) -> tuple[int, int] | None:
    """``2048-8192`` as numbers; None for what is no range."""
    least, dash, most = text.partition("-")
    if not dash or not least.strip().isdecimal() or not most.strip().isdecimal():
        return None
    bounds = int(least), int(most)
    return bounds if bounds[0] <= bounds[1] else None
