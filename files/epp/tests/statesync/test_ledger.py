# SPDX-License-Identifier: GPL-3.0-or-later
"""What peers' words come to: sums that are right again whatever was lost, whoever went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.datalayer import Datastore
from epp.model import Charge, Endpoint
from epp.statesync.ledger import SILENCE_SECONDS, SNAPSHOT_HASHES, Ledger
from epp.statesync.messages import VERSION, News, PoolNews, decode, encode, pack, unpack


def endpoint(number: int) -> Endpoint:
    return Endpoint(f"e{number}", "ns", f"p{number}", f"10.0.0.{number}", 8000)


class Memory:
    """A learner that remembers what it is told."""

    def __init__(self) -> None:
        self.learned: list[tuple[str, list[int]]] = []

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        self.learned.append((endpoint.hostport, list(hashes)))

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        yield endpoint(1), list(range(SNAPSHOT_HASHES + 2))


class Replica:
    """A process: one pool with two endpoints."""

    def __init__(self, name: str, endpoints: int = 2) -> None:
        self.store = Datastore("pool")
        self.store.replace([endpoint(number + 1) for number in range(endpoints)])
        self.memory = Memory()
        self.store.journal.teach("prefixes", self.memory)
        self.ledger = Ledger(name, {"pool": self.store})

    def loads(self) -> list[tuple[int, int]]:
        return [(each.inflight, each.inflight_tokens) for each in self.store.endpoints()]

    def tell(self, other: Replica, now: float = 0.0, whole: bool = False) -> None:
        """Say what is new, as it travels."""
        if news := self.ledger.news(whole):
            other.ledger.hear(decode(encode(news)), now)


@pytest.fixture
def pair() -> tuple[Replica, Replica]:
    return Replica("a"), Replica("b")


def test_requests_of_a_peer_count(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first, second = a.store.endpoints()
    hold = a.store.hold([Charge(first, 100, 0), Charge(second, 7, 0)])
    a.tell(b)
    assert b.loads() == [(1, 100), (1, 7)]
    hold.begun()
    hold.computed()
    a.tell(b)
    assert b.loads() == [(1, 0), (0, 0)]
    hold.release()
    a.tell(b)
    assert b.loads() == [(0, 0), (0, 0)]


def test_what_a_peer_has_in_flight_is_not_ours_to_release(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.store.hold([Charge(a.store.endpoints()[0], 5, 0)])
    a.tell(b)
    with pytest.raises(RuntimeError, match="more often than acquired"):
        b.store.release(b.store.endpoints()[0])


def test_nothing_new_is_not_said(pair: tuple[Replica, Replica]) -> None:
    assert pair[0].ledger.news() is None


def test_own_words_are_ignored(pair: tuple[Replica, Replica]) -> None:
    a, _ = pair
    a.store.hold([Charge(a.store.endpoints()[0], 5, 0)])
    a.tell(a)
    assert a.loads()[0] == (1, 5)


def test_a_lost_message_is_made_good_by_the_next_whole_one(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    hold = a.store.hold([Charge(a.store.endpoints()[0], 5, 0)])
    a.tell(b)
    hold.release()
    assert a.ledger.news() is not None  # lost
    assert b.loads()[0] == (1, 5)
    a.tell(b, whole=True)
    assert b.loads()[0] == (0, 0)


def test_a_silent_peer_is_forgotten(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.store.hold([Charge(a.store.endpoints()[0], 5, 0)])
    a.tell(b, now=10.0)
    assert b.ledger.expire(10.0 + SILENCE_SECONDS) == []
    assert b.ledger.expire(10.1 + SILENCE_SECONDS) == ["a"]
    assert b.loads()[0] == (0, 0)


def test_goodbye(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.store.hold([Charge(a.store.endpoints()[0], 5, 0)])
    a.tell(b)
    b.ledger.hear(a.ledger.goodbye(), 0.0)
    assert b.loads()[0] == (0, 0)
    assert b.ledger.peers == {}


def test_an_endpoint_that_peers_knew_first() -> None:
    a, b = Replica("a", endpoints=2), Replica("b", endpoints=1)
    a.store.hold([Charge(a.store.endpoints()[1], 5, 0)])
    a.tell(b)
    b.store.replace([endpoint(1), endpoint(2)])
    assert b.loads() == [(0, 0), (1, 5)]


def test_a_request_that_a_peer_sent_is_not_yet_seen_by_the_metrics(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first = a.store.endpoints()[0]
    a.store.hold([Charge(first, 64, 0)])
    a.store.sent(first, 64)
    a.tell(b)
    assert (b.store.endpoints()[0].unseen, b.store.endpoints()[0].unseen_tokens) == (1, 64)
    assert b.ledger.news() is None, "what peers say is not said again"


def test_prompts_of_a_peer_are_learned(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.store.journal.prefix("prefixes", a.store.endpoints()[1], [3, 2**64 - 1])
    a.store.journal.prefix("unknown", a.store.endpoints()[1], [1])
    a.tell(b)
    assert b.memory.learned == [("10.0.0.2:8000", [3, 2**64 - 1])]


def test_a_snapshot_is_told_in_parts_the_oldest_first(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    for news in a.ledger.snapshot():
        b.ledger.hear(decode(encode(news)), 0.0)
    parts = [hashes for _, hashes in b.memory.learned]
    assert [len(each) for each in parts] == [SNAPSHOT_HASHES, 2]
    assert parts[0][-1] == 0, "what is learned last of a part counts as its oldest"


def test_a_message_that_comes_on_two_ways_counts_once(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.store.sent(a.store.endpoints()[0], 100)
    first = a.ledger.news()
    hold = a.store.hold([Charge(a.store.endpoints()[0], 9, 0)])
    second = a.ledger.news()
    hold.release()
    third = a.ledger.news()
    assert first is not None
    assert second is not None
    assert third is not None
    for news in (first, second, first, third, second, third):
        b.ledger.hear(decode(encode(news)), 0.0)
    assert b.store.endpoints()[0].unseen == 1
    assert b.loads()[0] == (0, 0)


def test_other_pools_and_places_are_ignored(pair: tuple[Replica, Replica]) -> None:
    _, b = pair
    strange = PoolNews({"10.9.9.9:1": (3, 4)}, False, [("10.9.9.9:1", 3)], [("prefixes", "10.9.9.9:1", pack([1]))])
    b.ledger.hear(News(VERSION, "x", {"pool": strange, "other": strange}), 0.0)
    assert b.loads() == [(0, 0), (0, 0)]
    assert b.memory.learned == []


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", encode(News(VERSION + 1, "a", {}))])
def test_words_that_are_not_understood(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_hashes_that_are_cut_off() -> None:
    with pytest.raises(ValueError):
        unpack(pack([1, 2])[:-1])


events = st.lists(
    st.tuples(st.sampled_from(["hold", "release", "tell", "lose", "whole", "goodbye", "silence"]), st.integers(0, 1)),
    max_size=60,
)


@given(events)
def test_sums_are_right_after_the_next_whole_message(happened: list[tuple[str, int]]) -> None:
    """Whatever is lost, and whoever goes: after one whole message each, everybody counts the same."""
    pair = Replica("a"), Replica("b")
    holds: list[list[object]] = [[], []]
    for number, (what, who) in enumerate(happened):
        here, there = pair[who], pair[1 - who]
        now = float(number)
        if what == "hold":
            holds[who].append(here.store.hold([Charge(here.store.endpoints()[number % 2], number, 0)]))
        elif what == "release" and holds[who]:
            holds[who].pop().release()  # type: ignore[attr-defined]
        elif what == "lose":
            here.ledger.news()
        elif what in ("tell", "whole"):
            here.tell(there, now, whole=what == "whole")
        elif what == "goodbye":
            there.ledger.hear(here.ledger.goodbye(), now)
        elif what == "silence":
            here.ledger.expire(now + SILENCE_SECONDS + 1)
        assert all(count >= 0 for each in pair for load in each.loads() for count in load)
    pair[0].tell(pair[1], whole=True)
    pair[1].tell(pair[0], whole=True)
    assert pair[0].loads() == pair[1].loads()
    own = [sum(each.own for each in replica.store.endpoints()) for replica in pair]
    assert [len(each) for each in holds] == own
