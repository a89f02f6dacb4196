# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a large pool is what one finds by looking, whatever happens to its endpoints."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.datalayer import Datastore, load
from epp.datalayer.columns import Candidates
from epp.datalayer.prefix import PrefixIndex
from epp.datalayer.store import LARGE
from epp.model import Charge, Endpoint, EndpointMetrics


def pool(count: int) -> list[Endpoint]:
    return [Endpoint(f"e{n}", "", f"p{n}", f"10.0.{n // 250}.{n % 250 + 1}", 8000) for n in range(count)]


def check(store: Datastore) -> None:
    found, looked = store.standing(), [each for each in store.endpoints() if not each.refused]
    assert isinstance(found, Candidates) == (len(store.endpoints()) >= LARGE)
    assert found == looked
    assert load.all_waiting(found) == [load.waiting(each) for each in looked]
    if isinstance(found, Candidates):
        assert found.waiting().tolist() == load.all_waiting(looked)
        assert found.kv_free().tolist() == load.all_kv_free(looked)
    assert load.all_kv_free(found) == [1.0 - load.kv_usage(each) for each in looked]


def test_small_pools_have_none() -> None:
    store = Datastore()
    store.replace(pool(LARGE - 1))
    check(store)


def test_endpoints_come_and_go() -> None:
    store = Datastore()
    store.replace(pool(LARGE))
    check(store)
    store.replace(pool(LARGE + 5)[3:])
    check(store)
    store.replace(pool(3))
    check(store)
    store.replace(pool(2 * LARGE))
    check(store)


def test_what_was_handed_out_stays_as_it_was() -> None:
    store = Datastore()
    store.replace(pool(LARGE))
    before = store.standing()
    gone = before[0]
    before.reverse()
    gone.refused = True
    store.changed(gone)
    after = store.standing()
    assert len(before) == len(load.all_waiting(before)) == LARGE
    assert gone not in after
    assert len(after) == len(load.all_waiting(after)) == LARGE - 1
    check(store)


@pytest.mark.parametrize("count", [2, LARGE])
def test_where_all_refuse_those_that_were_never_read_are_left(count: int) -> None:
    store = Datastore()
    store.replace(pool(count))
    first, second, *others = store.endpoints()
    first.metrics.updated_at, second.unmetered = 1.0, True
    for endpoint in store.endpoints():
        endpoint.refused = True
        store.changed(endpoint)
    assert store.standing() == others
    store.standing().clear()
    assert store.standing() == others, "the list is the caller's own"
    second.refused = False
    store.changed(second)
    assert store.standing() == [second]


@pytest.mark.parametrize("holders", [0, 1, LARGE // 3, LARGE])
def test_values_of_few_and_of_many(holders: int) -> None:
    store = Datastore()
    store.replace(pool(LARGE + 1))
    refusing, *others = store.endpoints()
    refusing.refused = True
    values = {endpoint: 0.5 + number for number, endpoint in enumerate([refusing, *reversed(others)][:holders])}
    endpoints = store.standing()
    expected = [values.get(endpoint, 0.0) for endpoint in endpoints]
    assert isinstance(endpoints, Candidates)
    assert endpoints.spread(values).tolist() == expected
    assert load.spread(values, list(endpoints)) == expected


def test_prefixes_are_not_found_at_those_who_refuse() -> None:
    store, index = Datastore(), PrefixIndex()
    store.replace(pool(2 * LARGE))
    for endpoint in store.endpoints():
        index.add(endpoint, [1, 2], 10)
    first, second, *others = store.endpoints()
    first.refused = True
    assert index.match([1, 2, 3], store.standing()) == dict.fromkeys((second, *others), 2)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_whatever_happens(seed: int, steps: int) -> None:
    chance, store = random.Random(seed), Datastore()
    store.replace(pool(LARGE + 3))
    holds = []
    now = 1.0
    for _ in range(steps):
        endpoint = chance.choice(store.endpoints())
        now += 0.1
        match chance.randrange(7):
            case 0:
                reports = chance.random() < 0.7
                metrics = EndpointMetrics(chance.randrange(4), 1, chance.random(), 16, 100, reports_waiting=reports)
                metrics.updated_at = now
                store.observed(endpoint, metrics, now)
            case 1:
                holds.append(store.hold([Charge(endpoint, 100, 0)]))
            case 2 if holds:
                holds.pop(chance.randrange(len(holds))).release()
            case 3:
                store.sent(endpoint, chance.randrange(1000))
            case 4:
                store.elsewhere(endpoint, 1, 10)
            case 5:
                endpoint.refused = not endpoint.refused
                store.changed(endpoint)
            case 6:
                store.sent_elsewhere(endpoint, 5)
        if chance.random() < 0.5:
            check(store)
    check(store)
