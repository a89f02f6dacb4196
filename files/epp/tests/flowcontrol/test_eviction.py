# SPDX-License-Identifier: GPL-3.0-or-later
"""Who makes room for whom, and how many at a time."""

from __future__ import annotations

from epp.flowcontrol.api import EvictionFilter, EvictionOptions, EvictionOrder, Victim
from epp.flowcontrol.core import Blocked
from epp.flowcontrol.eviction import SLACK, InFlight
from epp.model import InferenceRequest

from .conftest import evicting, request


def in_flight(*priorities: int, lag: float = 0.5) -> tuple[InFlight[Victim], list[Victim]]:
    """Requests that were dispatched one second after another."""
    found: InFlight[Victim] = InFlight(evicting(), lag)
    victims = [Victim(request(priority=priority), float(at)) for at, priority in enumerate(priorities)]
    for victim in victims:
        found.add(victim)
    return found, victims


def test_the_least_urgent_and_newest_goes_first() -> None:
    found, victims = in_flight(-1, -3, -3, -2)
    assert found.make_room(Blocked(5, 9), 10.0) == [victims[2], victims[1]]
    assert found.make_room(Blocked(5, 9), 20.0) == [victims[3], victims[0]]
    assert found.make_room(Blocked(5, 9), 30.0) == []


def test_only_for_more_urgent_ones() -> None:
    found, victims = in_flight(-1, -5)
    assert found.make_room(Blocked(-5, 9), 10.0) == []
    assert found.make_room(Blocked(-1, 9), 10.0) == [victims[1]]


def test_no_more_than_wait() -> None:
    found, victims = in_flight(-1, -1, -1)
    assert found.make_room(Blocked(0, 1), 10.0) == [victims[2]]


def test_the_effect_is_waited_for() -> None:
    found, victims = in_flight(-1, -1, -1, -1, lag=0.5)
    assert len(found.make_room(Blocked(0, 9), 10.0)) == 2
    assert found.make_room(Blocked(0, 9), 10.4) == []
    assert len(found.make_room(Blocked(0, 9), 10.5)) == 2
    assert len(found) == 0
    assert victims


def test_one_after_the_other_is_as_many() -> None:
    """While the effect of one is waited for, a second one that waits is helped, and a third one is not."""
    found, victims = in_flight(-1, -1, -1, -1, lag=0.5)
    assert found.make_room(Blocked(0, 1), 10.0) == [victims[3]]
    assert found.make_room(Blocked(0, 1), 10.1) == []
    assert found.make_room(Blocked(0, 2), 10.2) == [victims[2]]
    assert found.make_room(Blocked(0, 3), 10.3) == []
    assert found.make_room(Blocked(0, 3), 10.5) == [victims[1], victims[0]]


def test_among_equals_the_newest() -> None:
    found: InFlight[Victim] = InFlight(evicting(), 0.0)
    victims = [Victim(request(priority=-1), 7.0) for _ in range(3)]
    for victim in victims:
        found.add(victim)
    assert found.make_room(Blocked(0, 9), 10.0) == [victims[2], victims[1]]


def test_what_must_not_be_given_up_is_not_remembered() -> None:
    found, victims = in_flight(0, 7)
    assert len(found) == 0
    found.remove(victims[0])
    found.remove(None)
    assert found.make_room(Blocked(9, 9), 10.0) == []


def test_what_has_ended_is_not_given_up() -> None:
    found, victims = in_flight(-1, -2)
    found.remove(victims[1])
    assert found.make_room(Blocked(0, 9), 10.0) == [victims[0]]


def test_dead_entries_do_not_pile_up() -> None:
    found, _ = in_flight(-1)
    for at in range(1000):
        victim = Victim(request(priority=-1), float(at))
        found.add(victim)
        found.remove(victim)
    assert len(found._heap) <= 2 + SLACK


class Broken(EvictionFilter, EvictionOrder):
    TYPE = "broken"

    def __init__(self, filter_: bool) -> None:
        self.name, self._filter = "broken", filter_

    def evictable(self, request: InferenceRequest) -> bool:
        if self._filter:
            raise RuntimeError("filter")
        return True

    def rank(self, victim: Victim) -> tuple[float, ...]:
        raise RuntimeError("order")


def test_plugins_that_fail_give_up_nobody() -> None:
    for filter_ in (True, False):
        broken = Broken(filter_)
        found: InFlight[Victim] = InFlight(EvictionOptions(broken, broken), 0.0)
        found.add(Victim(request(priority=-1), 0.0))
        assert len(found) == 0
