# SPDX-License-Identifier: GPL-3.0-or-later
"""Completions go where they are answered soonest: the pod that holds the prefix, else one with little to do."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

MODEL_SERVERS = "app.kubernetes.io/name=model-server"


def story(words: int = 1500) -> str:
    """A text that no cache has seen before."""
    seed = uuid.uuid4().hex
    return " ".join(f"{seed[i % 28 : i % 28 + 4]}{i}" for i in range(words))


@pytest.fixture(scope="module")
def pods(platform) -> dict[str, str]:
    found = platform.pods(MODEL_SERVERS)
    assert len(found) == 4, found
    return found


def serve(platform, model, prompts, workers, **options):
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda prompt: platform.complete(model, prompt, **options), prompts))


def by_pod(answers, pods) -> Counter[str]:
    return Counter(pods[answer.served_by.rsplit(":", 1)[0]] for answer in answers)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_completion_comes_back_and_says_which_pod_answered(platform, model, pods, stream):
    answer = platform.complete(model, "Say hello.", stream=stream)
    assert answer.status == 200, (answer.body, answer.error)
    assert answer.text().strip()
    assert answer.served_by.rsplit(":", 1)[0] in pods


def test_a_streamed_answer_comes_in_pieces(platform, model):
    answer = platform.complete(model, "Count to forty.", stream=True, max_tokens=40)
    assert len(list(answer.events())) >= 20
    assert answer.body.rstrip().endswith(b"data: [DONE]")
    assert answer.first < answer.total


def test_a_shared_prefix_stays_with_the_pod_that_holds_it(platform, model, pods):
    prefix = story()
    answers = serve(platform, model, [f"{prefix}\nQuestion {n}?" for n in range(200)], workers=4)
    assert {answer.status for answer in answers} == {200}
    most = by_pod(answers, pods).most_common(1)[0][1]
    assert most >= 150, by_pod(answers, pods)


def test_the_pod_says_itself_that_the_prefix_was_cached(platform, model):
    prefix = story()
    first = platform.complete(model, f"{prefix}\nFirst?")
    second = platform.complete(model, f"{prefix}\nSecond?")
    assert first.served_by == second.served_by
    usage = second.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2, usage


def test_distinct_prompts_spread(platform, model, pods):
    answers = serve(platform, model, [story(200) for _ in range(200)], workers=16)
    assert {answer.status for answer in answers} == {200}
    served = by_pod(answers, pods)
    assert len(served) == 4, served
    assert max(served.values()) <= 100, served


def test_a_killed_pod_costs_no_request_that_had_not_started(platform, model, pods):
    """One pod is deleted without grace while requests run; only answers that had begun to stream may be cut."""
    victim = sorted(pods.values())[0]

    def ask(number: int):
        if number == 40:
            platform.core.delete_namespaced_pod(victim, platform.namespace, grace_period_seconds=0)
        return platform.complete(model, story(120), stream=number % 2 == 0, max_tokens=48)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    lost = [answer for answer in answers if answer.status != 200 or (answer.error and not answer.body)]
    assert not lost, [(answer.status, answer.error, answer.body[:200]) for answer in lost]
    cut = [answer for answer in answers if answer.error]
    assert len(cut) <= 16, "more answers were cut than ran at a time"
