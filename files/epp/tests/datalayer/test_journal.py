# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to peers of prompts: all that they need, and not all of it again and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epp.datalayer.journal import Journal
from epp.datalayer.prefix import PrefixIndex
from epp.model import Endpoint

PODS = [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(2)]


def test_each_block_is_said_once_and_what_was_used_last_comes_first() -> None:
    journal = Journal()
    journal.prefix("a", PODS[0], [1, 2, 3])
    journal.prefix("a", PODS[0], [1, 2, 4])
    journal.prefix("a", PODS[1], [1])
    journal.prefix("b", PODS[0], [9])
    said = [(learner, endpoint, list(hashes)) for learner, endpoint, hashes in journal.turn().prefixes()]
    assert said == [("a", PODS[0], [1, 2, 4, 3]), ("a", PODS[1], [1]), ("b", PODS[0], [9])]
    assert list(journal.turn().prefixes()) == []


def test_the_first_words_on_a_page_wake_who_says_them() -> None:
    journal, woken = Journal(), []
    journal.wake = lambda: woken.append(1)
    journal.prefix("a", PODS[0], [1])
    journal.prefix("a", PODS[0], [2])
    assert len(woken) == 1
    journal.turn()
    journal.prefix("a", PODS[0], [3])
    assert len(woken) == 2


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(0, 1), st.booleans()), max_size=60),
    st.sampled_from([40, 1000]),
)
def test_a_peer_finds_the_same(prompts: list[tuple[int, int, int, bool]], capacity: int) -> None:
    """Whatever is sent, and however much of it is said at once: who hears all of it finds what the sender finds."""
    journal, here, there = Journal(), PrefixIndex(), PrefixIndex()
    asked = []
    for family, length, pod, turn in [*prompts, (0, 1, 0, True)]:
        hashes = [1, 2, 3, *(100 * family + number for number in range(length))]
        asked.append(hashes)
        if news := here.add(PODS[pod], hashes, capacity):
            journal.prefix("a", PODS[pod], news)
        if turn:
            for _, endpoint, blocks in journal.turn().prefixes():
                there.add(endpoint, list(blocks), capacity)
    if capacity == 1000:
        assert all(here.match(each, PODS) == there.match(each, PODS) for each in asked)
    # What has no room for all is full of what was used last, here and there.
    assert here.match(asked[-1], PODS) == there.match(asked[-1], PODS)
