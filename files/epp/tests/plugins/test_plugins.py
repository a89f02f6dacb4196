# SPDX-License-Identifier: GPL-3.0-or-later
"""Each plugin's formula at its edges."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import pytest

from epp import plugins
from epp.datalayer import Datastore
from epp.model import Decision, Endpoint, EndpointMetrics, InferenceRequest
from epp.observe import Recorder
from epp.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer
from epp.plugins.prefix_cache_scorer import PrefixCacheScorer
from epp.scheduling import Filter, Picker, Plugin, PrefixMatch, SaturationDetector, Scorer


@dataclass
class World:
    """A Context with everything real."""

    datastore: Datastore = field(default_factory=Datastore)
    recorder: Recorder = field(default_factory=Recorder)
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    made: dict[str, Plugin] = field(default_factory=dict)

    def plugin(self, name: str) -> Plugin:
        return self.made[name]

    def of_type(self, plugin_type: str) -> Plugin:
        return self.made.setdefault(plugin_type, make(plugin_type, self))

    def adopt(self, plugin: Plugin) -> None:
        self.made[f"{plugin.name}/{plugin.TYPE}"] = plugin


def make(plugin_type: str, world: World | None = None, **parameters: Any) -> Any:
    cls = plugins.registry()[plugin_type]
    return cls(plugin_type, cls.PARAMETERS(**parameters), world or World())


def endpoints(*metrics: EndpointMetrics) -> list[Endpoint]:
    return [Endpoint(f"e{i}", "", f"p{i}", f"10.0.0.{i + 1}", 8000, metrics=each) for i, each in enumerate(metrics)]


def read(**values: Any) -> EndpointMetrics:
    return EndpointMetrics(updated_at=time.monotonic(), **values)


def ask(prompt: bytes = b"", **fields: Any) -> InferenceRequest:
    return InferenceRequest("id", fields.pop("headers", {}), prompt=prompt, **{"model": "m", **fields})


def test_registry_names_every_plugin_by_its_type() -> None:
    for name, cls in plugins.registry().items():
        assert name == cls.TYPE or name in cls.ALIASES
        if name == "priority-holdback-policy":
            continue  # which of its parameters must be given depends on the others
        if all(each.default is not MISSING or each.default_factory is not MISSING for each in fields(cls.PARAMETERS)):
            assert cls.PARAMETERS() == cls.PARAMETERS()


@pytest.mark.parametrize(
    ("plugin_type", "name"), [("queue-scorer", "waiting"), ("running-requests-size-scorer", "running")]
)
@pytest.mark.parametrize(
    ("counts", "scores"),
    [([0, 5, 10], [1.0, 0.5, 0.0]), ([3, 3, 3], [1.0, 1.0, 1.0]), ([7], [1.0]), ([0, 1], [1.0, 0.0]), ([], [])],
)
def test_fewest_first(plugin_type: str, name: str, counts: list[int], scores: list[float]) -> None:
    scorer: Scorer = make(plugin_type)
    assert scorer.score(ask(), endpoints(*[read(**{name: count}) for count in counts])) == scores


@pytest.mark.parametrize("usage", [0.0, 0.25, 1.0])
def test_kv_cache_utilization(usage: float) -> None:
    scorer: Scorer = make("kv-cache-utilization-scorer")
    assert scorer.score(ask(), endpoints(read(kv_cache_usage=usage))) == [1.0 - usage]


def test_requests_that_metrics_cannot_show_yet() -> None:
    queued, free = endpoints(read(waiting=2, running=8), read(running=3, block_size=16, num_blocks=100))
    queued.unseen, free.unseen, free.unseen_tokens = 4, 1, 800
    assert make("queue-scorer").score(ask(), [queued, free]) == [0.0, 1.0]
    assert make("running-requests-size-scorer").score(ask(), [queued, free]) == [0.0, 1.0]
    assert make("kv-cache-utilization-scorer").score(ask(), [queued, free]) == [1.0, 0.5]
    free.unseen_tokens = 10_000
    assert make("kv-cache-utilization-scorer").score(ask(), [free]) == [0.0]


def test_in_flight_stands_in_for_endpoints_without_metrics() -> None:
    busy, idle = endpoints(EndpointMetrics(), EndpointMetrics())
    busy.inflight = 3
    assert make("queue-scorer").score(ask(), [busy, idle]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("running", "waiting", "slots", "score"),
    [
        ({"a"}, set(), 1, 1.0),
        ({"a", "b"}, {"c"}, 2, 1.0),
        ({"b"}, set(), 2, 0.8),
        (set(), {"a"}, 2, 0.8),
        ({"b"}, {"a"}, 2, 0.6),
        ({"b", "c"}, set(), 2, 0.0),
        ({"b"}, {"b"}, 2, 0.8),  # vLLM names whoever runs as waiting, too
        (set(), set(), 0, 0.0),
    ],
)
def test_lora_affinity(running: set[str], waiting: set[str], slots: int, score: float) -> None:
    metrics = read(running_adapters=frozenset(running), waiting_adapters=frozenset(waiting), max_lora=slots)
    scorer: Scorer = make("lora-affinity-scorer")
    assert scorer.score(ask(model="base", target_model="a"), endpoints(metrics)) == [score]


def test_max_score_picker() -> None:
    pods = endpoints(read(), read(), read())
    picker: Picker = make("max-score-picker", max_num_of_endpoints=2)
    assert picker.pick(pods, [0.1, 0.9, 0.5]) == [pods[1], pods[2]]
    single: Picker = make("max-score-picker")
    pods[0].inflight = 9
    counted = Counter(single.pick(pods, [1.0, 1.0, 0.0])[0].name for _ in range(400))
    assert set(counted) == {"e0", "e1"}
    assert min(counted.values()) > 150, "equal scores: at random, whatever is in flight"
    many: Picker = make("max-score-picker", max_num_of_endpoints=9)
    firsts = Counter(many.pick(pods, [0.5, 0.1, 0.5])[0].name for _ in range(400))
    assert set(firsts) == {"e0", "e2"}
    assert min(firsts.values()) > 150
    assert many.pick(pods, [0.5, 0.1, 0.5])[2] is pods[1]


def test_random_pickers() -> None:
    pods = endpoints(read(), read(), read())
    picker: Picker = make("random-picker", max_num_of_endpoints=5)
    assert {each.name for each in picker.pick(pods, [0.0, 1.0, 9.0])} == {"e0", "e1", "e2"}
    uniform = Counter(make("random-picker").pick(pods, [0.0, 0.0, 9.0])[0].name for _ in range(1))
    assert sum(uniform.values()) == 1
    world = World()
    weighted: Picker = make("weighted-random-picker", world)
    counted = Counter(weighted.pick(pods, [3.0, 1.0, 0.0])[0].name for _ in range(4000))
    assert counted["e2"] == 0
    assert counted["e0"] / 4000 == pytest.approx(0.75, abs=0.04)
    zero = Counter(weighted.pick(pods, [0.0, 0.0, -1.0])[0].name for _ in range(900))
    assert min(zero.values()) > 200, "no score above 0: uniform"


def test_header_based_testing_filter() -> None:
    pods = [Endpoint(f"e{i}", "", "p", "10.0.0.1" if i < 2 else "10.0.0.2", 8000 + i) for i in range(3)]
    filter_: Filter = make("header-based-testing-filter")

    def names(header: str) -> list[str]:
        return [each.name for each in filter_.filter(ask(headers={"test-epp-endpoint-selection": header}), pods)]

    assert names("10.0.0.2:8002, 10.0.0.1") == ["e2", "e0", "e1"]
    assert names("10.0.0.1:8001,10.0.0.1") == ["e1", "e0"]
    assert names("10.0.0.9") == []
    assert filter_.filter(ask(), pods) == []


@pytest.mark.parametrize(
    ("readings", "saturation"),
    [
        ([], 1.0),
        ([{"waiting": 5}], 1.0),
        ([{"waiting": 10}, {}], 1.0),
        ([{"kv_cache_usage": 0.4}, {"waiting": 1}], 0.35),
        ([{}, {"age": None}], 0.5),
        ([{"age": 60}], 1.0),
        ([{"age": 60, "interval": 3600}], 0.0),
    ],
)
def test_utilization_detector(readings: list[dict[str, Any]], saturation: float) -> None:
    """``age`` is how many seconds ago the endpoint was read: just now unless given, None for never."""

    def metrics(age: float | None = 0, **values: Any) -> EndpointMetrics:
        return EndpointMetrics(updated_at=0.0 if age is None else time.monotonic() - age, **values)

    detector: SaturationDetector = make("utilization-detector")
    assert detector.saturation(endpoints(*(metrics(**each) for each in readings))) == pytest.approx(saturation)


def test_utilization_detector_as_a_filter() -> None:
    filter_: Filter = make("utilization-detector")
    pods = endpoints(read(waiting=9), read())
    assert filter_.filter(ask(), pods) == [pods[1]]
    assert filter_.filter(ask(), pods[:1]) == pods[:1], "all are full: all stay"
    roomy: Filter = make("utilization-detector", headroom=1.0)
    assert roomy.filter(ask(), pods) == pods


def send(world: World, producer: ApproxPrefixCacheProducer, prompt: bytes, to: Endpoint, **fields: Any) -> None:
    asked = ask(prompt, **fields)
    producer.produce(asked, list(world.datastore.endpoints()))
    producer.pre_request(asked, Decision((to,)))


def matched(world: World, producer: ApproxPrefixCacheProducer, prompt: bytes, **fields: Any) -> PrefixMatch:
    asked = ask(prompt, **fields)
    producer.produce(asked, list(world.datastore.endpoints()))
    match = producer.match(asked)
    assert match is not None
    return match


def test_prefix_producer_matches_whole_blocks_from_the_start() -> None:
    world = World()
    world.datastore.replace(endpoints(read(), read()))
    first, second = world.datastore.endpoints()
    producer: ApproxPrefixCacheProducer = make("approx-prefix-cache-producer", world)
    prompt = bytes(range(256)) * 4
    send(world, producer, prompt, first)
    assert matched(world, producer, prompt).blocks == {first: 4}
    assert matched(world, producer, prompt[:512] + b"!" + prompt[513:]).blocks == {first: 2}
    assert matched(world, producer, b"!" + prompt[1:]).blocks == {}
    assert matched(world, producer, prompt, model="other").blocks == {}, "another model has another cache"
    assert matched(world, producer, prompt, cache_salt="s").blocks == {}
    send(world, producer, prompt[:256], second)
    assert matched(world, producer, prompt).blocks == {first: 4, second: 1}
    world.datastore.replace([second])
    assert matched(world, producer, prompt).blocks == {second: 1}


def test_prefix_producer_takes_sizes_from_metrics() -> None:
    world = World()
    world.datastore.replace(endpoints(read(), read(block_size=128, num_blocks=2)))
    first, second = world.datastore.endpoints()
    producer: ApproxPrefixCacheProducer = make("approx-prefix-cache-producer", world, lru_capacity_per_server=3)
    prompt = bytes(range(256)) * 8
    match = matched(world, producer, prompt)
    assert (match.block_tokens, len(match.hashes)) == (128, 4)
    send(world, producer, prompt, second)
    assert matched(world, producer, prompt).blocks == {second: 2}, "its cache holds two blocks: the first two"
    send(world, producer, prompt, first)
    assert matched(world, producer, prompt).blocks[first] == 3
    untuned: ApproxPrefixCacheProducer = make("approx-prefix-cache-producer", world, auto_tune=False)
    assert matched(world, untuned, prompt).block_tokens == 64, "never less while tokens are estimated"


def test_prefix_producer_looks_at_a_bounded_part() -> None:
    world = World()
    tokens: ApproxPrefixCacheProducer = make("approx-prefix-cache-producer", world, max_prefix_tokens_to_match=128)
    assert len(matched(world, tokens, b"x" * 100_000).hashes) == 2
    blocks: ApproxPrefixCacheProducer = make("approx-prefix-cache-producer", world, max_prefix_blocks_to_match=3)
    assert len(matched(world, blocks, b"x" * 100_000).hashes) == 3
    assert matched(world, blocks, b"").hashes == []
    assert len(matched(world, blocks, b"x").hashes) == 1, "a short block counts"


def test_prefix_scorer_share_and_length() -> None:
    world = World()
    world.datastore.replace(endpoints(read(), read()))
    first, second = world.datastore.endpoints()
    share: PrefixCacheScorer = make("prefix-cache-scorer", world)
    producer = world.made["approx-prefix-cache-producer"]
    assert isinstance(producer, ApproxPrefixCacheProducer)
    prompt = bytes(range(256)) * 4
    send(world, producer, prompt[:512], first)
    asked = ask(prompt)
    producer.produce(asked, [first, second])
    assert share.score(asked, [first, second]) == [0.5, 0.0]
    mixed: PrefixCacheScorer = make(
        "prefix-cache-scorer", world, match_length_weight=0.5, match_length_scale_tokens=256
    )
    assert mixed.score(asked, [first, second]) == [0.5 * 0.25 + 0.5 * 0.5, 0.0]
    assert share.score(ask(), [first, second]) == [0.0, 0.0], "nobody has looked at this request"


def test_prefix_scorer_with_an_index_of_its_own() -> None:
    world = World()
    world.datastore.replace(endpoints(read(block_size=16, num_blocks=1000)))
    (pod,) = world.datastore.endpoints()
    scorer: PrefixCacheScorer = make("prefix-cache-scorer", world, block_size=8, auto_tune=False)
    (producer,) = world.made.values()
    assert isinstance(producer, ApproxPrefixCacheProducer)
    send(world, producer, b"0123456789abcdef", pod)
    asked = ask(b"01234567........")
    producer.produce(asked, [pod])
    assert scorer.score(asked, [pod]) == [0.5]
