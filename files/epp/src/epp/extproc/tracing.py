# SPDX-License-Identifier: GPL-3.0-or-later
"""W3C trace context: a request that belongs to no trace yet begins one here.

A valid ``traceparent`` of the client's (or the gateway's) goes on untouched, for this process records no span that
could stand between. Of the traces that begin here, the part that OpenTelemetry's environment variables ask for is
marked as sampled, so that the model servers record them: by default a tenth, as in the reference.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Final

TRACEPARENT: Final = "traceparent"
DEFAULT_RATIO: Final = 0.1
_NOT_ZERO: Final = 1 << 64 | 1
_VALID: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Tracing:
    """Begins traces."""

    def __init__(self, ratio: float = DEFAULT_RATIO, rng: random.Random | None = None) -> None:
        """``ratio`` (0..1) of the traces are sampled."""
        self._ratio = ratio
        self._rng = rng or random.Random()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Tracing:
        """By ``OTEL_TRACES_SAMPLER`` and ``OTEL_TRACES_SAMPLER_ARG``. Raises ValueError for values without meaning."""
        sampler = environment.get("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        fixed = {"always_on": 1.0, "always_off": 0.0}
        kind = sampler.removeprefix("parentbased_")
        if kind in fixed:
            return cls(fixed[kind])
        if kind != "traceidratio":
            raise ValueError(
                f"OTEL_TRACES_SAMPLER={sampler}: write always_on, always_off or traceidratio, with parentbased_"
            )
        text = environment.get("OTEL_TRACES_SAMPLER_ARG", str(DEFAULT_RATIO))
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"OTEL_TRACES_SAMPLER_ARG={text}: write a number from 0 to 1")
        return cls(ratio)

    def headers(self, incoming: Mapping[str, str]) -> dict[str, str]:
        """The headers that give the request a trace context; none if it has one."""
        given = incoming.get(TRACEPARENT)
        if given and _VALID.fullmatch(given):
            return {}
        # One draw, whose last digits make neither identifier 0.
        drawn = f"{self._rng.getrandbits(192) | _NOT_ZERO:048x}"
        flags = "01" if self._rng.random() < self._ratio else "00"
        return {TRACEPARENT: f"00-{drawn[:32]}-{drawn[32:]}-{flags}"}
