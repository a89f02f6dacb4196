# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request leaves flow control, and what its client is told. Names, codes and reasons are the reference's."""

from __future__ import annotations

from enum import StrEnum

from epp.model import Rejection

SHUTTING_DOWN = "rejected-shutting-down"


class Outcome(StrEnum):
    """The values of the metrics' label ``outcome``. Rejected: never queued; evicted: taken out of the queue."""

    DISPATCHED = "Dispatched"
    REJECTED_CAPACITY = "RejectedCapacity"
    REJECTED_NO_ENDPOINTS = "RejectedNoEndpoints"
    REJECTED_OTHER = "RejectedOther"
    EVICTED_TTL = "EvictedTTL"
    EVICTED_NO_ENDPOINTS = "EvictedNoEndpoints"
    EVICTED_CONTEXT_CANCELLED = "EvictedContextCancelled"
    EVICTED_OTHER = "EvictedOther"


_EXHAUSTED, _UNAVAILABLE = (429, "ResourceExhausted"), (503, "ServiceUnavailable")
_ANSWERS = {
    Outcome.REJECTED_CAPACITY: (*_EXHAUSTED, "the queue is at capacity", "rejected-saturated"),
    Outcome.REJECTED_NO_ENDPOINTS: (
        *_UNAVAILABLE,
        "no endpoints available, and the queue is at capacity",
        "rejected-no-endpoints",
    ),
    Outcome.EVICTED_TTL: (*_EXHAUSTED, "request timed out in queue", "rejected-ttl-expired"),
    Outcome.EVICTED_NO_ENDPOINTS: (
        *_UNAVAILABLE,
        "no endpoints available until the request timed out in queue",
        "rejected-no-endpoints",
    ),
    Outcome.EVICTED_CONTEXT_CANCELLED: (*_UNAVAILABLE, "client disconnected", "rejected-context-cancelled"),
}


def refusal(outcome: Outcome, shutting_down: bool = False) -> Rejection:
    """What a client is told whose request has this outcome, which is any but DISPATCHED."""
    if shutting_down:
        return Rejection(*_UNAVAILABLE, "flow control is shutting down", SHUTTING_DOWN)
    answer = _ANSWERS.get(outcome)
    if answer is None:
        return Rejection(500, "Internal", "internal flow control error")
    status, code, message, reason = answer
    return Rejection(status, code, message, reason)


def evicted() -> Rejection:
    """What the client of a request is told that had been dispatched, and had to make room for a more urgent one."""
    return Rejection(*_EXHAUSTED, "request evicted by flow control", "evicted")
