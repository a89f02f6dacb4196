# SPDX-License-Identifier: GPL-3.0-or-later
"""Saturation detectors: their formulas at the edges, as detectors and as filters."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp import plugins
from epp.datalayer import Datastore
from epp.model import Endpoint, EndpointMetrics, InferenceRequest
from epp.observe import Recorder
from epp.scheduling import Plugin

REQUEST = InferenceRequest("id", {}, model="m")


@dataclass
class World:
    """A Context with everything real."""

    datastore: Datastore = field(default_factory=Datastore)
    recorder: Recorder = field(default_factory=Recorder)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def plugin(self, name: str) -> Plugin:
        raise AssertionError(name)

    of_type = plugin

    def adopt(self, plugin: Plugin) -> None:
        raise AssertionError(plugin)


def make(plugin_type: str, **parameters: Any) -> Any:
    cls = plugins.registry()[plugin_type]
    return cls(plugin_type, cls.PARAMETERS(**parameters), World())


def endpoint(*, age: float | None = 0.0, inflight: int = 0, tokens: int = 0, unseen: int = 0, **read: Any) -> Endpoint:
    """One that was read ``age`` seconds ago; None for never."""
    at = 0.0 if age is None else time.monotonic() - age
    found = Endpoint("e", "", "p", "10.0.0.1", 8000, metrics=EndpointMetrics(updated_at=at, **read))
    found.inflight, found.inflight_tokens, found.unseen = inflight, tokens, unseen
    return found


class TestUtilization:
    @pytest.mark.parametrize(
        ("policy", "saturation", "pressure"), [(None, 0.75, 0.5), ("saturated", 0.75, 0.75), ("ignore", 0.5, 0.5)]
    )
    @pytest.mark.parametrize("age", [None, 9.0])
    def test_staleness_policy(self, policy: str | None, saturation: float, pressure: float, age: float | None) -> None:
        """Left out, shedding counts a stale endpoint as full, and flow control leaves it out of the mean."""
        detector = make("utilization-detector", staleness_policy=policy)
        pool = [endpoint(kv_cache_usage=0.4), endpoint(age=age)]
        assert detector.saturation(pool) == pytest.approx(saturation)
        assert detector.pressure(pool) == pytest.approx(pressure)
        assert detector.stale(pool) == 1

    def test_all_stale(self) -> None:
        pool = [endpoint(age=9.0), endpoint(age=None)]
        detector = make("utilization-detector")
        assert (detector.saturation(pool), detector.pressure(pool), detector.stale(pool)) == (1.0, 0.0, 2)
        assert make("utilization-detector", staleness_policy="saturated").pressure(pool) == 1.0

    def test_an_empty_pool_is_full(self) -> None:
        detector = make("utilization-detector")
        assert (detector.saturation([]), detector.pressure([]), detector.stale([])) == (1.0, 1.0, 0)

    @pytest.mark.parametrize(
        ("inflight", "unseen", "waiting", "running", "pressure"),
        [
            (0, 0, 0, 0, 0.0),
            (3, 3, 0, 0, 0.6),  # sent since the last reading: they count
            (5, 5, 0, 0, 1.0),
            (9, 4, 0, 5, 0.8),
            (5, 0, 0, 5, 0.0),  # the reading has seen them
            (8, 0, 0, 0, 0.0),  # a page without running requests: nothing was sent since
            (7, 5, 2, 3, 0.8),  # two wait, two more are beyond what the reading says
            (1, 1, 4, 9, 0.8),  # others use the engine, too
        ],
    )
    def test_what_was_sent_since_the_last_reading(
        self, inflight: int, unseen: int, waiting: int, running: int, pressure: float
    ) -> None:
        detector = make("utilization-detector")
        pool = [endpoint(inflight=inflight, unseen=unseen, waiting=waiting, running=running)]
        assert detector.pressure(pool) == pytest.approx(pressure)

    def test_stale_endpoints_do_not_pass_the_filter(self) -> None:
        filter_ = make("utilization-detector", headroom=0.5)
        fresh, stale = endpoint(waiting=6), endpoint(age=9.0)
        assert filter_.filter(REQUEST, [stale, fresh]) == [fresh]
        assert filter_.filter(REQUEST, [stale]) == [stale], "rather all than none"


class TestConcurrency:
    @pytest.mark.parametrize(
        ("mode", "saturation"),
        [("requests", (10 + 30) / 200), ("tokens", (900 + 100) / 2000), ("hybrid", (0.9 + 0.3) / 2)],
    )
    def test_modes(self, mode: str, saturation: float) -> None:
        detector = make("concurrency-detector", concurrency_mode=mode, max_token_concurrency=1000)
        pool = [endpoint(inflight=10, tokens=900, age=None), endpoint(inflight=30, tokens=100, waiting=99)]
        assert detector.saturation(pool) == detector.pressure(pool) == pytest.approx(saturation)

    def test_defaults(self) -> None:
        detector = make("concurrency-detector")
        assert detector.saturation([endpoint(inflight=100)]) == 1.0
        assert detector.saturation([endpoint(inflight=250)]) == 2.5
        assert make("concurrency-detector", concurrency_mode="tokens").saturation([endpoint(tokens=500_000)]) == 0.5

    def test_an_empty_pool_is_full(self) -> None:
        assert make("concurrency-detector").saturation([]) == 1.0

    def test_nothing_is_ever_stale(self) -> None:
        assert make("concurrency-detector").stale([endpoint(age=None)]) == 0

    @pytest.mark.parametrize(("headroom", "kept"), [(0.0, [0]), (0.2, [0, 1]), (0.3, [0, 1, 2])])
    def test_as_a_filter(self, headroom: float, kept: list[int]) -> None:
        filter_ = make("concurrency-detector", max_concurrency=10, headroom=headroom)
        pool = [endpoint(inflight=count) for count in (9, 11, 12)]
        assert filter_.filter(REQUEST, pool) == [pool[index] for index in kept]

    def test_the_filter_fails_open(self) -> None:
        pool = [endpoint(inflight=100), endpoint(inflight=200)]
        assert make("concurrency-detector").filter(REQUEST, pool) == pool

    def test_hybrid_as_a_filter(self) -> None:
        filter_ = make(
            "concurrency-detector", concurrency_mode="hybrid", max_concurrency=10, max_token_concurrency=1000
        )
        pool = [endpoint(inflight=1, tokens=1000), endpoint(inflight=10, tokens=1), endpoint(inflight=9, tokens=999)]
        assert filter_.filter(REQUEST, pool) == [pool[2]]
