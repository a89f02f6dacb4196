# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that weigh load: what is in flight, queues, caches, figures of one's own."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, Talk, completion, destinations, fresh, refuse, route, served, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool

pytestmark = pytest.mark.differs(go="plugins of later versions")

Pickers = Callable[[str], Picker]


def one(kind: str, parameters: str = "{}", *more: str) -> str:
    """A configuration with one plugin, and perhaps others."""
    return "plugins:\n" + "".join(f"- {each}\n" for each in (f"{{type: {kind}, parameters: {parameters}}}", *more))


@contextlib.contextmanager
def in_flight(found: Picker, *bodies: bytes, **more: Any) -> Iterator[list[Talk]]:
    """Requests whose answers have not begun."""
    with contextlib.ExitStack() as stack:
        talks = []
        for body in bodies:
            each = stack.enter_context(talk(found))
            each.ask(body, **more)
            talks.append(each)
        yield talks


def where(each: Talk) -> str:
    """Where a request went."""
    assert isinstance(each.outcome, Routed)
    return each.outcome.destination


def goes_to(found: Picker, wanted: set[str], make: Callable[[], bytes] = fresh, **more: Any) -> bool:
    """Wait until requests go to just these endpoints."""
    times = 8 if len(wanted) == 1 else 40
    eventually(lambda: destinations(found, times, make, **more), lambda seen: seen == wanted)
    return True


def long_prompt(size: int = 40_000) -> bytes:
    """One that nobody knows, of some 10 000 tokens."""
    return fresh()[:-2] + b"w" * size + b'"}'


class TestActiveRequests:
    CONFIG = one("active-request-scorer")

    def test_given_back_when_the_client_leaves(self, configured: Pickers, pool: Pool) -> None:
        """A client that leaves gives its engine back."""
        found = configured(self.CONFIG)
        with in_flight(found, fresh()) as (busy,):
            left = set(pool.hostports) - {where(busy)}
            assert goes_to(found, left)
        assert goes_to(found, set(pool.hostports))

    def test_given_back_when_the_answer_ends(self, configured: Pickers, pool: Pool) -> None:
        """So does an answer that has ended, while its stream is still open."""
        found = configured(self.CONFIG)
        with in_flight(found, fresh()) as (busy,):
            busy.answer(b"{}")
            assert goes_to(found, set(pool.hostports))

    def test_an_idle_threshold(self, configured: Pickers, pool: Pool) -> None:
        """idleThreshold: an engine with so many requests is as good as one with none."""
        # At random by score, since a picker of the best may look at requests in flight itself.
        found = configured(one("active-request-scorer", "{idleThreshold: 1}", "type: weighted-random-picker"))
        with in_flight(found, fresh(), hint=[pool.hostports[0]]):
            assert goes_to(found, set(pool.hostports))

    def test_more_than_the_threshold(self, configured: Pickers, pool: Pool) -> None:
        """With one more it is busy."""
        # At random by score, since a picker of the best may look at requests in flight itself.
        found = configured(one("active-request-scorer", "{idleThreshold: 1}", "type: weighted-random-picker"))
        with in_flight(found, fresh(), fresh(), hint=[pool.hostports[0]]):
            assert goes_to(found, set(pool.hostports[1:]))

    @pytest.mark.parametrize(("busy", "best"), [(1.0, 0), (0.2, 1)])
    def test_a_gap_between_busy_and_idle(self, configured: Pickers, pool: Pool, busy: float, best: int) -> None:
        """maxBusyScore: how good the least busy engine is beside an idle one."""
        # Engine 0 has 1 request of at most 4 and an empty cache; engine 1 is idle, its cache nearly half full.
        scorers = one("active-request-scorer", f"{{maxBusyScore: {busy}}}", "type: kv-cache-utilization-scorer")
        found = configured(scorers)
        pool.show({"kv": 0.0}, {"kv": 0.4}, {"kv": 0.9})
        first, _, last = pool.hostports
        with in_flight(found, fresh(), hint=[first]), in_flight(found, *(fresh() for _ in range(4)), hint=[last]):
            assert goes_to(found, {pool.hostports[best]})


class TestTokenLoad:
    CONFIG = one("token-load-scorer", "{queueThresholdTokens: 100000}")

    def test_a_long_prompt_weighs_more_than_two_short_ones(self, configured: Pickers, pool: Pool) -> None:
        """Tokens count, not requests."""
        found = configured(self.CONFIG)
        first, second, third = pool.hostports
        with (
            in_flight(found, long_prompt(), hint=[first]),
            in_flight(found, fresh(), fresh(), hint=[second]),
            in_flight(found, long_prompt(), hint=[third]),
        ):
            assert goes_to(found, {second})

    FULL = one("token-load-scorer", "{queueThresholdTokens: 5000}", "type: weighted-random-picker")
    """A long prompt fills an engine, which then gets no more."""

    def test_a_stream_that_has_begun(self, configured: Pickers, pool: Pool) -> None:
        """With the first token of a streamed answer its prompt is computed, and weighs no more. Headers say nothing of
        it: engines send them as soon as they have understood the request."""
        found = configured(self.FULL)
        body = completion("w" * 40_000, stream=True)
        with in_flight(found, body, hint=[pool.hostports[0]]) as (busy,):
            assert goes_to(found, set(pool.hostports[1:]))
            busy.stream.send(wire.response_headers(200, wire.EVENTS))
            busy.stream.receive()
            assert goes_to(found, set(pool.hostports[1:]))
            busy.stream.send(wire.response_body(b"data: {}\n\n", end=False))
            busy.stream.receive()
            assert goes_to(found, set(pool.hostports))

    def test_an_answer_that_has_begun(self, configured: Pickers, pool: Pool) -> None:
        """The prompt of one that is not streamed weighs until its end."""
        found = configured(self.FULL)
        with in_flight(found, completion("v" * 40_000), hint=[pool.hostports[0]]) as (busy,):
            busy.stream.send(wire.response_headers(200, wire.JSON))
            busy.stream.receive()
            assert goes_to(found, set(pool.hostports[1:]))
            busy.stream.send(wire.response_body(b"{}"))
            busy.stream.receive()
            assert goes_to(found, set(pool.hostports))

    def test_estimated_answers(self, configured: Pickers, pool: Pool) -> None:
        """addEstimatedOutputTokens: the answer weighs as long as it is streamed, by what the client allows."""
        producer = "{type: inflight-load-producer, parameters: {addEstimatedOutputTokens: true, outputRatio: 100}}"
        found = configured(one("token-load-scorer", "{queueThresholdTokens: 100000}", producer))
        long, short = (completion("u" * 400, stream=True, max_tokens=tokens) for tokens in (9000, 10))
        first, second, third = pool.hostports
        with (
            in_flight(found, long, long, hint=[first]) as busy,
            in_flight(found, short, hint=[second]),
            in_flight(found, long, hint=[third]),
        ):
            for each in busy:
                each.stream.send(wire.response_headers(200, wire.EVENTS))
                each.stream.receive()
                each.stream.send(wire.response_body(b"data: {}\n\n", end=False))
                each.stream.receive()
            assert goes_to(found, {second})

    def test_what_is_cached_weighs_nothing(self, configured: Pickers, pool: Pool) -> None:
        """A prompt goes where it is cached, although as much is in flight there as elsewhere."""
        found = configured(
            one("token-load-scorer", "{queueThresholdTokens: 100000}", "type: approx-prefix-cache-producer")
        )
        body = long_prompt()
        assert served(found, body, hint=[pool.hostports[1]]).destination == pool.hostports[1]
        assert goes_to(found, {pool.hostports[1]}, lambda: body)

    def test_it_is_on_the_metrics_page(self, configured: Pickers, pool: Pool) -> None:
        """What an engine has in flight is a metric: requests and tokens, by flow."""
        found = configured(self.CONFIG)
        names = {"endpoint_name", "namespace", "producer_name", "fairness_id", "priority"}
        team = {"x-gateway-inference-fairness-id": "team"}
        with in_flight(found, long_prompt(), headers=team, hint=[pool.hostports[0]]):
            page = eventually(found.metrics, lambda page: page.value("llm_d_epp_inflight_requests") == 1)
            assert 9_000 < page.value("llm_d_epp_inflight_tokens", fairness_id="team", priority="0") < 12_000
            assert page.labels("llm_d_epp_inflight_requests") == {frozenset(names)}
        eventually(lambda: found.metrics().value("llm_d_epp_inflight_tokens") == 0)

    FILM = json.dumps(
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://x.test/a.mp4"}}]}
            ],
        }
    ).encode()

    @pytest.mark.parametrize(
        ("headers", "tokens"),
        [
            ({}, 10 * 225),
            ({"x-llm-d-video-duration-seconds": "100"}, 100 * 225),
            ({"x-llm-d-video-resolution": "1280x720"}, 10 * 900),
            ({"x-llm-d-video-fps": "48"}, 2 * 10 * 225),
            ({"x-llm-d-video-duration-seconds": "2.5", "x-llm-d-video-fps": "48"}, 5 * 225),
        ],
        ids=["as assumed", "length", "resolution", "rate", "length and rate"],
    )
    def test_videos(self, configured: Pickers, headers: dict[str, str], tokens: int) -> None:
        """A video weighs what its length, resolution and rate come to, as headers say: a frame of 640x360 is 225
        tokens, and of 24 frames one is looked at."""
        frames = "frames: {mode: strided, strided: {frameStride: 24}}"
        producer = f"{{type: token-producer, parameters: {{estimate: {{video: {{{frames}}}}}}}}}"
        found = configured(one("token-load-scorer", "{queueThresholdTokens: 100000}", producer))
        headers = {":path": "/v1/chat/completions", **headers}
        with in_flight(found, self.FILM, headers=headers):
            page = eventually(found.metrics, lambda page: page.value("llm_d_epp_inflight_requests") == 1)
            text = len(self.FILM) // 4
            assert tokens <= page.value("llm_d_epp_inflight_tokens") <= tokens + text
        eventually(lambda: found.metrics().value("llm_d_epp_inflight_tokens") == 0)


class TestLoadAware:
    @pytest.mark.parametrize(("threshold", "best"), [(128, 0), (64, 1)])
    def test_an_absolute_scale(self, configured: Pickers, pool: Pool, threshold: int, best: int) -> None:
        """A queue of half the threshold costs a quarter, whatever the other queues are."""
        scorers = one("load-aware-scorer", f"{{threshold: {threshold}}}", "type: kv-cache-utilization-scorer")
        found = configured(scorers)
        pool.show({"waiting": 64, "kv": 0.0}, {"waiting": 0, "kv": 0.4}, {"waiting": 0, "kv": 0.9})
        assert goes_to(found, {pool.hostports[best]})

    def test_beyond_the_threshold(self, configured: Pickers, pool: Pool) -> None:
        """Queues beyond the threshold are all the same."""
        found = configured(one("load-aware-scorer", "{threshold: 10}"))
        pool.show({"waiting": 100}, {"waiting": 1000}, {"waiting": 9})
        assert goes_to(found, {pool.hostports[2]})
        pool.show({"waiting": 100}, {"waiting": 1000}, {"waiting": 10})
        assert goes_to(found, set(pool.hostports))


class TestNoHitLru:
    CONFIG = one("no-hit-lru-scorer")

    def test_unknown_prompts_take_turns(self, configured: Pickers, pool: Pool) -> None:
        """Prompts that nobody knows go round."""
        found = configured(self.CONFIG)
        order = [route(found, long_prompt(2000)).destination for _ in range(9)]
        assert collections.Counter(order) == dict.fromkeys(pool.hostports, 3)
        assert order[:3] == order[3:6] == order[6:]

    def test_known_prompts_do_not_count(self, configured: Pickers, pool: Pool) -> None:
        """A prompt that comes again does not change whose turn it is."""
        found = configured(self.CONFIG)
        order = [route(found, long_prompt(2000)).destination for _ in range(3)]
        known = long_prompt(2000)
        assert route(found, known).destination == order[0]
        for _ in range(4):
            route(found, known)
        assert route(found, long_prompt(2000)).destination == order[1]


class TestUtilizationFilter:
    @pytest.mark.parametrize(
        ("metric", "most", "gauge", "figures"),
        [
            ("waiting-queue", 5, "waiting", (6, 5, 0)),
            ("running-requests", 5, "running", (6, 5, 0)),
            ("kv-cache-utilization", 0.5, "kv", (0.51, 0.5, 0.0)),
        ],
    )
    def test_who_is_too_busy(
        self, configured: Pickers, pool: Pool, metric: str, most: float, gauge: str, figures: tuple[float, ...]
    ) -> None:
        """An engine above the bound gets nothing, one at the bound does."""
        found = configured(one("utilization-filter", f"{{conditions: [{{metric: {metric}, maxValue: {most}}}]}}"))
        pool.show(*({gauge: each} for each in figures))
        assert goes_to(found, set(pool.hostports[1:]))

    def test_requests_in_flight(self, configured: Pickers, pool: Pool) -> None:
        """active-requests: who has one in flight gets no other."""
        found = configured(one("utilization-filter", "{conditions: [{metric: active-requests, maxValue: 0}]}"))
        with in_flight(found, fresh(), fresh()) as busy:
            assert goes_to(found, set(pool.hostports) - {where(each) for each in busy})

    def test_everybody_is_too_busy(self, configured: Pickers, pool: Pool) -> None:
        """When nobody is left: 429, and the reason."""
        found = configured(one("utilization-filter", "{conditions: [{metric: active-requests, maxValue: 0}]}"))
        with in_flight(found, fresh(), fresh(), fresh()):
            outcome = refuse(found)
            assert (outcome.status, outcome.reason) == (429, "rejected-saturated")
            assert outcome.body.startswith("inference error: ResourceExhausted - ")

    def test_a_fallback(self, configured: Pickers, pool: Pool) -> None:
        """fallbackOnEmpty: when nobody is left, everybody is."""
        condition = "{metric: active-requests, maxValue: 0}"
        found = configured(one("utilization-filter", f"{{conditions: [{condition}], fallbackOnEmpty: true}}"))
        with in_flight(found, fresh(), fresh(), fresh()):
            assert goes_to(found, set(pool.hostports))


CUSTOM = """\
plugins:
- type: core-metrics-extractor
  parameters:
    engineConfigs:
    - name: vllm
      queuedRequestsSpec: vllm:num_requests_waiting
      runningRequestsSpec: vllm:num_requests_running
      kvUsageSpec: vllm:kv_cache_usage_perc
      customMetrics: [{attributeKey: figure, metricSpec: "vllm:num_requests_running"}]
- type: metrics-data-source
"""
SOURCES = """\
dataLayer:
  sources: [{pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}]
"""


def custom(plugin: str) -> str:
    """A configuration with one plugin that looks at a figure of one's own."""
    return f"{CUSTOM}- {plugin}\n{SOURCES}"


class TestEndpointAttributes:
    @pytest.mark.parametrize(("kind", "best"), [("linear_lower_is_better", 1), ("linear_higher_is_better", 2)])
    def test_the_scorer(self, configured: Pickers, pool: Pool, kind: str, best: int) -> None:
        """The lowest figure, or the highest."""
        plugin = (
            f"{{type: endpoint-attribute-scorer, parameters: {{attributeKey: figure, algorithm: {{type: {kind}}}}}}}"
        )
        found = configured(custom(plugin))
        pool.show({"running": 50}, {"running": 10}, {"running": 90})
        assert goes_to(found, {pool.hostports[best]})

    def test_a_fixed_range(self, configured: Pickers, pool: Pool) -> None:
        """Beyond the range all are the same."""
        algorithm = "{type: linear_lower_is_better, normalization: {fixedRange: {min: 20, max: 60}}}"
        plugin = f"{{type: endpoint-attribute-scorer, parameters: {{attributeKey: figure, algorithm: {algorithm}}}}}"
        found = configured(custom(plugin))
        pool.show({"running": 5}, {"running": 19}, {"running": 60})
        assert goes_to(found, set(pool.hostports[:2]))

    @pytest.mark.parametrize(
        ("algorithm", "kept"),
        [
            ("{type: threshold, threshold: {operator: LessThan, value: 50}}", {1}),
            ("{type: threshold, threshold: {operator: GreaterThanOrEqual, value: 50}}", {0, 2}),
            ("{type: range, range: {min: 10, max: 50}}", {0, 1}),
            ("{type: topK, topK: {k: 1}}", {2}),
            ("{type: percentile, percentile: {percentile: 50, higherIsBetter: false}}", {0, 1}),
        ],
        ids=["less", "not less", "range", "top", "percentile"],
    )
    def test_the_filter(self, configured: Pickers, pool: Pool, algorithm: str, kept: set[int]) -> None:
        """Every algorithm."""
        plugin = f"{{type: endpoint-attribute-filter, parameters: {{attribute: figure, algorithm: {algorithm}}}}}"
        found = configured(custom(plugin))
        pool.show({"running": 50}, {"running": 10}, {"running": 90})
        assert goes_to(found, {pool.hostports[number] for number in kept})

    @pytest.mark.parametrize(("missing", "status"), [("Pass", 0), ("Fail", 429)])
    def test_a_figure_that_nobody_has(self, configured: Pickers, pool: Pool, missing: str, status: int) -> None:
        """onMissing: engines without the figure pass, or not."""
        rule = f"onMissing: {missing}, algorithm: {{type: topK, topK: {{k: 1}}}}"
        found = configured(custom(f"{{type: endpoint-attribute-filter, parameters: {{attribute: other, {rule}}}}}"))
        if status:
            assert refuse(found).status == status
        else:
            assert goes_to(found, set(pool.hostports))


class TestPrefixAffinity:
    def config(self, parameters: str) -> str:
        return one("prefix-cache-affinity-filter", parameters, "type: token-load-scorer")

    def test_a_known_prompt_stays(self, configured: Pickers, pool: Pool) -> None:
        """A prompt goes where it is known, however busy that is."""
        found = configured(self.config("{maxTTFTPenaltyMs: 0}"))
        body = long_prompt()
        known = served(found, body).destination
        with in_flight(found, long_prompt(), hint=[known]):
            assert goes_to(found, {known}, lambda: body)

    def test_unless_it_would_wait_too_long(self, configured: Pickers, pool: Pool) -> None:
        """maxTTFTPenaltyMs: not when it would come much later there."""
        found = configured(self.config("{maxTTFTPenaltyMs: 1000, peakPrefillThroughput: 10000}"))
        body = long_prompt(4000)
        known = served(found, body).destination
        with in_flight(found, long_prompt(80_000), hint=[known]):
            assert route(found, body).destination != known


class TestComposite:
    CONFIG = one("latency-scorer")

    def test_cache_and_queue(self, configured: Pickers, pool: Pool) -> None:
        """latency-scorer without a predictor: queue and cache count alike."""
        found = configured(self.CONFIG)
        pool.show({"waiting": 100, "kv": 0.0}, {"waiting": 0, "kv": 0.5}, {"waiting": 100, "kv": 0.4})
        assert goes_to(found, {pool.hostports[1]})

    def test_weights(self, configured: Pickers, pool: Pool) -> None:
        """compositeKVWeight and its like."""
        found = configured(one("latency-scorer", "{compositeQueueWeight: 0, compositePrefixWeight: 0}"))
        pool.show({"waiting": 100, "kv": 0.0}, {"waiting": 0, "kv": 0.5}, {"waiting": 100, "kv": 0.4})
        assert goes_to(found, {pool.hostports[0]})

    def test_v13s_name(self, configured: Pickers, pool: Pool) -> None:
        """predicted-latency-scorer does the same, where it draws no lots."""
        parameters = "{compositeKVWeight: 0, compositePrefixWeight: 0, selectionMode: max}"
        found = configured(one("predicted-latency-scorer", parameters))
        pool.show({"waiting": 100, "kv": 0.0}, {"waiting": 0, "kv": 0.5}, {"waiting": 100, "kv": 0.4})
        assert goes_to(found, {pool.hostports[1]})
