# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make demo`` ends with: completions, the pod that answered each, and a line to repeat them."""

from __future__ import annotations

import json
import shlex

from target.cluster import Target
from target.platform import Answer, Platform, PlatformError, find

STORY = "The old lighthouse keeper wrote down every ship that passed, its name, its colours and the hour. " * 24


class DemoError(Exception):
    """A completion failed; the text holds what came back."""


def prompts() -> list[tuple[str, str]]:
    """(what a person reads, the prompt): a story of some 600 tokens asked about three times, then three others."""
    about = [f"{STORY}\nQuestion {number}: what did the keeper write down?" for number in (1, 2, 3)]
    others = [f"Topic {number}: name a colour of the sea, and say why." * 8 for number in (1, 2, 3)]
    labels = ["a long story, question 1", "the same story, question 2", "the same story, question 3"]
    return [*zip(labels, about, strict=True), *((f"another prompt, {n}", text) for n, text in enumerate(others, 1))]


def curl(platform: Platform, model: str) -> str:
    """A line that a person can paste: the same request as ours, with the header that names the pod."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16})
    headers = f"-H 'Authorization: Bearer {platform.key}' -H 'Content-Type: application/json'"
    return f"curl -si {platform.url}/v1/chat/completions {headers} -d {shlex.quote(body)}"


def show(target: Target) -> None:
    """Send a few completions and print a table; then the URL and the ``curl`` line.

    Raises:
        DemoError: the platform is not there, or a completion did not succeed.
    """
    try:
        platform = find(target.environment()["KUBECONFIG"])
        models = platform.models()
    except PlatformError as error:
        raise DemoError(str(error)) from error
    if not models:
        raise DemoError("LiteLLM offers no model: name one in `inferops_models`")
    pods = platform.pods("app.kubernetes.io/name=model-server")
    print(f"\n{'prompt':28} {'answered by':32} {'cached tokens':>13} {'ms':>6}")
    for label, prompt in prompts():
        answer = platform.complete(models[0], prompt)
        if answer.status != 200:
            raise DemoError(f"{label}: status {answer.status} {answer.error} {answer.body[:400]!r}")
        print(f"{label:28} {_pod(answer, pods):32} {_cached(answer):>13} {answer.total * 1000:>6.0f}", flush=True)
    print(f"\nThe platform answers at {platform.url}/v1 (model {models[0]}). Repeat it yourself:\n")
    print(f"{curl(platform, models[0])}\n")


def _pod(answer: Answer, pods: dict[str, str]) -> str:
    address = answer.served_by.rsplit(":", 1)[0]
    return pods.get(address, answer.served_by or "unknown")


def _cached(answer: Answer) -> int:
    details = answer.json()["usage"].get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
