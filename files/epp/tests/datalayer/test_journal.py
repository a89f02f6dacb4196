# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to peers of prompts: all of it, and not all of it again and again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from epp.datalayer.journal import AGAIN_SECONDS, Told
from epp.datalayer.prefix import PrefixIndex
from epp.model import Endpoint

PODS = [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(2)]
SOON = AGAIN_SECONDS / 10


class Sender:
    """Sends prompts, and says so."""

    def __init__(self) -> None:
        self.index, self.told, self.now = PrefixIndex(), Told(), 100.0

    def send(self, hashes: Sequence[int], pod: int = 0, later: float = SOON) -> list[int]:
        self.now += later
        known = self.index.add(PODS[pod], hashes, 1000)
        return list(self.told.news(PODS[pod], hashes, known, self.now))


def test_a_conversation_is_told_by_its_turns() -> None:
    sender = Sender()
    assert sender.send([1, 2]) == [1, 2]
    assert sender.send([1, 2, 3, 4]) == [3, 4]
    assert sender.send([1, 2, 3, 4, 5]) == [5]
    assert sender.send([1, 2, 3, 4, 5]) == []


def test_and_in_full_from_time_to_time() -> None:
    sender = Sender()
    turns = [list(range(1, 2 + number)) for number in range(40)]
    said = [sender.send(turn) for turn in turns]
    whole = [number for number, (turn, part) in enumerate(zip(turns, said, strict=True)) if part == turn]
    assert 3 <= len(whole) <= 5
    assert all(later - earlier <= 11 for earlier, later in itertools.pairwise(whole))


def test_a_beginning_that_many_share() -> None:
    sender = Sender()
    assert sender.send([1, 2, 3, 10]) == [1, 2, 3, 10]
    assert sender.send([1, 2, 3, 20]) == [1, 2, 3, 20], "nobody knew yet that it is shared"
    assert sender.send([1, 2, 3, 30]) == [30]
    assert sender.send([1, 2, 3, 40], later=AGAIN_SECONDS) == [1, 2, 3, 40]


def test_each_endpoint_by_itself() -> None:
    sender = Sender()
    sender.send([1, 2])
    assert sender.send([1, 2, 3], pod=1) == [1, 2, 3]
    assert sender.send([1, 2, 3, 4]) == [3, 4]


def test_what_was_only_heard_of_is_told() -> None:
    sender = Sender()
    sender.index.add(PODS[0], [1, 2], 1000)  # a peer's
    assert sender.send([1, 2, 3]) == [1, 2, 3]


def test_a_gap_is_told_in_full() -> None:
    """The middle of a prompt was forgotten, or another prompt's end happens to be there."""
    sender = Sender()
    sender.send([1, 2])
    sender.index.add(PODS[0], [4], 1000)
    assert sender.send([1, 2, 3, 4]) == [1, 2, 3, 4]


def test_it_is_not_remembered_for_long() -> None:
    sender = Sender()
    for number in range(1000):
        sender.send([number], later=AGAIN_SECONDS / 20)
    assert len(sender.told) <= 41


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(0, 1), st.floats(0, 0.2)), max_size=40))
def test_a_peer_knows_the_same(prompts: list[tuple[int, int, int, float]]) -> None:
    """Whatever is sent: a peer that hears all of it finds what the sender finds."""
    sender, peer = Sender(), PrefixIndex()
    asked = []
    for family, length, pod, later in prompts:
        hashes = [1, 2, 3, *(100 * family + number for number in range(length))]
        asked.append(hashes)
        if part := sender.send(hashes, pod, later):
            peer.add(PODS[pod], part, 1000)
        for each in asked:
            assert peer.match(each, PODS) == sender.index.match(each, PODS)
