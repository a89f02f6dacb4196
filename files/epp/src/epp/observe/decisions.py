# SPDX-License-Identifier: GPL-3.0-or-later
"""The last decisions, kept for people who ask why a request went where it went.

A note is one append on the way of a request; it is put into words only when somebody looks. Nothing of a prompt is
kept. What is too old falls out.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from epp.model import Decision, InferenceRequest, Rejection

KEPT = 256
"""Decisions that are remembered, over all pools."""

Note = tuple[float, str, str, str, str, int, int, "Decision | Rejection"]


class DecisionLog:
    """The last decisions of all pools, newest last. Belongs to one event loop."""

    def __init__(self, kept: int = KEPT) -> None:
        self._notes: deque[Note] = deque(maxlen=kept)

    def note(self, pool: str, request: InferenceRequest, outcome: Decision | Rejection) -> None:
        """A request of this pool was routed, or refused."""
        if isinstance(outcome, Rejection):
            # An exception that was raised holds on to all that was on its way, the body of the request included.
            outcome = Rejection(outcome.status, outcome.code, outcome.message)
        self._notes.append((
            time.time(), pool, request.request_id, request.model, request.target_model, request.size, request.priority,
            outcome,
        ))  # fmt: skip

    def newest(self, limit: int = KEPT, model: str = "") -> list[dict[str, Any]]:
        """Up to ``limit`` decisions as JSON, newest first; only those about ``model``, if given."""
        found = (note for note in reversed(self._notes) if not model or model in note[3:5])
        return [_told(note) for note, _ in zip(found, range(limit), strict=False)]


def _told(note: Note) -> dict[str, Any]:
    at, pool, request_id, model, target_model, size, priority, outcome = note
    known = {
        "time": round(at, 3),
        "pool": pool,
        "requestId": request_id,
        "model": model,
        "targetModel": target_model,
        "bytes": size,
        "priority": priority,
    }
    if isinstance(outcome, Rejection):
        refusal = {"status": outcome.status, "reason": f"{outcome.code}: {outcome.message}"}
        return {**known, "endpoint": "", "fallbacks": [], "scores": {}, "profiles": {}, "cached": False, **refusal}
    first, *others = outcome.endpoints
    return {
        **known,
        "endpoint": first.hostport,
        "pod": first.pod,
        "fallbacks": [endpoint.hostport for endpoint in others],
        "scores": {name: round(score, 4) for name, score in outcome.scores.items()},
        "profiles": {name: [each.hostport for each in picked] for name, picked in outcome.profiles.items()},
        "cached": outcome.cached,
        "status": 200,
        "reason": _why(outcome),
    }


def _why(decision: Decision) -> str:
    """The place of the endpoint among those that were rated, and whether it knows the prompt."""
    mine = decision.scores.get(decision.endpoints[0].hostport)
    prefix = ", and it is believed to hold the beginning of the prompt" if decision.cached else ""
    if mine is None:
        return f"picked without scores{prefix}"
    better = sum(score > mine for score in decision.scores.values())
    alike = sum(score == mine for score in decision.scores.values()) - 1
    place = "the best" if not better else f"number {better + 1}"
    tie = f" ({alike + 1} are alike)" if alike else ""
    return f"score {mine:.3f} is {place} of {len(decision.scores)}{tie}{prefix}"
