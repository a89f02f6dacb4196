# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of decisions: what it keeps, what it says, and how it is asked."""

from __future__ import annotations

import aiohttp

from epp.model import Decision, Endpoint, InferenceRequest, Rejection
from epp.observe import DecisionLog, Insight, ObserveOptions, ObserveServer, Recorder


def endpoint(number: int) -> Endpoint:
    return Endpoint(f"pod-{number}-rank-0", "llm", f"pod-{number}", f"10.0.0.{number}", 8000)


def request(name: str, model: str = "m", target: str = "t") -> InferenceRequest:
    return InferenceRequest(name, {}, model, target, prompt=b"a secret", size=120, priority=2)


def decision(*numbers: int, cached: bool = False, **scores: float) -> Decision:
    picked = tuple(endpoint(number) for number in numbers)
    rated = {f"10.0.0.{name[1:]}:8000": score for name, score in scores.items()}
    return Decision(picked, rated, {"default": picked}, cached)


def test_a_decision_is_told_with_scores_and_reason() -> None:
    log = DecisionLog()
    log.note("pool", request("r-1"), decision(1, 2, cached=True, p1=0.9, p2=0.5, p3=0.9))
    (told,) = log.newest()
    assert told.pop("time") > 0
    assert told == {
        "pool": "pool",
        "requestId": "r-1",
        "model": "m",
        "targetModel": "t",
        "bytes": 120,
        "priority": 2,
        "endpoint": "10.0.0.1:8000",
        "pod": "pod-1",
        "fallbacks": ["10.0.0.2:8000"],
        "scores": {"10.0.0.1:8000": 0.9, "10.0.0.2:8000": 0.5, "10.0.0.3:8000": 0.9},
        "profiles": {"default": ["10.0.0.1:8000", "10.0.0.2:8000"]},
        "cached": True,
        "status": 200,
        "reason": "score 0.900 is the best of 3 (2 are alike), and it is believed to hold the beginning of the prompt",
    }


def test_other_reasons() -> None:
    log = DecisionLog()
    log.note("pool", request("a"), decision(2, p1=0.9, p2=0.5))
    log.note("pool", request("b"), decision(1))
    log.note("pool", request("c"), Rejection(429, "ResourceExhausted", "system saturated"))
    assert [(told["requestId"], told["status"], told["reason"]) for told in log.newest()] == [
        ("c", 429, "ResourceExhausted: system saturated"),
        ("b", 200, "picked without scores"),
        ("a", 200, "score 0.500 is number 2 of 2"),
    ]


def test_a_refusal_does_not_keep_the_request_alive() -> None:
    log = DecisionLog()

    def refuse() -> None:
        raise Rejection(429, "ResourceExhausted", "system saturated")

    try:
        refuse()
    except Rejection as rejection:
        log.note("pool", request("r-1"), rejection)
    outcome = log._notes[0][-1]
    assert isinstance(outcome, Rejection)
    assert outcome.__traceback__ is None


def test_only_the_last_ones_are_kept_and_no_prompts() -> None:
    log = DecisionLog(kept=3)
    for number in range(10):
        log.note("pool", request(f"r-{number}", model="even" if number % 2 == 0 else "odd", target=""), decision(1))
    assert [told["requestId"] for told in log.newest()] == ["r-9", "r-8", "r-7"]
    assert [told["requestId"] for told in log.newest(1)] == ["r-9"]
    assert [told["requestId"] for told in log.newest(model="even")] == ["r-8"]
    assert "secret" not in str(log._notes)


async def test_it_is_served() -> None:
    recorder = Recorder()
    options = ObserveOptions(host="127.0.0.1", port=0)
    server = ObserveServer(recorder, dict, lambda: ("", ""), options, Insight(recorder.decisions))
    port = await server.start()
    recorder.decisions.note("pool", request("r-1"), decision(1, p1=1.0))
    recorder.decisions.note("pool", request("r-2", model="other", target="other"), decision(1, p1=1.0))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/debug/decisions", params={"model": "m"}) as answer:
                assert [told["requestId"] for told in (await answer.json())["decisions"]] == ["r-1"]
            async with session.get("/debug/decisions", params={"limit": "one"}) as answer:
                assert answer.status == 400
                assert "limit must be a number" in await answer.text()
    finally:
        await server.stop()
