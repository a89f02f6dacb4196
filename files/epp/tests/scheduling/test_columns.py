# SPDX-License-Identifier: GPL-3.0-or-later
"""In a large pool, scores in arrays lead to what the same scores in lists would."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp import plugins
from epp.config import EndpointPickerConfig, PluginSpec, ProfileSpec
from epp.config.schema import ProfilePlugin
from epp.datalayer import Datastore
from epp.datalayer.known import Column, Known
from epp.datalayer.store import LARGE
from epp.model import Endpoint, EndpointMetrics, InferenceRequest
from epp.observe import PoolRecorder, Recorder
from epp.plugins.max_score_picker import MaxScorePicker
from epp.plugins.prefix_cache_scorer import PrefixCacheScorer
from epp.plugins.queue_scorer import QueueScorer
from epp.scheduling import Filter, Plugin, PrefixMatch, Scheduler, Scorer

RECORDER = PoolRecorder(Recorder(), "pool")
COUNT = LARGE + 6


class Given(Scorer):
    """Says what the request's attributes have for it, in an array where it can."""

    TYPE = "given"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return list(self._given(request))

    def column(self, request: InferenceRequest, endpoints: Known) -> Column | None:
        return np.array(self._given(request))

    def _given(self, request: InferenceRequest) -> list[float]:
        given = request.attributes[self.name]
        assert isinstance(given, list)
        return given


class OnlyLists(Given):
    """The same, but somebody has written another ``score`` that the array knows nothing of."""

    TYPE = "only-lists"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return list(self._given(request))


class Turned(QueueScorer):
    """Somebody's own: prefers long queues."""

    TYPE = "turned"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return [1.0 - score for score in super().score(request, endpoints)]


class Worst(MaxScorePicker):
    """Somebody's own: takes the worst."""

    TYPE = "worst"

    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        assert isinstance(scores, list)
        return [endpoints[scores.index(min(scores))]]


class Raises(Scorer):
    """Fails."""

    TYPE = "raises"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        raise RuntimeError("no list")

    def column(self, request: InferenceRequest, endpoints: Known) -> Column:
        raise RuntimeError("no array")


class Backwards(Filter):
    """Another order, and one less."""

    TYPE = "backwards"

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        return endpoints[:0:-1]


OWN: tuple[type[Plugin], ...] = (Given, OnlyLists, Turned, Worst, Raises, Backwards)


def store() -> Datastore:
    datastore = Datastore("pool")
    datastore.replace([Endpoint(f"e{n}", "ns", f"p{n}", f"10.0.0.{n + 1}", 8000) for n in range(COUNT)])
    return datastore


def scheduler(
    members: Sequence[tuple[str, str, float]], datastore: Datastore, picker: str = "max-score-picker"
) -> Scheduler:
    """One profile of plugins by name, type and weight."""
    registry = {**plugins.registry(), **{each.TYPE: each for each in OWN}}
    types = {name: kind for name, kind, _ in members}
    types |= {name: name for name in (picker, "single-profile-handler", "utilization-detector")}
    if "prefix-cache-scorer" in types.values():
        types["approx-prefix-cache-producer"] = "approx-prefix-cache-producer"
    profile = [ProfilePlugin(name, weight) for name, _, weight in members] + [ProfilePlugin(picker)]
    cfg = EndpointPickerConfig(
        plugins=tuple(PluginSpec(name, kind, registry[kind].PARAMETERS()) for name, kind in types.items()),
        profiles=(ProfileSpec("default", tuple(profile)),),
        profile_handler="single-profile-handler",
        saturation_detector="utilization-detector",
    )
    return Scheduler.from_config(cfg, registry, datastore, RECORDER, 1)


def ask(prompt: bytes = b"", **attributes: Any) -> InferenceRequest:
    request = InferenceRequest("id", {}, model="m", prompt=prompt)
    request.attributes.update(attributes)
    return request


def cut(score: float) -> float:
    """What a score counts as."""
    return 0.0 if math.isnan(score) else min(max(score, 0.0), 1.0)


SCORES = st.lists(
    st.one_of(st.floats(-0.5, 1.5), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf])),
    min_size=COUNT,
    max_size=COUNT,
)


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES, st.floats(0, 10), st.floats(0, 10))
def test_arrays_and_lists_come_to_the_same(one: list[float], two: list[float], first: float, second: float) -> None:
    expected = [first * cut(a) + second * cut(b) for a, b in zip(one, two, strict=True)]
    for kinds in (("given", "given"), ("given", "only-lists"), ("only-lists", "only-lists")):
        datastore = store()
        members = [("one", kinds[0], first), ("two", kinds[1], second)]
        decision = scheduler(members, datastore).schedule(ask(one=one, two=two), datastore.endpoints())
        names = [each.hostport for each in datastore.endpoints()]
        assert [decision.scores[name] for name in names] == pytest.approx(expected)
        assert decision.scores[decision.endpoints[0].hostport] == pytest.approx(max(expected))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_the_usual_scorers_agree_with_themselves(seed: int) -> None:
    chance, datastore = random.Random(seed), store()
    for endpoint in datastore.endpoints():
        metrics = EndpointMetrics(chance.randrange(3), 1, chance.random(), 16, 1000)
        metrics.updated_at = 1.0
        datastore.observed(endpoint, metrics, 1.0)
    usual = ("queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer")
    picker = scheduler([(name, name, 1.0 + place) for place, name in enumerate(usual)], datastore)
    prompts = [bytes(f"{number} {'x' * 3000}", "ascii") for number in range(3)]
    for _ in range(30):
        asked = ask(chance.choice(prompts))
        decision = picker.schedule(asked, datastore.endpoints())
        # A list of the caller's own has no arrays behind it.
        same = picker.schedule(ask(asked.prompt), list(datastore.endpoints()))
        assert dict(decision.scores) == pytest.approx(dict(same.scores))
        best = max(same.scores.values())
        assert decision.scores[decision.endpoints[0].hostport] == pytest.approx(best)
        picker.pre_request(asked, decision)
        datastore.hold(decision.charges)


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.integers(0, COUNT - 1), st.integers(1, 40)), st.sampled_from([0.0, 0.3, 1.0]))
def test_prefixes_are_rated_alike(held: dict[int, int], weight: float) -> None:
    datastore = store()
    endpoints = datastore.standing()
    assert isinstance(endpoints, Known)
    built = scheduler([("prefix-cache-scorer", "prefix-cache-scorer", 1.0)], datastore)
    scorer = built.plugin("prefix-cache-scorer")
    assert isinstance(scorer, PrefixCacheScorer)
    scorer._weight = weight
    blocks = {endpoints[place]: count for place, count in held.items()}
    request = ask(**{"prefix-match/approx-prefix-cache-producer": PrefixMatch(range(40), 64, blocks)})
    assert scorer.column(request, endpoints).tolist() == pytest.approx(scorer.score(request, list(endpoints)))


def test_ties_are_dealt_out() -> None:
    datastore = store()
    picker = scheduler([("one", "given", 1.0)], datastore)
    scores = [1.0] * 10 + [0.5] * (COUNT - 10)
    chosen = {picker.schedule(ask(one=scores), datastore.endpoints()).endpoints[0].name for _ in range(300)}
    assert chosen == {f"e{number}" for number in range(10)}


def test_a_plugin_of_ones_own_is_asked_for_lists() -> None:
    datastore = store()
    busy = datastore.endpoints()[7]
    datastore.observed(busy, EndpointMetrics(5, 1, 0.1, updated_at=1.0), 1.0)
    for endpoint in datastore.endpoints():
        if endpoint is not busy:
            datastore.observed(endpoint, EndpointMetrics(1, 1, 0.1, updated_at=1.0), 1.0)
    assert scheduler([("turned", "turned", 1.0)], datastore).schedule(ask(), datastore.endpoints()).endpoints[0] is busy
    worst = scheduler([("queue-scorer", "queue-scorer", 1.0)], datastore, "worst")
    assert worst.schedule(ask(), datastore.endpoints()).endpoints[0] is busy
    # Nor do arrays survive a filter: places in them are those of the whole pool.
    kept = [("backwards", "backwards", 0.0), ("turned", "turned", 1.0), ("queue-scorer", "queue-scorer", 0.1)]
    assert scheduler(kept, datastore).schedule(ask(), datastore.endpoints()).endpoints[0] is busy


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([1.0] * (COUNT - 1), "scores of shape"),
        ([[1.0]] * COUNT, "scores of shape"),
        (["x"] * COUNT, "could not convert"),
    ],
)
def test_nonsense_counts_as_nothing(scores: list[Any], complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    datastore = store()
    good = [0.0] * COUNT
    good[3] = 0.5
    picker = scheduler([("one", "given", 9.0), ("two", "given", 1.0), ("raises", "raises", 9.0)], datastore)
    with caplog.at_level(logging.ERROR):
        decision = picker.schedule(ask(one=scores, two=good), datastore.endpoints())
    assert decision.endpoints[0].name == "e3"
    assert decision.scores[decision.endpoints[0].hostport] == 0.5
    assert complaint in caplog.text
    assert "no array" in caplog.text
