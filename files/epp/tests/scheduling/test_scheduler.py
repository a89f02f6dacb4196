# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduling cycle, with real plugins where they do and plugins of its own where they must misbehave."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from epp import config, plugins
from epp.config import EndpointPickerConfig, PluginSpec, ProfileSpec
from epp.config.schema import ProfilePlugin
from epp.datalayer import Datastore
from epp.model import Decision, Endpoint, InferenceRequest, Rejection, Usage
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import (
    Admitter,
    Context,
    Filter,
    HeaderProcessor,
    Picker,
    Plugin,
    PluginError,
    PrefixMatch,
    Producer,
    Profile,
    ProfileHandler,
    RequestHook,
    ResponseHook,
    Scheduler,
    Scorer,
)
from epp.scheduling.api import PREFIX_MATCH, NoParameters
from epp.scheduling.scheduler import NO_ENDPOINTS


class ByName(Scorer):
    """Scores from ``scores``, by endpoint name."""

    TYPE = "by-name"
    scores: Mapping[str, float] = {}

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return [self.scores.get(endpoint.name, 0.0) for endpoint in endpoints]


class Broken(Scorer, Filter, Producer, RequestHook):
    """Fails wherever it can."""

    TYPE = "broken"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return [1.0]

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        raise RuntimeError("filter")

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        raise RuntimeError("producer")

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        raise RuntimeError("pre")

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        raise RuntimeError("post")


class Nothing(Filter):
    """Keeps nothing."""

    TYPE = "nothing"

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        return []


class TwoProfiles(ProfileHandler):
    """Runs ``prefill`` after ``decode``; the latter is the destination."""

    TYPE = "two"

    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        order = [profile for name in ("decode", "prefill") for profile in profiles if profile.name == name]
        return [profile for profile in order if profile.name not in results][:1]

    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        return "decode"


class Notes(RequestHook):
    """Remembers what it is told."""

    TYPE = "notes"

    def __init__(self, name: str, parameters: Any, context: Context) -> None:
        super().__init__(name, parameters, context)
        self.told: list[str] = []

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        self.told.append(f"pre {decision.endpoints[0].name}")

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        self.told.append(f"post {usage}")


class OverQuota(Rejection):
    """A kind of rejection that only its plugin knows."""


class Quota(Admitter, Producer):
    """Believes in half blocks, and refuses who asks for another model."""

    TYPE = "quota"

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        halves: Any = dict.fromkeys(endpoints, 2.5)
        request.attributes[f"{PREFIX_MATCH}/{self.name}"] = PrefixMatch(range(9), 16, halves)

    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        if request.model != "m":
            raise OverQuota(402, "PaymentRequired", "that is not what you pay for")
        return ""


OWN: tuple[type[Plugin], ...] = (ByName, Broken, Nothing, TwoProfiles, Notes, Quota)


def store(count: int = 3) -> Datastore:
    datastore = Datastore("pool")
    datastore.replace([Endpoint(f"e{i}", "ns", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(count)])
    return datastore


def build(
    profiles: Mapping[str, Mapping[str, float]], datastore: Datastore, handler: str = "", seed: int = 1
) -> Scheduler:
    """A scheduler of plugin types by profile, with weights."""
    registry = {**plugins.registry(), **{plugin.TYPE: plugin for plugin in OWN}}
    handler = handler or "single-profile-handler"
    types = {name for members in profiles.values() for name in members} | {handler, "utilization-detector"}
    cfg = EndpointPickerConfig(
        plugins=tuple(PluginSpec(name, name, registry[name].PARAMETERS()) for name in sorted(types)),
        profiles=tuple(
            ProfileSpec(name, tuple(ProfilePlugin(*member) for member in members.items()))
            for name, members in profiles.items()
        ),
        profile_handler=handler,
        saturation_detector="utilization-detector",
    )
    return Scheduler.from_config(cfg, registry, datastore, PoolRecorder(Recorder(), "pool"), seed)


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest("id", {}, **{"model": "m", **fields})


def test_weights_and_clamping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByName, "scores", {"e0": 7.0, "e1": 0.5, "e2": -3.0})
    datastore = store()
    decision = build({"default": {"by-name": 4.0, "max-score-picker": 1.0}}, datastore).schedule(
        request(), datastore.endpoints()
    )
    assert [endpoint.name for endpoint in decision.endpoints] == ["e0"]
    assert decision.scores == {"10.0.0.1:8000": 4.0, "10.0.0.2:8000": 2.0, "10.0.0.3:8000": 0.0}
    assert decision.profiles == {"default": decision.endpoints}


def test_a_score_that_is_no_number_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByName, "scores", {"e0": math.nan, "e1": 0.1, "e2": -math.inf})
    datastore = store()
    decision = build({"default": {"by-name": 1.0, "max-score-picker": 1.0}}, datastore).schedule(
        request(), datastore.endpoints()
    )
    assert decision.endpoints[0].name == "e1"


def test_broken_plugins_cost_their_own_part_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ByName, "scores", {"e1": 1.0})
    datastore = store()
    scheduler = build({"default": {"broken": 9.0, "by-name": 1.0, "max-score-picker": 1.0}}, datastore)
    for _ in range(3):
        asked = request()
        decision = scheduler.schedule(asked, datastore.endpoints())
        scheduler.pre_request(asked, decision)
        scheduler.response_complete(asked, decision, None)
        assert decision.endpoints[0].name == "e1"
        assert max(decision.scores.values()) == 1.0
    told = [record.message for record in caplog.records if "broken" in record.message]
    assert len(told) == len(set(told)) == 5, "each kind of failure once, not on every request"


def test_ties_are_random_and_a_seed_repeats_them() -> None:
    datastore = store(4)

    def names(seed: int) -> list[str]:
        scheduler = build({"default": {"queue-scorer": 1.0, "max-score-picker": 1.0}}, datastore, seed=seed)
        return [scheduler.schedule(request(), datastore.endpoints()).endpoints[0].name for _ in range(200)]

    first = names(7)
    assert names(7) == first
    assert names(8) != first
    assert min(first.count(f"e{i}") for i in range(4)) > 20


def test_no_candidates_is_503() -> None:
    datastore = store(0)
    scheduler = build({"default": {"max-score-picker": 1.0}}, datastore)
    with pytest.raises(Rejection) as caught:
        scheduler.schedule(request(), datastore.endpoints())
    rejection = caught.value
    assert (rejection.status, rejection.code, rejection.reason) == (503, "ServiceUnavailable", "rejected-no-endpoints")
    assert rejection.body() == f"inference error: ServiceUnavailable - {NO_ENDPOINTS}"


def test_filters_that_leave_nothing_are_429() -> None:
    datastore = store()
    scheduler = build({"default": {"nothing": 1.0, "max-score-picker": 1.0}}, datastore)
    with pytest.raises(Rejection) as caught:
        scheduler.schedule(request(), datastore.endpoints())
    assert (caught.value.status, caught.value.reason) == (429, "rejected-saturated")
    assert "failed to find target endpoint" in caught.value.message


def test_what_plugins_make_of_the_models_types() -> None:
    """Whatever number there is, and exceptions of their own: compiled code is choosy about types."""
    datastore = store()
    scheduler = build({"default": {"quota": 1.0, "max-score-picker": 1.0}}, datastore)
    asked = request(prompt_tokens=100)
    decision = scheduler.schedule(asked, datastore.endpoints())
    assert decision.cached
    assert [charge.prompt_tokens for charge in decision.charges] == [60]
    with pytest.raises(OverQuota, match="not what you pay for"):
        scheduler.schedule(request(model="other"), datastore.endpoints())


def fill(datastore: Datastore, waiting: int, kv: float) -> None:
    for endpoint in datastore.endpoints():
        endpoint.metrics.waiting, endpoint.metrics.kv_cache_usage = waiting, kv
        endpoint.metrics.updated_at = time.monotonic()


def test_sheddable_requests_are_shed_when_the_pool_is_full() -> None:
    datastore = store()
    scheduler = build({"default": {"max-score-picker": 1.0}}, datastore)
    fill(datastore, waiting=4, kv=0.7)
    assert scheduler.schedule(request(priority=-1), datastore.endpoints())
    fill(datastore, waiting=5, kv=0.0)
    assert scheduler.schedule(request(priority=0), datastore.endpoints()), "others are never shed"
    with pytest.raises(Rejection) as caught:
        scheduler.schedule(request(priority=-1), datastore.endpoints())
    assert (caught.value.status, caught.value.code) == (429, "ResourceExhausted")
    assert caught.value.message == "system saturated, sheddable request dropped"
    assert caught.value.reason == "rejected-saturated"


def test_an_empty_pool_sheds_sheddable_requests() -> None:
    datastore = store(0)
    with pytest.raises(Rejection) as caught:
        build({"default": {"max-score-picker": 1.0}}, datastore).schedule(request(priority=-5), ())
    assert caught.value.status == 429


def test_endpoints_known_to_be_gone_get_nothing() -> None:
    datastore = store(3)
    scheduler = build({"default": {"max-score-picker": 1.0}}, datastore)
    first, second, third = datastore.endpoints()
    first.metrics.updated_at, second.unmetered, third.metrics.updated_at = 1.0, True, 1.0
    first.refused = second.refused = True
    picked = {scheduler.schedule(request(), datastore.endpoints()).endpoints[0].name for _ in range(30)}
    assert picked == {third.name}
    third.refused = True
    with pytest.raises(Rejection) as refusal:
        scheduler.schedule(request(), datastore.endpoints())
    assert (refusal.value.status, refusal.value.reason) == (503, "rejected-no-endpoints")


def test_endpoints_that_refuse_and_were_never_read_are_the_last_resort() -> None:
    datastore = store(3)
    scheduler = build({"default": {"max-score-picker": 1.0}}, datastore)
    first, second, third = datastore.endpoints()
    first.metrics.updated_at = 1.0
    second.refused = third.refused = True
    assert {scheduler.schedule(request(), datastore.endpoints()).endpoints[0].name for _ in range(30)} == {first.name}
    assert scheduler.schedule(request(), [third]).endpoints[0].name == third.name
    first.refused = True
    picked = {scheduler.schedule(request(), datastore.endpoints()).endpoints[0].name for _ in range(30)}
    assert picked == {second.name, third.name}


def test_several_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByName, "scores", {"e2": 1.0})
    datastore = store()
    profiles = {"prefill": {"random-picker": 1.0}, "decode": {"by-name": 1.0, "max-score-picker": 1.0}}
    decision = build(profiles, datastore, "two").schedule(request(), datastore.endpoints())
    assert decision.endpoints[0].name == "e2"
    assert set(decision.profiles) == {"decode", "prefill"}
    failing = {"prefill": {"nothing": 1.0, "max-score-picker": 1.0}, "decode": {"max-score-picker": 1.0}}
    decision = build(failing, datastore, "two").schedule(request(), datastore.endpoints())
    assert set(decision.profiles) == {"decode"}, "a profile that is not primary may fail"


def test_hooks_follow_the_request() -> None:
    datastore = store(1)
    scheduler = build({"default": {"max-score-picker": 1.0, "notes": 1.0}}, datastore)
    (notes,) = [hook for hook, _ in scheduler._hooks if isinstance(hook, Notes)]
    asked = request(prompt=b"x" * 400)
    decision = scheduler.schedule(asked, datastore.endpoints())
    scheduler.pre_request(asked, decision)
    assert datastore.endpoints()[0].unseen_tokens == 100
    scheduler.response_complete(asked, decision, Usage(1, 2, 3))
    assert notes.told == ["pre e0", f"post {Usage(1, 2, 3)}"]


def run(scheduler: Scheduler, datastore: Datastore, prompt: bytes) -> Endpoint:
    """One request that stays in flight."""
    asked = request(prompt=prompt)
    decision = scheduler.schedule(asked, datastore.endpoints())
    datastore.acquire(decision.endpoints[0])
    scheduler.pre_request(asked, decision)
    return decision.endpoints[0]


def test_a_shared_prefix_stays_together_and_distinct_prompts_spread() -> None:
    datastore = store(4)
    scheduler = Scheduler.from_config(
        config.default(), plugins.registry(), datastore, PoolRecorder(Recorder(), "pool"), seed=3
    )
    shared = [run(scheduler, datastore, b"system prompt " * 200 + b"%d " % i * 20).name for i in range(200)]
    assert max(shared.count(name) for name in set(shared)) > 190
    datastore = store(4)
    fill(datastore, waiting=0, kv=0.0)
    scheduler = Scheduler.from_config(
        config.default(), plugins.registry(), datastore, PoolRecorder(Recorder(), "pool"), seed=3
    )
    spread = [run(scheduler, datastore, b"%d " % i * 300).name for i in range(200)]
    assert [spread.count(f"e{i}") for i in range(4)] == [50, 50, 50, 50], "between two readings, too"


def test_plugins_that_need_each_other_in_a_circle() -> None:
    class Circle(Plugin):
        TYPE = "circle"

        def __init__(self, name: str, parameters: Any, context: Context) -> None:
            super().__init__(name, parameters, context)
            context.plugin("a" if name == "b" else "b")

    registry = {**plugins.registry(), "circle": Circle}
    cfg = EndpointPickerConfig(
        plugins=(PluginSpec("a", "circle", NoParameters()), PluginSpec("b", "circle", NoParameters())),
        profiles=(),
        profile_handler="",
        saturation_detector="",
    )
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        Scheduler.from_config(cfg, registry, store(), PoolRecorder(Recorder(), "pool"))


class Misfits(Scorer, Filter, Picker, HeaderProcessor, ResponseHook):
    """Returns what makes no sense, as ``mode`` says."""

    TYPE = "misfits"
    mode = ""

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        return [0.5, None, 0.5][: len(endpoints)] if self.mode == "score" else [0.0] * len(endpoints)  # type: ignore[list-item]

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        if self.mode == "none":
            return None  # type: ignore[return-value]
        return tuple(endpoints[1:]) if self.mode == "tuple" else endpoints  # type: ignore[return-value]

    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        if self.mode == "score":
            return [endpoints[scores.index(max(scores))]]
        return [] if self.mode == "pick" else endpoints[:1]

    def request_headers(self, request: InferenceRequest) -> None:
        raise RuntimeError("headers")

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        raise RuntimeError("response")


@pytest.mark.parametrize(
    ("mode", "told", "chosen"),
    [
        ("score", "its scores count as 0", "e2"),
        ("none", "its filtering is skipped", "e0"),
        ("tuple", "", "e1"),
        ("pick", "the best-rated endpoint is taken", "e2"),
    ],
)
def test_plugins_that_return_nonsense(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, told: str, chosen: str
) -> None:
    monkeypatch.setattr(Misfits, "mode", mode)
    monkeypatch.setattr(ByName, "scores", {"e2": 1.0})
    members = {"misfits": 1.0, "by-name": 1.0}
    datastore = store()
    registry = {**plugins.registry(), "misfits": Misfits, "by-name": ByName}
    names = ["misfits", "by-name", "single-profile-handler", "utilization-detector"]
    cfg = EndpointPickerConfig(
        plugins=tuple(PluginSpec(name, name, registry[name].PARAMETERS()) for name in names),
        profiles=(ProfileSpec("default", tuple(ProfilePlugin(*member) for member in members.items())),),
        profile_handler="single-profile-handler",
        saturation_detector="utilization-detector",
    )
    scheduler = Scheduler.from_config(cfg, registry, datastore, PoolRecorder(Recorder(), "pool"), 1)
    asked = request()
    scheduler.request_headers(asked)
    decision = scheduler.schedule(asked, datastore.endpoints())
    assert decision.endpoints[0].name == chosen
    assert told in caplog.text
    assert scheduler.response_received("", asked, decision) == {}
    assert "the request goes on without it" in caplog.text
    assert "the answer goes on without it" in caplog.text
    with pytest.raises(KeyError):
        decision.scores["10.9.9.9:1"]


def test_names_that_do_not_exist() -> None:
    scheduler = build({"default": {"max-score-picker": 1.0}}, store())
    with pytest.raises(PluginError, match="no plugin is named 'nobody'; add it"):
        scheduler.plugin("nobody")
