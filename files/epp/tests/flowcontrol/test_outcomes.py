# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients are told: status, class and reason of each outcome are the reference's."""

from __future__ import annotations

import pytest

from epp.flowcontrol.outcomes import Outcome, evicted, refusal

EXHAUSTED, UNAVAILABLE, INTERNAL = (429, "ResourceExhausted"), (503, "ServiceUnavailable"), (500, "Internal")


@pytest.mark.parametrize(
    ("outcome", "answer", "reason"),
    [
        ("RejectedCapacity", EXHAUSTED, "rejected-saturated"),
        ("RejectedNoEndpoints", UNAVAILABLE, "rejected-no-endpoints"),
        ("RejectedOther", INTERNAL, ""),
        ("EvictedTTL", EXHAUSTED, "rejected-ttl-expired"),
        ("EvictedNoEndpoints", UNAVAILABLE, "rejected-no-endpoints"),
        ("EvictedContextCancelled", UNAVAILABLE, "rejected-context-cancelled"),
        ("EvictedOther", INTERNAL, ""),
    ],
)
def test_refusals(outcome: str, answer: tuple[int, str], reason: str) -> None:
    found = refusal(Outcome(outcome))
    assert ((found.status, found.code), found.reason) == (answer, reason)
    assert found.message


@pytest.mark.parametrize("outcome", [Outcome.REJECTED_OTHER, Outcome.EVICTED_OTHER])
def test_shutting_down(outcome: Outcome) -> None:
    found = refusal(outcome, shutting_down=True)
    assert ((found.status, found.code), found.reason) == (UNAVAILABLE, "rejected-shutting-down")


def test_eviction() -> None:
    found = evicted()
    assert ((found.status, found.code), found.reason) == (EXHAUSTED, "evicted")
    assert found.message == "request evicted by flow control"


def test_every_outcome_is_one_of_the_above_or_a_dispatch() -> None:
    assert len(Outcome) == 8
    assert Outcome.DISPATCHED == "Dispatched"
