# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency targets that clients name in headers, in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping

TTFT = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
"""Until the first token; the first header that is there counts."""
TPOT = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
"""Per token after it."""


def target(headers: Mapping[str, str], names: tuple[str, ...]) -> float:
    """Milliseconds from the first of these headers that is there; infinity for none, or one that is no such number."""
    text = next((headers[name] for name in names if headers.get(name)), "")
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return value if value > 0 else math.inf
