# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow control with real policies and a clock that stands still unless it is told to go on."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp import plugins
from epp.datalayer import Datastore
from epp.flowcontrol.api import BandOptions, EvictionOptions, Options
from epp.flowcontrol.core import FlowControl
from epp.flowcontrol.outcomes import Outcome
from epp.flowcontrol.queue import FlowKey, Item
from epp.model import InferenceRequest
from epp.observe import Recorder
from epp.scheduling import Plugin

NUMBERS = itertools.count()


@dataclass
class Context:
    """What plugins are given."""

    datastore: Datastore = field(default_factory=Datastore)
    recorder: Recorder = field(default_factory=Recorder)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def plugin(self, name: str) -> Plugin:
        raise AssertionError(name)

    of_type = plugin

    def adopt(self, plugin: Plugin) -> None:
        raise AssertionError(plugin)


def policy(plugin_type: str, **parameters: Any) -> Any:
    """A plugin of that type."""
    cls = plugins.registry()[plugin_type]
    return cls(plugin_type, cls.PARAMETERS(**parameters), Context())


def band(fairness: Any = "global-strict-fairness-policy", ordering: Any = "fcfs-ordering-policy", **limits: int) -> Any:
    """Options of a band; policies by type or as they are."""
    fairness = policy(fairness) if isinstance(fairness, str) else fairness
    ordering = policy(ordering) if isinstance(ordering, str) else ordering
    return BandOptions(fairness, ordering, **limits)


def options(default: BandOptions | None = None, **more: Any) -> Options:
    """Options of which only what matters is given."""
    usage = more.pop("usage_limit", None) or policy("static-usage-limit-policy")
    return Options(default or band(), usage, **more)


def evicting() -> EvictionOptions:
    """The reference's eviction."""
    return EvictionOptions(policy("sheddable-eviction-filter"), policy("priority-then-time-eviction-order-policy"))


def request(flow: str = "default-flow", priority: int = 0, size: int = 100, **headers: str) -> InferenceRequest:
    """A request; its id is a number that no other has."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return InferenceRequest(
        str(next(NUMBERS)), names, model="m", target_model="m", size=size, fairness_id=flow, priority=priority
    )


@dataclass
class World:
    """A queue, its clock, and what it has been told to forget."""

    options: Options = field(default_factory=options)
    now: float = 1000.0
    gone: list[FlowKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = FlowControl(self.options, self.now, self.gone.append)
        self.core.pool(False, self.now)

    def put(self, flow: str = "default-flow", priority: int = 0, size: int = 100, **headers: str) -> Item:
        """A request comes; it may have been refused."""
        asked = request(flow, priority, size, **headers)
        item = Item(asked, size, self.now, self.core.deadline(self.now))
        self.core.enqueue(item, self.now)
        return item

    def take(self, saturation: float = 0.0) -> Item | None:
        """Who goes now."""
        return self.core.next(saturation, self.now)

    def all(self, saturation: float = 0.0) -> list[Item]:
        """Everybody who goes, one after the other."""
        return list(iter(lambda: self.take(saturation), None))

    def flows(self, saturation: float = 0.0) -> list[str]:
        """The same, by their flows."""
        return [item.request.fairness_id for item in self.all(saturation)]

    def expire(self, seconds: float) -> list[Outcome | None]:
        """Time passes; the outcomes of those whose time is over."""
        self.now += seconds
        return [item.outcome for item in self.core.expire(self.now)]

    def check_empty(self) -> None:
        """Nothing is counted any more."""
        assert (self.core.requests, self.core.bytes) == (0, 0)
        for each in self.core.bands:
            assert (each.requests, each.bytes) == (0, 0)
            for flow in each.flows.values():
                assert (flow.requests, flow.bytes, flow.head) == (0, 0, None)


@pytest.fixture
def world() -> World:
    return World()
