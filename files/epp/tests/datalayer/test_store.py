# SPDX-License-Identifier: GPL-3.0-or-later
"""The datastore: identity of endpoints, in-flight counts, requests that metrics cannot show yet."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.datalayer import Datastore, load
from epp.datalayer.store import MAX_UNSEEN
from epp.model import Charge, Endpoint, EndpointMetrics, FlowShare


def endpoint(name: str = "a", address: str = "10.0.0.1", **labels: str) -> Endpoint:
    return Endpoint(name, "ns", name, address, 8000, labels=labels)


def test_endpoints_keep_their_state_across_lists() -> None:
    store, added, removed = Datastore("pool"), [], []
    store.on_added(added.append)
    store.on_removed(removed.append)
    assert not store.synced
    store.replace([])
    assert store.synced
    store.replace([endpoint("a"), endpoint("b", "10.0.0.2")])
    first, second = store.endpoints()
    store.acquire(first)
    store.replace([endpoint("c", "10.0.0.3"), endpoint("a", zone="z")])
    third, again = store.endpoints()
    assert again is first
    assert first.labels == {"zone": "z"}
    assert first.inflight == 1
    assert added == [first, second, third]
    assert removed == [second]
    store.replace([endpoint("a", "10.0.0.99")])
    assert store.endpoints()[0] is not first, "another address is another endpoint"


def test_inflight_counts() -> None:
    store, seen = Datastore(), []
    store.on_acquired(seen.append)
    store.replace([endpoint()])
    (one,) = store.endpoints()
    store.acquire(one)
    store.acquire(one)
    store.replace([])
    store.release(one)
    store.release(one)
    assert one.inflight == 0
    assert seen == [one, one]
    with pytest.raises(RuntimeError, match="more often"):
        store.release(one)


def test_unseen_requests_count_until_a_reading_can_show_them() -> None:
    store = Datastore()
    store.replace([endpoint()])
    (one,) = store.endpoints()
    for tokens in (100, 20):
        store.sent(one, tokens)
    assert (one.unseen, one.unseen_tokens) == (2, 120)
    now = time.monotonic()
    store.observed(one, EndpointMetrics(waiting=1, updated_at=now), now)
    assert one.metrics.waiting == 1
    assert (one.unseen, one.unseen_tokens) == (2, 120), "they were sent a moment before: the engine may not know yet"
    store.observed(one, EndpointMetrics(updated_at=now), now + 1)
    assert (one.unseen, one.unseen_tokens) == (0, 0)


def test_a_request_that_has_ended_waits_nowhere() -> None:
    store, (one,) = Datastore(), [endpoint("a")]
    store.replace([one])
    for tokens in (10, 20, 30):
        store.acquire(one)
        store.sent(one, tokens)
    store.release(one)
    assert (one.inflight, one.unseen, one.unseen_tokens) == (2, 2, 50)
    store.release(one)
    store.release(one)
    assert (one.inflight, one.unseen, one.unseen_tokens) == (0, 0, 0)


def test_unseen_requests_are_bounded() -> None:
    store = Datastore()
    store.replace([endpoint()])
    (one,) = store.endpoints()
    for number in range(MAX_UNSEEN + 10):
        store.sent(one, number)
    assert one.unseen == MAX_UNSEEN
    assert one.unseen_tokens == sum(range(10, MAX_UNSEEN + 10))
    store.replace([])
    store.sent(one, 1)
    assert one.unseen == MAX_UNSEEN, "endpoints that are gone are left alone"


def test_stale_is_what_comes_later_than_planned() -> None:
    one, now = endpoint(), 1000.0
    assert load.stale(one, now, 0.2), "never read"
    one.metrics = EndpointMetrics(updated_at=999.9)
    assert not load.stale(one, now, 0.2)
    one.metrics = EndpointMetrics(updated_at=999.0)
    assert load.stale(one, now, 0.2)
    one.metrics = EndpointMetrics(updated_at=999.0, interval=1.0)
    assert not load.stale(one, now, 0.2)


def two() -> tuple[Datastore, Endpoint, Endpoint]:
    store = Datastore()
    store.replace([endpoint("a"), endpoint("b", "10.0.0.2")])
    return (store, *store.endpoints())


def load_of(*endpoints: Endpoint) -> list[tuple[int, int]]:
    return [(each.inflight, each.inflight_tokens) for each in endpoints]


def test_a_hold_counts_requests_and_tokens_until_it_is_released() -> None:
    store, first, second = two()
    hold = store.hold([Charge(first, 100, 20), Charge(second, 7)])
    assert load_of(first, second) == [(1, 120), (1, 7)]
    assert hold.endpoint is first
    hold.release()
    hold.release()
    assert load_of(first, second) == [(0, 0), (0, 0)]
    assert hold.endpoint is None


def test_helpers_are_done_when_the_answer_begins_and_prompts_with_the_first_token() -> None:
    store, first, second = two()
    hold = store.hold([Charge(first, 100, 20), Charge(second, 7)])
    hold.begun()
    hold.begun()
    assert load_of(first, second) == [(1, 120), (0, 0)]
    hold.computed()
    hold.computed()
    assert load_of(first, second) == [(1, 20), (0, 0)]
    hold.release()
    hold.begun()
    hold.computed()
    assert load_of(first, second) == [(0, 0), (0, 0)]


def test_flows_are_counted_apart() -> None:
    store, first, second = two()
    one = store.hold([Charge(first, 100), Charge(second, 7)], ("a", 1))
    other = store.hold([Charge(first, 5)], ("b", 0))
    assert first.flows == {("a", 1): FlowShare(1, 100), ("b", 0): FlowShare(1, 5)}
    one.begun()
    one.computed()
    assert first.flows[("a", 1)] == FlowShare(1, 0)
    assert second.flows == {}, "one without anything in flight is forgotten"
    one.moved(second.hostport)
    other.release()
    assert (first.flows, second.flows) == ({}, {("a", 1): FlowShare(1, 0)})
    one.release()
    assert second.flows == {}


def test_a_hold_follows_the_request() -> None:
    store, first, second = two()
    hold = store.hold([Charge(first, 100, 20)])
    for where in (second.hostport, second.hostport, "10.9.9.9:1"):
        hold.moved(where)
        assert load_of(first, second) == [(0, 0), (1, 120)]
    store.replace([])
    hold.release()
    hold.moved(first.hostport)
    assert load_of(first, second) == [(0, 0), (0, 0)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hold", "begun", "computed", "moved", "release", "gone"]),
            st.integers(0, 9),
            st.integers(0, 3000),
        ),
        max_size=60,
    )
)
def test_counts_return_to_zero_after_any_interleaving(events: list[tuple[str, int, int]]) -> None:
    store = Datastore()
    store.replace([endpoint(str(number), f"10.0.0.{number}") for number in range(4)])
    everything = list(store.endpoints())
    holds = []
    for what, which, tokens in events:
        if what == "hold":
            charges = [Charge(everything[which % len(everything)], tokens, tokens // 3)]
            charges += [Charge(everything[(which + 1) % len(everything)], tokens)] * (which % 3)
            holds.append(store.hold(charges, (f"flow-{which % 3}", which % 2)))
        elif what == "gone":
            store.replace([endpoint(str(number), f"10.0.0.{number}") for number in range(4) if number != which % 4])
            everything += [each for each in store.endpoints() if each not in everything]
        elif holds:
            hold = holds[which % len(holds)]
            if what == "begun":
                hold.begun()
            elif what == "computed":
                hold.computed()
            elif what == "moved":
                hold.moved(f"10.0.0.{tokens % 5}:8000")
            else:
                hold.release()
        assert all(each.inflight >= 0 and each.inflight_tokens >= 0 for each in everything)
        for each in everything:
            assert sum(share.requests for share in each.flows.values()) == each.own
            assert sum(share.tokens for share in each.flows.values()) == each.own_tokens
    for hold in holds:
        hold.release()
    assert load_of(*everything) == [(0, 0)] * len(everything)
    assert not any(each.flows for each in everything)
