# SPDX-License-Identifier: GPL-3.0-or-later
"""One pool of two kinds of real engines: a llama-server and a vLLM, told apart by their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conformance.kit.wait import eventually
from ports import free_port

from engines import vllm
from engines.gateway import Gateway, gateway
from engines.llamacpp import MODEL, spoken
from engines.server import Server, load
from engines.vllm import Place, Vllm

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

TOKENS = 8
PATHS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "Once upon a time"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
)


@pytest.fixture(scope="module")
def other() -> Iterator[Vllm]:
    with vllm.servers([Place("127.0.0.1", free_port(), free_port(), free_port())]) as (server,):
        yield server


@pytest.fixture(scope="module")
def front(llamas: tuple[Server, Server], other: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    engines = {llamas[0].hostport: "llamacpp", other.place.hostport: "vllm"}
    with gateway(tmp_path_factory.mktemp("mixed"), engines) as running:
        yield running


def ended(server: Vllm) -> int:
    """Requests that a vLLM has answered."""
    return int(server.figure("request_success_total"))


def six(front: Gateway) -> None:
    """Three completions and three chats."""
    for path, body in PATHS * 3:
        answer = front.ask(path, model=MODEL, max_tokens=TOKENS, ignore_eos=True, **body)
        assert answer["usage"]["completion_tokens"] == TOKENS


def test_from_llamacpp_to_vllm(front: Gateway, llamas: tuple[Server, Server], other: Vllm) -> None:
    front.wait_for_rest()
    with load(llamas[0].ask, 3 * llamas[0].slots):
        front.wait_for_queue(llamas[0].hostport)
        before = ended(other)
        six(front)
        eventually(lambda: ended(other) == before + 6)
    front.wait_for_rest()


def test_from_vllm_to_llamacpp(front: Gateway, llamas: tuple[Server, Server], other: Vllm) -> None:
    front.wait_for_rest()
    with other.busy(*[vllm.MODEL] * (vllm.SEATS + 3)):
        front.wait_for_queue(other.place.hostport)
        before = spoken(llamas[0])
        six(front)
        assert spoken(llamas[0]) == before + 6 * TOKENS
    front.wait_for_rest()
