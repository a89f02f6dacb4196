# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way: the real Envoy, our EPP, and two llama-servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engines.gateway import Gateway, gateway
from engines.llamacpp import MODEL, spoken
from engines.reader import PATIENCE
from engines.server import Server, get, load

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

TOKENS = 8
BODY = {"model": MODEL, "max_tokens": TOKENS}
COMPLETION = ("/v1/completions", {"prompt": "Once upon a time", **BODY})
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}], **BODY})


@pytest.fixture(scope="module")
def front(llamas: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("front"), {each.hostport: each.kind for each in llamas}) as running:
        yield running


@pytest.mark.parametrize(("path", "body"), [COMPLETION, CHAT], ids=["completion", "chat"])
class TestAnswers:
    def test_plain(self, front: Gateway, path: str, body: dict[str, Any]) -> None:
        answer = front.ask(path, **body)
        assert answer["model"] == MODEL
        assert answer["usage"]["completion_tokens"] == TOKENS
        assert answer["usage"]["prompt_tokens"] > 0
        choice = answer["choices"][0]
        assert choice.get("text") or choice["message"]["content"], "the model says something"

    def test_streamed(self, front: Gateway, path: str, body: dict[str, Any]) -> None:
        found = front.stream(path, **body)
        assert len(found) > TOKENS, "a piece for each token"
        assert found[-1]["usage"]["completion_tokens"] == TOKENS

    @pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
    def test_usage_is_counted(self, front: Gateway, path: str, body: dict[str, Any], streamed: bool) -> None:
        before = front.output_tokens()
        (front.stream if streamed else front.ask)(path, **body)
        end = time.monotonic() + PATIENCE
        while front.output_tokens() < before + TOKENS and time.monotonic() < end:
            time.sleep(0.05)
        assert front.output_tokens() == before + TOKENS


def test_models(front: Gateway) -> None:
    assert [each["id"] for each in json.loads(get(f"{front.url}/v1/models"))["data"]] == [MODEL]


@pytest.mark.parametrize("busy", [0, 1])
def test_requests_go_to_the_other(front: Gateway, llamas: tuple[Server, Server], busy: int) -> None:
    """One server is loaded from elsewhere, past the gateway: the EPP knows of it only by the server's page."""
    server, other = llamas[busy], llamas[1 - busy]
    front.wait_for_rest()
    with load(server.ask, 3 * server.slots):
        front.wait_for_queue(server.hostport)
        before = spoken(other)
        for _ in range(6):
            front.ask(COMPLETION[0], **COMPLETION[1])
        assert spoken(other) - before == 6 * TOKENS, "all six went to the server that had nothing to do"
    front.wait_for_rest()
