# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoint picker protocol's names, and what they mean on a request. Pure functions, no state.

New spellings of headers (``x-llm-d-*``) stand before the old ones (``x-gateway-*``), and the first that is present
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode

REQUEST_ID: Final = "x-request-id"
POOL: Final = "x-gateway-inference-pool"
PREFER: Final = "prefer"
RESPONSE_MARK: Final = "x-went-into-resp-headers"
OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MODEL_REWRITE: Final = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
MODEL_NAME: Final = "x-gateway-model-name"
"""Set by whatever routed the request here by its model; the only word of the model while the body is unseen."""


class BodyMode(IntEnum):
    """How Envoy sends a body, by the numbers of its own enumeration."""

    NONE = ProcessingMode.NONE
    STREAMED = ProcessingMode.STREAMED
    BUFFERED = ProcessingMode.BUFFERED
    BUFFERED_PARTIAL = ProcessingMode.BUFFERED_PARTIAL
    FULL_DUPLEX_STREAMED = ProcessingMode.FULL_DUPLEX_STREAMED


_MODES: Final = {mode.value: mode for mode in BodyMode}


def first_header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The value of the first of ``names`` that is present and not empty."""
    for name in names:
        if value := headers.get(name):
            return value
    return ""


def prefers(headers: Mapping[str, str], preference: str) -> bool:
    """Whether the client states this preference (RFC 7240)."""
    stated = headers.get(PREFER, "")
    if not stated:
        return False
    tokens = (part.partition(";")[0].partition("=")[0].strip().lower() for part in stated.split(","))
    return preference in tokens


def body_mode(number: int) -> BodyMode:
    """The body mode that Envoy announced; ValueError for one that this EPP cannot serve."""
    mode = _MODES.get(number)
    if mode is None:
        raise ValueError(
            f"body mode {number} is not supported; use FULL_DUPLEX_STREAMED, BUFFERED, BUFFERED_PARTIAL or STREAMED"
        )
    return mode
