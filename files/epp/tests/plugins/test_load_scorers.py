# SPDX-License-Identifier: GPL-3.0-or-later
"""Scorers that look at load, and what estimates it."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("queue", "threshold", "score"),
    [(0, 128, 0.5), (64, 128, 0.25), (128, 128, 0.0), (1000, 128, 0.0), (1, 2, 0.25), (1, 1, 0.0)],
)
def test_load_aware(kit: Any, queue: int, threshold: int, score: float) -> None:
    scorer = kit.make("load-aware-scorer", threshold=threshold)
    assert scorer.score(kit.ask(), [kit.endpoint(metrics=kit.read(waiting=queue))]) == [score]


@pytest.mark.parametrize(
    ("counts", "idle", "busy", "scores"),
    [
        ([0, 0], 0, 1.0, [1.0, 1.0]),
        ([0, 2, 4], 0, 1.0, [1.0, 0.5, 0.0]),
        ([0, 2, 4], 0, 0.5, [1.0, 0.25, 0.0]),
        ([1, 2, 4], 1, 1.0, [1.0, 0.5, 0.0]),
        ([3, 3], 3, 0.2, [1.0, 1.0]),
        ([5, 5], 0, 1.0, [0.0, 0.0]),
        ([5], 0, 1.0, [0.0]),
        ([], 0, 1.0, []),
    ],
)
def test_active_request(kit: Any, counts: list[int], idle: int, busy: float, scores: list[float]) -> None:
    scorer = kit.make("active-request-scorer", idle_threshold=idle, max_busy_score=busy)
    pods = kit.endpoints(len(counts))
    for pod, count in zip(pods, counts, strict=True):
        pod.inflight = count
    assert scorer.score(kit.ask(), pods) == scores


def test_active_request_takes_what_older_configurations_say(kit: Any) -> None:
    found = kit.parameters("active-request-scorer", '{requestTimeout: "2m", idleThreshold: 3, maxBusyScore: 0.5}')
    assert (found.idle_threshold, found.max_busy_score) == (3, 0.5)


@pytest.mark.parametrize(
    ("inflight", "prompt", "answer", "score"),
    [(0, 0, 0, 1.0), (100, 0, 0, 0.9), (0, 100, 0, 0.9), (0, 0, 500, 0.5), (600, 300, 100, 0.0), (5000, 0, 0, 0.0)],
)
def test_token_load(kit: Any, inflight: int, prompt: int, answer: int, score: float) -> None:
    scorer = kit.make("token-load-scorer", queue_threshold_tokens=1000)
    pod = kit.endpoint()
    pod.inflight_tokens = inflight
    request = kit.ask(prompt_tokens=prompt, output_tokens=answer)
    assert scorer.score(request, [pod]) == [pytest.approx(score)]


def test_token_load_counts_only_what_is_not_cached(kit: Any) -> None:
    scorer = kit.make("token-load-scorer", queue_threshold_tokens=1000)
    cold, warm, hot = kit.endpoints(3)
    request = kit.ask(prompt_tokens=400)
    kit.matched(request, {warm: 2, hot: 100}, total=7, tokens=64)
    assert scorer.score(request, [cold, warm, hot]) == [0.6, pytest.approx(1 - 272 / 1000), 1.0]


@pytest.mark.parametrize(
    ("parameters", "prompt", "limit", "tokens"),
    [
        ({}, 100, 0, 0),
        ({"add_estimated_output_tokens": True}, 100, 0, 150),
        ({"add_estimated_output_tokens": True}, 100, 20, 20),
        ({"add_estimated_output_tokens": True, "max_estimated_output_tokens": 30}, 100, 0, 30),
        ({"add_estimated_output_tokens": True, "max_estimated_output_tokens": 0}, 100, 70, 0),
        ({"add_estimated_output_tokens": True, "output_ratio": 0.5}, 101, 0, 50),
    ],
)
def test_estimated_answers(kit: Any, parameters: dict[str, Any], prompt: int, limit: int, tokens: int) -> None:
    request = kit.ask(prompt_tokens=prompt, max_tokens=limit)
    kit.make("inflight-load-producer", **parameters).produce(request, kit.endpoints(2))
    assert request.output_tokens == tokens


def test_answers_are_in_flight_when_they_are_asked_for(kit: Any) -> None:
    rig = kit.rig(
        "plugins:\n"
        "- {type: inflight-load-producer, parameters: {addEstimatedOutputTokens: true}}\n"
        "- type: token-load-scorer\n",
        kit.endpoints(2),
    )
    first = rig.send(kit.ask(b"x" * 400)).endpoints[0]
    assert (first.inflight, first.inflight_tokens) == (1, 250)
    assert rig.send(kit.ask(b"y" * 40)).endpoints[0] is not first
    assert rig.send(kit.ask(b"z" * 40)).endpoints[0] is not first, "one short request is less than one long one"


def test_what_is_in_flight_is_on_the_metrics_page(kit: Any) -> None:
    rig = kit.rig("plugins:\n- type: token-load-scorer\n", kit.endpoints(2))
    chosen = rig.send(kit.ask(b"x" * 400, fairness_id="team", priority=3)).endpoints[0]
    page = rig.recorder.render().decode()
    for pod in rig.endpoints:
        here = pod is chosen
        where = f'endpoint_name="{pod.name}",fairness_id="{"team" * here}",namespace="ns",priority="{"3" * here}"'
        labels = f'{{{where},producer_name="inflight-load-producer"}}'
        assert f"llm_d_epp_inflight_requests{labels} {float(here)}\n" in page
        assert f"llm_d_epp_inflight_tokens{labels} {100.0 * here}\n" in page


class TestNoHitLru:
    CONFIG = "plugins:\n- type: no-hit-lru-scorer\n- type: max-score-picker\n"

    def test_unknown_prompts_take_turns(self, kit: Any) -> None:
        rig = kit.rig(self.CONFIG, kit.endpoints(4))
        order = [rig.send(kit.ask(b"%d" % number * 100)).endpoints[0].name for number in range(8)]
        assert order == ["e0", "e1", "e2", "e3"] * 2

    def test_the_formula(self, kit: Any) -> None:
        scorer = kit.make("no-hit-lru-scorer")
        pods = kit.endpoints(5)
        assert scorer.score(kit.ask(), pods) == [1.0, 0.75, 0.5, 0.25, 0.0]
        scorer._recency.used(pods[0])
        scorer._recency.used(pods[3])
        assert scorer.score(kit.ask(), pods) == [0.25, 1.0, 0.75, 0.0, 0.5]
        assert scorer.score(kit.ask(), pods[:1]) == [1.0]
        assert scorer.score(kit.ask(), []) == []

    def test_a_prompt_that_somebody_knows_is_left_to_others(self, kit: Any) -> None:
        scorer = kit.make("no-hit-lru-scorer")
        first, second = kit.endpoints(2)
        request = kit.ask()
        kit.matched(request, {second: 1}, total=4)
        assert scorer.score(request, [first, second]) == [0.5, 0.5]
        assert scorer.score(request, [first]) == [1.0], "nobody among the candidates knows it"

    def test_only_unknown_prompts_count_as_use(self, kit: Any) -> None:
        rig = kit.rig(self.CONFIG, kit.endpoints(2))
        rig.send(kit.ask(b"a" * 1000))
        for _ in range(3):
            rig.send(kit.ask(b"a" * 1000))
        assert rig.send(kit.ask(b"b" * 1000)).endpoints[0].name == "e1"

    def test_it_forgets_who_is_gone_and_the_oldest(self, kit: Any) -> None:
        world = kit.World()
        scorer = kit.make("no-hit-lru-scorer", world, lru_size=2)
        pods = kit.endpoints(3)
        world.datastore.replace(pods)
        for pod in pods:
            scorer._recency.used(pod)
        assert scorer.score(kit.ask(), pods) == [1.0, 0.5, 0.0]
        world.datastore.replace(pods[:2])
        assert len(scorer._recency._used) == 1


@pytest.mark.parametrize(
    ("label", "tokens", "score"),
    [
        (None, 100, 0.5),
        ("nonsense", 100, 0.0),
        ("10", 100, 0.0),
        ("-5-10", 100, 0.0),
        ("200-100", 150, 0.0),
        ("100-100", 100, 1.0),
        ("0-10000", 0, 0.3 + 0.7 * (0.7 * 0.5 + 0.3)),
        ("0-10000", 10000, 0.3 + 0.7 * 0.7 * 0.5),
        ("0 - 10000", 5000, 0.3 + 0.7 * (0.7 * 0.5 + 0.3 * 0.5)),
        ("0-1000", 2000, 0.15),
        ("3000-4000", 2000, 0.15),
        ("0-1000", 1001, 0.3 / 1.001),
    ],
)
def test_context_length(kit: Any, label: str | None, tokens: int, score: float) -> None:
    pod = kit.endpoint(**({} if label is None else {"llm_d.ai__context_length_range": label}))
    scorer = kit.make("context-length-aware")
    request = kit.ask(prompt_tokens=tokens)
    assert scorer.score(request, [pod]) == [pytest.approx(score)]
    assert scorer.filter(request, [pod]) == [pod], "it does not filter unless told to"


@pytest.mark.parametrize(("tokens", "kept"), [(0, [0, 2]), (100, [0, 2]), (101, [1, 2]), (5000, [2])])
def test_context_length_as_a_filter(kit: Any, tokens: int, kept: list[int]) -> None:
    pods = [kit.endpoint(0, size="0-100"), kit.endpoint(1, size="101-4999"), kit.endpoint(2), kit.endpoint(3, size="x")]
    chosen = kit.make("context-length-aware", label="size", enable_filtering=True).filter(
        kit.ask(prompt_tokens=tokens), pods
    )
    assert chosen == [pods[number] for number in kept]


def test_in_range_is_always_better_than_outside(kit: Any) -> None:
    scorer = kit.make("context-length-aware", label="size")
    inside, outside = kit.endpoint(0, size="0-10000000"), kit.endpoint(1, size="0-9999999")
    best, other = scorer.score(kit.ask(prompt_tokens=10_000_000), [inside, outside])
    assert best > other
